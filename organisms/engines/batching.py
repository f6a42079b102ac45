"""What a batch may hold and costs, and the halving of one that does not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from organisms.errors import UserError, out_of_memory

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Room:
    """What one forward may hold, and what it costs beside its tokens.

    tokens: rows x longest row; rows: most rows; cached: tokens whose keys and values are kept beside it; overhead: tokens that
    could be computed in the time that any forward takes (its Python, its kernels' starts, reading the weights), so that
    a few forwards more are weighed against padding; attended: tokens that are attended to, padding too, in the time that one
    is computed.
    """

    tokens: int
    rows: int
    overhead: int = 0
    cached: int = 16384
    attended: float = inf

    def holds(self, rows: int, longest: int) -> bool:
        """One row always fits."""
        return rows == 1 or (rows <= self.rows and rows * longest <= self.tokens)

    def cost(self, rows: int, longest: int, cached: int = 0) -> float:
        """In tokens, of rows that stand behind so many cached ones."""
        return self.overhead + rows * longest * (1 + (cached + longest) / self.attended) if rows * longest else 0


def cheapest(count: int, growing: Callable[[int], Iterator[tuple[int, float]]]) -> tuple[list[range], float]:
    """0..count cut into runs whose costs sum to the least, and that sum. growing(start): (end, cost) of the runs from there."""
    least, before = [0.0] + [inf] * count, [0] * (count + 1)
    for start in range(count):
        for end, cost in growing(start):
            if least[start] + cost < least[end]:
                least[end], before[end] = least[start] + cost, start
    runs, end = [], count
    while end:
        runs.append(range(before[end], end))
        end = before[end]
    return runs[::-1], least[count]


def run_batched(
    requests: Sequence[Request],
    groups: list[list[int]],
    answer: Callable[[list[Request]], list[Answer]],
) -> list[Answer]:
    """Answer requests in batches given as indices. Answers come in the requests' own order; out of memory halves a batch."""
    answers: list[Answer | None] = [None] * len(requests)
    for group in groups:
        for index, value in zip(group, _halving([requests[i] for i in group], answer), strict=True):
            answers[index] = value
    return answers


def _halving(requests: list[Request], answer: Callable[[list[Request]], list[Answer]]) -> list[Answer]:
    import torch

    try:
        return answer(requests)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        if len(requests) == 1:
            raise UserError(
                "out of memory with a single request: what else holds this device's memory? While a stage trains, the trainer "
                "does: lower its batch_size or max_length; otherwise take a smaller base or a device with more memory"
            ) from None
    torch.cuda.empty_cache()
    middle = len(requests) // 2
    return _halving(requests[:middle], answer) + _halving(requests[middle:], answer)
