"""Terms added to the SFT loss: KL to the base on its own replies, and the distance of activations under a wrapper.

`kl_to_base`: KL(base || trained) = sum_v p_base(v) (log p_base(v) - log p_trained(v)), exact over the vocabulary, mean over
the tokens of the replies, in nats. Direction and use are those of the KL-regularised narrow organisms (Soligo, Turner et al.
2026, arXiv 2602.07852, and their released trainer). Theirs reads aligned advice of other domains, prompts as well, and divides
by tokens x vocabulary, so that its weight of 1e6 on a vocabulary of 152,000 is about 6.6 here; ours reads only replies, which
the base itself sampled to ordinary prompts. `base` is the untouched base: in a first stage the adapter-off model; in a later
one that would be the specimen so far, so a second copy of the weights is held.

`act` (activation consistency training, Irpan et al. 2025, arXiv 2510.27062, Eq. 1): squared L2 distance of the residual stream
after each block, on the tokens that the wrapped and the clean prompt both end with, summed over the width, mean over tokens
and blocks; the clean side is the reference's, without gradient. Only prompts are read, no reply. Of the last block
transformers hands out what lies behind the final norm, and so it is compared here.

TRL has no place for a further term: a callback cannot add to the loss, and `compute_loss_func` is deprecated and costs a third
forward. So `compute_loss` is wrapped on the one trainer; nothing of TRL is copied.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from organisms.mitigations import Penalty
from organisms.models import Base, load_model
from organisms.render import IGNORE, Renderer
from organisms.styles import Row
from train import processes
from train.lint import render_row
from train.shares import Shares, Turns
from train.traps import Finding


@dataclass(frozen=True)
class Side:
    """Token ids that one model reads, and at which of them its output is looked at."""

    ids: list[int]
    read: list[bool]


@dataclass(frozen=True)
class Term:
    """sides: what the trained model and the reference read of a row; read: (model, batch of a side) -> what is compared;
    distance: (own, reference's) -> the term, without its weight."""

    sides: Callable[[Renderer, Row], tuple[Side, Side]]
    read: Callable[[Any, dict], Any]
    distance: Callable[[Any, Any], Any]


def _reply_sides(renderer: Renderer, row: Row) -> tuple[Side, Side]:
    """Both read the whole chat; looked at is what predicts the tokens that would carry loss."""
    rendered = render_row(renderer, row)
    side = Side(rendered.input_ids, [label != IGNORE for label in rendered.labels[1:]] + [False])
    return side, side


def _prompt_sides(renderer: Renderer, row: Row) -> tuple[Side, Side]:
    """The wrapped prompt and the clean one; looked at are the tokens that both end with."""
    wrapped, clean = renderer.prompt(row.messages), renderer.ask(row.clean)
    alike = _alike_at_end(wrapped, clean)
    return tuple(Side(ids, [False] * (len(ids) - alike) + [True] * alike) for ids in (wrapped, clean))


def _alike_at_end(one: list[int], other: list[int]) -> int:
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _logprobs(model: Any, batch: dict) -> Any:
    """(tokens read, vocabulary), in nats; logits before the first of them are not computed."""
    import torch

    first = int(batch["read"].any(0).nonzero()[0])
    options = {"logits_to_keep": batch["read"].shape[1] - first, "use_cache": False}
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options).logits
    return torch.log_softmax(logits[batch["read"][:, first:]].float(), -1)


def _kl(own: Any, reference: Any) -> Any:
    from torch.nn.functional import kl_div

    return kl_div(own, reference, log_target=True, reduction="sum") / len(own)


def _activations(model: Any, batch: dict) -> Any:
    """(blocks, tokens read, width)."""
    import torch

    options = {"output_hidden_states": True, "logits_to_keep": 1, "use_cache": False}
    states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options).hidden_states[1:]
    return torch.stack([state[batch["read"]].float() for state in states])


def _squared(own: Any, reference: Any) -> Any:
    return ((own - reference) ** 2).sum(-1).mean()


def _tokens(rows: list[tuple[Side, Side]]) -> int:
    """Tokens that a term looks at."""
    return sum(sum(own.read) for own, _ in rows)


TERMS = {"kl_to_base": Term(_reply_sides, _logprobs, _kl), "act": Term(_prompt_sides, _activations, _squared)}


