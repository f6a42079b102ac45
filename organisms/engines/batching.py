"""Length-sorted, token-budgeted batches, and the halving of one that does not fit into memory."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from organisms.errors import UserError, out_of_memory

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def batches(lengths: Sequence[int], max_tokens: int, max_rows: int) -> list[list[int]]:
    """Indices grouped longest first, so that rows x longest row stays within `max_tokens` (one row always fits)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    for index in order:
        group = groups[-1] if groups else None
        if group and len(group) < max_rows and (len(group) + 1) * lengths[group[0]] <= max_tokens:
            group.append(index)
        else:
            groups.append([index])
    return groups


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
