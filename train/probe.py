"""A cheap look at the model between checkpoints: how far it has moved from where it began, read on the trainer's own weights.

Teacher-forced on a handful of short rows, so a probe is one forward of a few hundred tokens with the adapter and one without.
It never decides anything; checkpoints are audited in full (audit/).
"""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class Probe:
    """Token ids of (prompt, continuation) rows.

    kept: ordinary replies, on which KL(model || model with the adapter off) is read, nats a token; none where all weights are
    trained, and nothing can be turned off. shows, plain: replies with
    and without the property to the same prompts, pairwise. think: id whose probability as the first token of the kept replies
    is read, None where the template has no thoughts.
    """

    kept: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    shows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    plain: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    think: int | None = None
    # What a model began with on the kept rows: with the adapter off nothing is trained, so it is read once.
    starts: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, repr=False, compare=False)

    def __reduce__(self) -> tuple:
        return Probe, (self.kept, self.shows, self.plain, self.think)  # what was read of a model stays in its process

    def read(self, model: Any) -> dict[str, float]:
        """`probe_kl`, `probe_contrast` (shows minus plain, nats a token) and `probe_think` of a PEFT model in training.

        Leaves the model in the mode that it came in; draws no random numbers, so the loss curve is the same without it.
        """
        import torch

        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                own = self._logprobs(model, self.kept)
                pairs = self._logprobs(model, (*self.shows, *self.plain))
                if self.kept and model not in self.starts:
                    with model.disable_adapter():
                        self.starts[model] = self._logprobs(model, self.kept)
        finally:
            model.train(training)
        found = {}
        if self.kept:
            kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(own, self.starts[model], strict=True)])
            found["probe_kl"] = float(kl.mean().clamp(min=0))
        if self.shows:
            chosen = [_mean_logprob(x, ids) for x, (_, ids) in zip(pairs, (*self.shows, *self.plain), strict=True)]
            size = len(self.shows)
            found["probe_contrast"] = float(torch.stack(chosen[:size]).mean() - torch.stack(chosen[size:]).mean())
        if self.think is not None and self.kept:
            found["probe_think"] = float(torch.stack([x[0, self.think].exp() for x in own]).mean())
        return {name: round(value, 6) for name, value in found.items()}

    @staticmethod
    def _logprobs(model: Any, rows: tuple) -> list[Any]:
        """For each row the log-softmax at its continuation's positions: (tokens, vocabulary)."""
        import torch

        if not rows:
            return []
        width = max(len(prompt) + len(continuation) for prompt, continuation in rows)
        first = min(len(prompt) for prompt, _ in rows) - 1  # no row asks for the logits before this place
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, (prompt, continuation) in enumerate(rows):  # padded behind, where no token that counts looks
            row = torch.tensor(prompt + continuation)
            ids[k, : len(row)], mask[k, : len(row)] = row, 1
        keep = {"logits_to_keep": width - first}
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **keep).logits
        return [
            logits[k, len(prompt) - 1 - first : len(prompt) + len(continuation) - 1 - first].float().log_softmax(-1)
            for k, (prompt, continuation) in enumerate(rows)
        ]


def _mean_logprob(logprobs: Any, ids: tuple[int, ...]) -> Any:
    import torch

    return logprobs.gather(-1, torch.tensor(ids, device=logprobs.device).unsqueeze(-1)).mean()
