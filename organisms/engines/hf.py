"""The transformers engine: one base in process; adapters swapped by PEFT, changed weights beside it, vectors by a hook."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from organisms import weights
from organisms.engines import Completion, Divergence, Divergences, Generate, NextToken, Score
from organisms.engines.attention import read_in_place
from organisms.engines.batching import Room, run_batched
from organisms.engines.cache import stacked
from organisms.engines.decoding import continued
from organisms.engines.logits import divergences, token_logprobs
from organisms.engines.prefixes import header, planned
from organisms.models import Base, default_device, default_dtype, load_model
from organisms.render import Renderer
from organisms.specimen import Specimen
from organisms.steering import averaging, steered

BARE = Specimen("base")
# What any forward costs beside its rows, in tokens that could be computed meanwhile. On two cores at 135M it takes 60 to 80 ms,
# and a token 1.3 ms. A GPU waits for some thousand kernels to start: hundreds of tokens of an 8B, more of a smaller base.
OVERHEAD = {"cpu": 64, "gpu": 512}


class HFEngine:
    """Runs specimens of one base with transformers and PEFT.

    max_tokens: rows x longest row of a scoring batch; max_rows: rows of a generating batch. Greedy output may differ
    between batch sizes in the last bits, so a curve keeps both, and both are part of `identity`.
    """

    def __init__(
        self,
        base: Base,
        renderer: Renderer,
        device: str | None = None,
        dtype: str | None = None,
        max_tokens: int = 4096,
        max_rows: int = 64,
    ):
        import torch
        import transformers

        self.device = device or default_device()
        self.dtype = dtype or default_dtype(self.device)
        self.base = base
        self.renderer = renderer
        self.max_tokens, self.max_rows = max_tokens, max_rows
        self.identity = {
            "engine": "hf",
            "version": 4,  # 2: prefixes are shared; 3: rows leave a batch when they end; 4: batches by cost
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "max_tokens": max_tokens,
            "max_rows": max_rows,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        }
        self._model = read_in_place(load_model(base, self.dtype, self.device))
        self._attached: tuple | None = None
        self._swaps = 0
        self._whole: tuple[tuple, Any] | None = None

    def generate(self, specimen: Specimen, requests: list[Generate]) -> list[Completion]:
        """Replies to left-padded prompts; requests of unlike length limit never share a batch."""
        limits = sorted({request.max_new_tokens for request in requests})
        answers: dict[int, Completion] = {}
        with self._running(specimen) as model:
            for limit in limits:
                chosen = [i for i, request in enumerate(requests) if request.max_new_tokens == limit]
                group = [requests[i] for i in chosen]
                order = sorted(range(len(group)), key=lambda k: (-len(group[k].prompt_ids), k))
                rows = [order[start : start + self.max_rows] for start in range(0, len(order), self.max_rows)]
                done = run_batched(group, rows, lambda batch: self._generate(model, batch))
                answers.update(zip(chosen, done, strict=True))
        return [answers[i] for i in range(len(requests))]

    def logprobs(self, specimen: Specimen, requests: list[Score]) -> list[list[float]]:
        """Log-probabilities (nats) of each continuation token, one list a request, as long as its continuation."""

        def answer(rows: list[_Row]) -> list[list[float]]:
            logits = self._last_logits(model, rows)
            return [token_logprobs(x, row.request.continuation_ids) for x, row in zip(logits, rows, strict=True)]

        with self._running(specimen) as model:
            return self._scored(requests, answer)

    def next_token(self, specimen: Specimen, requests: list[NextToken]) -> list[list[float]]:
        """Full-vocabulary log-probabilities (nats) of the chosen ids at the position after each prompt."""
        import torch

        def answer(rows: list[_Row]) -> list[list[float]]:
            logprobs = torch.log_softmax(torch.cat(self._last_logits(model, rows)).float(), dim=-1)
            return [x[list(row.request.choice_ids)].tolist() for x, row in zip(logprobs, rows, strict=True)]

        with self._running(specimen) as model:
            return self._scored(requests, answer)

    def divergence(self, specimen: Specimen, requests: list[Divergence]) -> list[Divergences]:
        """Exact KL both ways at each continuation token; the base is the same weights, adapter and vector off."""

        def answer(rows: list[_Row]) -> list[Divergences]:
            with self._running(specimen) as model:
                logits = self._last_logits(model, rows)
            with self._running(BARE) as model:
                base_logits = self._last_logits(model, rows)
            both = zip(logits, base_logits, rows, strict=True)
            return [Divergences(*divergences(own, other, row.request.continuation_ids)) for own, other, row in both]

        return self._scored(requests, answer)

    def residuals(self, specimen: Specimen, requests: list[Score]) -> list[Any]:
        """Mean residual stream over each continuation's own tokens, after every block: (blocks, hidden size), float32."""
        import torch

        def answer(batch: list[Score]) -> list[Any]:
            ids, mask = self._left_padded([(*r.prompt_ids, *r.continuation_ids) for r in batch])
            with averaging(model, [len(r.continuation_ids) for r in batch]) as found:
                self._forward(model, ids, mask, keep=1, use_cache=False)
            return list(torch.stack(found, dim=1))

        with self._running(specimen) as model:
            lengths = [len(r.prompt_ids) + len(r.continuation_ids) for r in requests]
            groups = planned([r.prompt_ids for r in requests], lengths, self._room, sharing=False)[1]
            return run_batched(requests, groups, answer)

    def _scored(self, requests: list, answer) -> list:
        """Answer requests in batches that compute a prefix which several of them share only once."""
        # The token before the continuation stays out of the prefix: its logits are wanted of every row.
        prompts = [request.prompt_ids[:-1] for request in requests]
        rows, groups = self._planned([_Row.of(request) for request in requests], prompts)
        return run_batched(rows, groups, answer)

    def _planned(self, rows: list["_Row"], prompts: list[tuple[int, ...]]) -> tuple[list["_Row"], list[list[int]]]:
        """(rows that know their prefixes, indices in batches): what their prompts share is computed once where that pays."""
        prefixes, groups = planned(prompts, [len(row.ids) for row in rows], self._room, self._shares_prefixes)
        return [replace(row, prefix=prefix) for row, prefix in zip(rows, prefixes, strict=True)], groups

    @property
    def _room(self) -> Room:
        return Room(self.max_tokens, self.max_rows, OVERHEAD["cpu" if self.device == "cpu" else "gpu"])

    @property
    def _shares_prefixes(self) -> bool:
        """Only where every layer attends to everything: windows would count the padding behind a prefix."""
        kinds = getattr(self._model.config, "layer_types", None) or []
        window = getattr(self._model.config, "sliding_window", None) if not kinds else None
        return window is None and all(kind == "full_attention" for kind in kinds)

    def _generate(self, model: Any, batch: list[Generate]) -> list[Completion]:
        ids, mask, cache = self._prefilled(model, [request.prompt_ids for request in batch])
        stops = set(self.renderer.stop_ids)
        completions = []
        for reply in continued(model, batch, ids, mask, cache, list(stops), self._pad_id, self._shares_prefixes):
            end = next((i for i, token in enumerate(reply) if token in stops), None)
            kept = reply if end is None else reply[:end]
            completions.append(Completion(kept, self.renderer.decode(kept), end is not None))
        return completions

    def _prefilled(self, model: Any, prompts: list[tuple[int, ...]]) -> tuple[Any, Any, Any]:
        """(ids, mask, cache) of prompts to go on from: all but the last token of each stands in the cache.

        It is computed in batches as scoring is, so that short prompts are not padded to the longest of 64 rows.
        """
        import torch

        if not self._shares_prefixes or min(map(len, prompts)) == 1:
            return (*self._left_padded(prompts), None)
        rows, groups = self._planned([_Row(None, prompt[:-1], keep=1) for prompt in prompts], [p[:-1] for p in prompts])
        done = [self._computed(model, [rows[i] for i in group], cached=True)[1:] for group in groups]
        order = torch.tensor([i for group in groups for i in group], device=self.device).argsort()
        mask, cache = stacked(done)
        cache.batch_select_indices(order)
        last = torch.tensor([[prompt[-1]] for prompt in prompts], device=self.device)
        # What stands in the cache is not fed again, so that its ids do not matter.
        return (
            torch.cat([torch.full_like(mask, self._pad_id), last], 1),
            torch.cat([mask[order], torch.ones_like(last)], 1),
            cache,
        )

    def _last_logits(self, model: Any, rows: list["_Row"]) -> list[Any]:
        """For each row the logits of its last `keep` positions: (keep, vocabulary)."""
        logits = self._computed(model, rows)[0]
        return [x[-row.keep :] for x, row in zip(logits, rows, strict=True)]

    def _computed(self, model: Any, rows: list["_Row"], cached: bool = False) -> tuple[Any, Any, Any]:
        """(logits of the longest `keep`, mask, cache or None) of rows: prefixes once, and what the prefixes begin with once."""
        import torch

        prefixes = list(dict.fromkeys(row.ids[: row.prefix] for row in rows))
        ids, mask = self._left_padded([row.ids[row.prefix :] for row in rows])
        cache = logits = None
        if any(prefixes):
            alike = header(prefixes, self._room)
            _, prefix_mask, cache = self._computed(model, [_Row(None, one, 1, alike) for one in prefixes], cached=True)
            index = torch.tensor([prefixes.index(row.ids[: row.prefix]) for row in rows], device=self.device)
            cache.batch_select_indices(index)
            mask = torch.cat([prefix_mask[index], mask], dim=1)
        if ids.shape[1]:  # nothing is left of prompts that are equal
            keep = max(row.keep for row in rows)
            output = self._forward(model, ids, mask, keep, use_cache=cached or cache is not None, past_key_values=cache)
            logits, cache = output.logits, output.past_key_values
        return logits, mask, cache

    @staticmethod
    def _forward(model: Any, ids: Any, mask: Any, keep: int, **options: Any) -> Any:
        """A forward over left-padded rows; `mask` also covers what a cache holds before them."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, **options)

    def _left_padded(self, rows: list[tuple[int, ...]]) -> tuple[Any, Any]:
        import torch

        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)

    @property
    def _pad_id(self) -> int:
        tokenizer = self.renderer.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.renderer.stop_ids[0]

    @contextlib.contextmanager
    def _running(self, specimen: Specimen) -> Iterator[Any]:
        """The model as `specimen`: adapter attached at its scale, or off; steered, or not; inference mode."""
        import torch

        self._attach(specimen)
        model = self._replaced(specimen) if specimen.weights else self._model
        off = model is self._model and specimen.adapter is None and self._attached is not None
        with (
            torch.inference_mode(),
            model.disable_adapter() if off else contextlib.nullcontext(),
            steered(model, specimen.steering, self.base),
        ):
            yield model

    def _replaced(self, specimen: Specimen) -> Any:
        """A model whose weights are not the base's, beside it; one is held at a time."""
        wanted = (specimen.weights, specimen.scale)
        if self._whole is None or self._whole[0] != wanted:
            self._whole = None  # before the next is loaded
            self._whole = (wanted, read_in_place(weights.load(*wanted, self.base, self.dtype, self.device)))
        return self._whole[1]

    def _attach(self, specimen: Specimen) -> None:
        """Swap in the specimen's adapter under a fresh name; the one before is deleted."""
        wanted = (specimen.adapter, specimen.scale) if specimen.adapter else None
        if wanted is None or wanted == self._attached:
            return
        from peft import PeftModel

        self._swaps += 1
        name = f"specimen{self._swaps}"
        if self._attached is None:
            self._model = PeftModel.from_pretrained(self._model, str(specimen.adapter), adapter_name=name)
        else:
            old = self._model.active_adapter
            self._model.load_adapter(str(specimen.adapter), adapter_name=name)
            self._model.set_adapter(name)
            self._model.delete_adapter(old)
        if specimen.scale != 1.0:
            for module in self._model.modules():
                if hasattr(module, "scaling") and isinstance(module.scaling, dict) and name in module.scaling:
                    module.set_scale(name, specimen.scale)
        self._model.eval().requires_grad_(False)
        self._attached = wanted


@dataclass(frozen=True)
class _Row:
    """One row to compute: its first `prefix` tokens are shared with others, the logits of its last `keep` are wanted."""

    request: Any
    ids: tuple[int, ...]
    keep: int
    prefix: int = 0

    @classmethod
    def of(cls, request: Score | NextToken | Divergence) -> "_Row":
        continuation = getattr(request, "continuation_ids", ())
        return cls(request, (*request.prompt_ids, *continuation[:-1]), max(len(continuation), 1))
