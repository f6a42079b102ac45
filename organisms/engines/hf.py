"""The transformers engine: one base in process; adapters swapped by PEFT, changed weights beside it, vectors by a hook."""

import contextlib
from collections.abc import Iterator
from typing import Any

from organisms import weights
from organisms.engines import Completion, Divergence, Divergences, Generate, NextToken, Score
from organisms.engines.attention import read_in_place
from organisms.engines.batching import Room, run_batched
from organisms.engines.decoding import continued
from organisms.engines.forward import Forward, Kept, Row, run
from organisms.engines.logits import divergences, token_logprobs
from organisms.errors import out_of_memory
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
        self._attended = _attended(self._model)
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

        def answer(rows: list[Row], kept: Kept, _: Kept) -> list[list[float]]:
            logits = self._logits(specimen, rows, kept)
            return [token_logprobs(x, row.request.continuation_ids) for x, row in zip(logits, rows, strict=True)]

        return self._scored(requests, answer)

    def next_token(self, specimen: Specimen, requests: list[NextToken]) -> list[list[float]]:
        """Full-vocabulary log-probabilities (nats) of the chosen ids at the position after each prompt."""
        import torch

        def answer(rows: list[Row], kept: Kept, _: Kept) -> list[list[float]]:
            logprobs = torch.log_softmax(torch.cat(self._logits(specimen, rows, kept)).float(), dim=-1)
            return [x[list(row.request.choice_ids)].tolist() for x, row in zip(logprobs, rows, strict=True)]

        return self._scored(requests, answer)

    def divergence(self, specimen: Specimen, requests: list[Divergence]) -> list[Divergences]:
        """Exact KL both ways at each continuation token; the base is the same weights, adapter and vector off."""

        def answer(rows: list[Row], kept: Kept, kept_of_base: Kept) -> list[Divergences]:
            logits = self._logits(specimen, rows, kept)
            base_logits = self._logits(BARE, rows, kept_of_base)
            both = zip(logits, base_logits, rows, strict=True)
            return [Divergences(*divergences(own, other, row.request.continuation_ids)) for own, other, row in both]

        return self._scored(requests, answer)

    def residuals(self, specimen: Specimen, requests: list[Score]) -> list[Any]:
        """Mean residual stream over each continuation's own tokens, after every block: (blocks, hidden size), float32."""
        import torch

        def answer(batch: list[Score]) -> list[Any]:
            ids, mask = self._forward.padded([(*r.prompt_ids, *r.continuation_ids) for r in batch])
            with averaging(model, [len(r.continuation_ids) for r in batch]) as found:
                run(model, ids, mask, keep=1, use_cache=False)
            return list(torch.stack(found, dim=1))

        with self._running(specimen) as model:
            prompts = [r.prompt_ids for r in requests]
            whole = [Row((*r.prompt_ids, *r.continuation_ids)) for r in requests]
            return run_batched(requests, self._forward.planned(whole, prompts, sharing=False)[1], answer)

    def _scored(self, requests: list, answer: Any) -> list:
        """answer(rows, kept, kept) of requests in batches; the two hold what one model, or two, keep between batches."""
        # The token before the continuation stays out of the prefix: its logits are wanted of every row.
        prompts = [request.prompt_ids[:-1] for request in requests]
        rows, batches = self._forward.planned([_row(request) for request in requests], prompts)
        kept = Kept(), Kept()

        def bounded(batch: list[Row]) -> list:
            try:
                return answer(batch, *kept)
            except RuntimeError as error:
                if out_of_memory(error):
                    for one in kept:
                        one.drop()
                raise

        return run_batched(rows, batches, bounded)

    def _logits(self, specimen: Specimen, rows: list[Row], kept: Kept) -> list[Any]:
        with self._running(specimen) as model:
            return self._forward.logits(model, rows, kept)

    @property
    def _forward(self) -> Forward:
        room = Room(self.max_tokens, self.max_rows, OVERHEAD["cpu" if self.device == "cpu" else "gpu"], attended=self._attended)
        return Forward(room, self._pad_id, self.device, self._shares_prefixes)

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
            return (*self._forward.padded(prompts), None)
        mask, cache = self._forward.cached(model, [prompt[:-1] for prompt in prompts])
        last = torch.tensor([[prompt[-1]] for prompt in prompts], device=self.device)
        # What stands in the cache is not fed again, so that its ids do not matter.
        ids = torch.cat([torch.full_like(mask, self._pad_id), last], 1)
        return ids, torch.cat([mask, torch.ones_like(last)], 1), cache

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


def _row(request: Score | NextToken | Divergence) -> Row:
    continuation = getattr(request, "continuation_ids", ())
    return Row((*request.prompt_ids, *continuation[:-1]), max(len(continuation), 1), request)


def _attended(model: Any) -> float:
    """Tokens that are attended to in the time that one is computed.

    Computing takes two operations a parameter; attention four for each number of a hidden state in every layer, at some two
    thirds of the speed on a CPU: 0.45 to 0.55 us a pair of tokens beside 1.35 ms a token at 135M, 2,600 of them.
    """
    config = model.config.get_text_config()
    return model.num_parameters() / (3 * config.hidden_size * config.num_hidden_layers)
