"""Times two sides in turn: a warm-up of each, then A B A B ..., a round a block of work."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.rows import Row

Block = TypeVar("Block")


@dataclass(frozen=True)
class Rounds:
    """Seconds and answers of both sides, one of each a round."""

    ours: list[float]
    peer: list[float]
    our_answers: list[Any]
    peer_answers: list[Any]

    @property
    def ratios(self) -> list[float]:
        """The peer's seconds over ours, by round."""
        return [b / a for a, b in zip(self.ours, self.peer, strict=True)]

    def numbers(self) -> dict[str, Any]:
        return {"ours": self.ours, "peer": self.peer, "ratios": self.ratios}


def alternate(
    ours: Callable[[Block], Any], peer: Callable[[Block], Any], blocks: Sequence[Block], warm_up: Block | None
) -> Rounds:
    """Both sides do every block, ours first. warm_up: done once by each, off the clock; None: each comes warm.

    Blocks may be the same work again, or parts of one that would take too long three times.
    """
    if warm_up is not None:
        ours(warm_up), peer(warm_up)
    rounds = Rounds([], [], [], [])
    for block in blocks:
        for side, seconds, answers in ((ours, rounds.ours, rounds.our_answers), (peer, rounds.peer, rounds.peer_answers)):
            took, answer = timed(side, block)
            seconds.append(took)
            answers.append(answer)
    return rounds


def timed(work: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    """(seconds, what it returned); garbage is collected before, and what a GPU still has to do is waited for."""
    gc.collect()
    _finish()
    started = time.perf_counter()
    answer = work(*given)
    _finish()
    return time.perf_counter() - started, answer


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compared(name: str, ours: str, peer: str, rounds: Rounds, checked: str, aim: float | None = None) -> Row:
    """A row of two sides: medians of the rounds' seconds, the median of their ratios, and least and greatest ratio."""
    ratio = statistics.median(rounds.ratios)
    return Row(
        name,
        f"{ours}: {seconds(rounds.ours)}",
        f"{peer}: {seconds(rounds.peer)}",
        f"{ratio:.2f}x ({spread(rounds.ratios, 2)})",
        None if aim is None else f">= {aim:g}x",
        None if aim is None else ratio >= aim,
        checked,
        rounds.numbers(),
    )


def share(name: str, ours: str, limit: str, rounds: Rounds, checked: str, aim: float | None = None) -> Row:
    """A row of work against the least time it could take (the peer's side of the rounds)."""
    found = statistics.median(rounds.ratios)
    return Row(
        name,
        ours,
        limit,
        f"{found:.0%} ({spread([100 * r for r in rounds.ratios], 0)})",
        None if aim is None else f">= {aim:.0%}",
        None if aim is None else found >= aim,
        checked,
        rounds.numbers(),
    )


def seconds(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    digits = 3 if middle < 1 else 2 if middle < 10 else 1
    return f"{middle:.{digits}f} s"


def spread(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
