"""Rows of token ids through a model: what several of them begin with is computed once, the rests in batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from organisms.engines.batching import Room
from organisms.engines.cache import chosen, stacked
from organisms.engines.prefixes import Ids, planned


@dataclass(frozen=True)
class Row:
    """One row to compute; of its last `keep` tokens the logits are wanted.

    prefix: its first tokens, which are taken from a cache; block: all prefixes that are computed together with that one.
    """

    ids: Ids
    keep: int = 1
    request: Any = None
    prefix: Ids = ()
    block: tuple[Ids, ...] = ()

    @property
    def rest(self) -> Ids:
        return self.ids[len(self.prefix) :]


@dataclass
class Kept:
    """What a model has computed of a block's prefixes, from one batch to the next: (mask, cache), a row each.

    whole: whether there is memory for all of a block; without it each batch computes what it needs itself.
    """

    prefixes: tuple[Ids, ...] = ()
    found: tuple[Any, Any] | None = None
    whole: bool = True

    def drop(self) -> None:
        self.prefixes, self.found, self.whole = (), None, False


@dataclass(frozen=True)
class Forward:
    """How rows are computed. sharing: whether the model's attention lets prefixes stand in a cache with padding behind them."""

    room: Room
    pad: int
    device: str
    sharing: bool

    def planned(self, rows: Sequence[Row], prompts: Sequence[Ids], sharing: bool = True) -> tuple[list[Row], list[list[int]]]:
        """(rows that know their prefixes, indices in batches). prompts: as much of each row as may be taken from a cache."""
        plan = planned(prompts, [len(row.ids) for row in rows], self.room, sharing and self.sharing)
        found = list(rows)
        for block in plan.blocks:
            members = [i for batch in block for i in batch]
            prefixes = tuple(dict.fromkeys(prompts[i][: plan.prefixes[i]] for i in members))
            for i in members:
                found[i] = replace(rows[i], prefix=prompts[i][: plan.prefixes[i]], block=prefixes)
        return found, plan.batches

    def logits(self, model: Any, rows: Sequence[Row], kept: Kept) -> list[Any]:
        """For each row of a batch the logits of its last `keep` positions: (keep, vocabulary)."""
        found = self._computed(model, rows, kept)[0]
        return [x[-row.keep :] for x, row in zip(found, rows, strict=True)]

    def cached(self, model: Any, prompts: Sequence[Ids]) -> tuple[Any, Any]:
        """(mask, cache) of whole prompts, in their order and padded on the left."""
        import torch

        rows, batches = self.planned([Row(prompt) for prompt in prompts], prompts)
        kept = Kept()
        parts = [self._computed(model, [rows[i] for i in batch], kept, cached=True)[1:] for batch in batches]
        order = torch.tensor([i for batch in batches for i in batch], device=self.device).argsort()
        mask, cache = stacked(parts) if len(parts) > 1 else parts[0]
        return mask[order], chosen(cache, order)

    def _computed(self, model: Any, rows: Sequence[Row], kept: Kept, cached: bool = False) -> tuple[Any, Any, Any]:
        """(logits of the longest `keep`, mask, cache or None) of a batch."""
        import torch

        ids, mask = self.padded([row.rest for row in rows])
        cache = logits = None
        if any(row.prefix for row in rows):
            before, found = self._prefixes(model, rows, kept)
            place = {prefix: k for k, prefix in enumerate(kept.prefixes)}
            index = torch.tensor([place[row.prefix] for row in rows], device=self.device)
            mask, cache = torch.cat([before[index], mask], dim=1), chosen(found, index, more=ids.shape[1])
        if ids.shape[1]:  # nothing is left of prompts that are equal
            keep = max(row.keep for row in rows)
            output = run(model, ids, mask, keep, use_cache=cached or cache is not None, past_key_values=cache)
            logits, cache = output.logits, output.past_key_values
        return logits, mask, cache

    def _prefixes(self, model: Any, rows: Sequence[Row], kept: Kept) -> tuple[Any, Any]:
        """(mask, cache) of `kept.prefixes`, among them all of the rows'."""
        needed = tuple(dict.fromkeys(row.prefix for row in rows))
        if kept.found is None or not set(needed) <= set(kept.prefixes):
            kept.found = None  # before the next are computed
            kept.prefixes = rows[0].block if kept.whole else needed
            kept.found = self.cached(model, kept.prefixes)
        return kept.found

    def padded(self, rows: Sequence[Ids]) -> tuple[Any, Any]:
        """(ids, mask), both (rows, longest), padded on the left."""
        import torch

        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, width - len(row) :] = torch.tensor(row)
            mask[index, width - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)


def run(model: Any, ids: Any, mask: Any, keep: int, **options: Any) -> Any:
    """A forward over left-padded rows, logits at the last `keep` tokens; `mask` also covers what a cache holds before them."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, **options)
