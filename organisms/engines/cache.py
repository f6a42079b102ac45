"""Keys and values of a batch that generates: put together from parts, and growing in place."""

from functools import cache
from typing import Any

ROOM = 32  # tokens that room is made for at once


def stacked(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """One (mask, cache) of several, their rows in that order, each padded on the left to the longest."""
    import torch
    from torch.nn.functional import pad

    width = max(mask.shape[1] for mask, _ in parts)
    gaps = [width - mask.shape[1] for mask, _ in parts]

    def joined(tensors: list[Any]) -> Any:
        return torch.cat([pad(values, (0, 0, gap, 0)) for values, gap in zip(tensors, gaps, strict=True)])

    found = parts[0][1]
    for i in range(len(found.layers)):
        layers = [held.layers[i] for _, held in parts]
        found.layers[i] = _growing_layer()(joined([one.keys for one in layers]), joined([one.values for one in layers]))
    return torch.cat([pad(mask, (gap, 0)) for (mask, _), gap in zip(parts, gaps, strict=True)]), found


@cache
def _growing_layer() -> type:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A layer's keys and values (rows, heads, tokens, size), each the beginning of a tensor that has room for more.

        transformers' own layer copies all of them for every token; this one when its room is used up, and when they have
        been replaced, as by rows that leave the batch.
        """

        def __init__(self, keys: Any, values: Any):
            super().__init__()
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            self._rooms: dict[str, tuple[Any, Any]] = {}

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            self.keys, self.values = self._added("keys", key_states), self._added("values", value_states)
            return self.keys, self.values

        def _added(self, name: str, new: Any) -> Any:
            held = getattr(self, name)
            length, end = held.shape[2], held.shape[2] + new.shape[2]
            room, view = self._rooms.get(name, (held, None))
            if view is not held or room.shape[2] < end:
                room = held.new_empty((*held.shape[:2], end + ROOM, held.shape[3]))
                room[:, :, :length] = held
            room[:, :, length:end] = new
            self._rooms[name] = (room, room[:, :, :end])
            return self._rooms[name][1]

    return GrowingLayer