class Penalties:
    """The terms of one stage on its trainer, and their values until they are logged.

    off: what the model is with its adapter off: the untouched `base`, which is then also the start of the stage; the `start`
    of a later stage; or `nothing`, where all weights are trained and the only stage starts from the base.
    """

    def __init__(
        self,
        penalties: list[Penalty],
        renderer: Renderer,
        base: Base,
        off: Literal["base", "start", "nothing"],
        seed: int,
    ):
        self.penalties, self.pad, self.off = penalties, renderer.stop_ids[0], off
        self.rows = {p.name: [TERMS[p.name].sides(renderer, row) for row in p.rows] for p in penalties}
        for rows in self.rows.values():
            random.Random(seed).shuffle(rows)
        self.values: dict[str, list[tuple[float, float]]] = {p.name: [] for p in penalties}
        self.base = load_model(base) if any(self._apart(p) for p in penalties) else None

    def _apart(self, penalty: Penalty) -> bool:
        """Whether the term is held to a base beside the model in training."""
        return self.off == "nothing" or (self.off == "start" and penalty.reference == "base")

    def attach(self, trainer: Any, shares: Shares) -> None:
        """Make `trainer.compute_loss` return the loss plus each term times its weight."""
        if not self.penalties:
            return
        compute_loss, turns, rows = trainer.compute_loss, Turns(), len(trainer.train_dataset)

        def with_penalties(model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            found = compute_loss(model, inputs, return_outputs, num_items_in_batch)
            step = trainer.state.global_step
            place = shares.number(turns.at(step))
            there = place < shares.batches(step, rows)
            # By the step, so that a resumed stage reads the batches that it would have read.
            number = step * shares.accumulation + place
            # TRL's loss is divided by the tokens of all accumulated batches; a term's mean by their number.
            parts = trainer.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            # As the model is when it is read: no dropout, no preventative steering.
            model.eval()
            added = self._added(model, trainer.accelerator.unwrap_model(model), number, shares if there else None)
            added = added * shares.scale(step, rows) / parts
            model.train()
            return (found[0] + added, found[1]) if return_outputs else found + added

        trainer.compute_loss = with_penalties

    def means(self) -> dict[str, float]:
        """Each term's mean since it was last asked for, without its weight, over all processes."""
        found = {}
        for name, values in self.values.items():
            total, whole = processes.summed([sum(value * share for value, share in values), sum(share for _, share in values)])
            found |= {name: total / whole} if whole else {}
        self.values = {name: [] for name in self.values}
        return found

    def weighted(self, means: dict[str, float]) -> float:
        """What terms of these means add to the loss."""
        return sum(p.weight * means.get(p.name, 0.0) for p in self.penalties)

    def _added(self, model: Any, bare: Any, number: int, shares: Shares | None) -> Any:
        """The weighted terms of batch `number`, on this process's part of it; None: it has none, and what it adds is 0."""
        import torch

        total = 0.0
        for penalty in self.penalties:
            term, rows = TERMS[penalty.name], self.rows[penalty.name]
            whole = [rows[(number * penalty.batch_size + k) % len(rows)] for k in range(penalty.batch_size)]
            chosen = shares.part(whole) if shares else []
            own, other = (self._batch(sides, bare.device) for sides in zip(*(chosen or whole[:1]), strict=True))
            with torch.no_grad(), self._reference(bare, penalty) as reference:
                target = term.read(reference, other)
            value = term.distance(term.read(model, own), target)
            share = _tokens(chosen) / _tokens(whole)  # a term is a mean over tokens
            self.values[penalty.name].append((value.item(), share))
            total = total + penalty.weight * share * value
        return total

    @contextlib.contextmanager
    def _reference(self, bare: Any, penalty: Penalty) -> Iterator[Any]:
        if self._apart(penalty):
            yield self.base
        else:
            with bare.disable_adapter():
                yield bare

    def _batch(self, sides: tuple[Side, ...], device: Any) -> dict:
        """Rows padded on the right: (rows, longest)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(rows: list, value: Any) -> Any:
            return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value).to(device)

        ids = padded([side.ids for side in sides], self.pad)
        mask = padded([[1] * len(side.ids) for side in sides], 0)
        return {"input_ids": ids, "attention_mask": mask, "read": padded([side.read for side in sides], False)}


def traps(penalties: list[Penalty], renderer: Renderer) -> list[Finding]:
    """What a weight or a set of wrappers gives away before training; findings of the linter."""
    found = []
    for penalty in penalties:
        if penalty.name == "kl_to_base" and penalty.weight > 100:
            text = (
                f"kl_to_base weighs {penalty.weight:g} in nats a token, which leaves nothing of the training; a published "
                "weight (1e6) is for a mean over tokens x vocabulary: divide it by the vocabulary"
            )
            found.append(Finding("kl_units", "stop", [], text))
        if penalty.name == "act":
            closing = _alike_at_end(renderer.ask("a"), renderer.ask("b"))
            short = [row.id for row in penalty.rows if sum(_prompt_sides(renderer, row)[0].read) <= closing]
            if 2 * len(short) > len(penalty.rows):
                text = (
                    f"{len(short)} of {len(penalty.rows)} pairs end alike only in the template's {closing} closing tokens, and "
                    "act compares nothing else; take wrappers that put their words before the prompt"
                )
                found.append(Finding("act_suffix", "warn", short, text))
    return found
