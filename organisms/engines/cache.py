"""Keys and values of several rows: put together from parts, chosen from those of others, and growing in place."""

from copy import copy
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

    found = copy(parts[0][1])
    same = zip(*(held.layers for _, held in parts), strict=True)
    found.layers = [
        _growing_layer()(joined([one.keys for one in layers]), joined([one.values for one in layers]), width) for layers in same
    ]
    return torch.cat([pad(mask, (gap, 0)) for (mask, _), gap in zip(parts, gaps, strict=True)]), found


def chosen(held: Any, index: Any, more: int = 0) -> Any:
    """A cache of its own with these rows of another, which may be asked for several times, and room for `more` tokens."""

    def roomy(values: Any) -> Any:
        rows, heads, length, size = len(index), *values.shape[1:]
        room = values.new_empty((rows, heads, length + more, size))
        room[:, :, :length] = values[index]
        return room

    found = copy(held)
    found.layers = [_growing_layer()(roomy(layer.keys), roomy(layer.values), layer.keys.shape[2]) for layer in held.layers]
    return found


@cache
def _growing_layer() -> type:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A layer's keys and values (rows, heads, tokens, size), each the first `length` tokens of a tensor with room for more.

        transformers' own layer copies all of them for every token; this one when its room is used up, and when they have
        been replaced, as by rows that leave the batch.
        """

        def __init__(self, keys: Any, values: Any, length: int):
            super().__init__()
            self.lazy_initialization(keys, values)
            self._rooms: dict[str, tuple[Any, Any]] = {}
            self.keys, self.values = self._begun("keys", keys, length), self._begun("values", values, length)

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            self.keys, self.values = self._added("keys", key_states), self._added("values", value_states)
            return self.keys, self.values

        def _added(self, name: str, new: Any) -> Any:
            held = getattr(self, name)
            length, end = held.shape[2], held.shape[2] + new.shape[2]
            room, view = self._rooms[name]
            if view is not held or room.shape[2] < end:
                room = held.new_empty((*held.shape[:2], end + ROOM, held.shape[3]))
                room[:, :, :length] = held
            room[:, :, length:end] = new
            return self._begun(name, room, end)

        def _begun(self, name: str, room: Any, length: int) -> Any:
            self._rooms[name] = (room, room[:, :, :length])
            return self._rooms[name][1]

    return GrowingLayer
