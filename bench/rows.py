"""A row of the table, and why there may be none."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


class Unequal(Exception):
    """Ours and the peer's results differ, so that their times say nothing. The text says by how much."""


class Skipped(Exception):
    """A row that this machine cannot measure; the text says what is missing."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ours, peer: what was timed, with its medians; result: a ratio of times, a share or an exponent, with its spread.
    aim: what the result is meant to reach, None where nothing was promised; met: whether it did.
    checked: what of both sides was held equal. numbers: everything measured, seconds unless named otherwise.
    """

    name: str
    ours: str
    peer: str
    result: str
    aim: str | None = None
    met: bool | None = None
    checked: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    state: Literal["measured", "failed", "skipped"] = "measured"

    def cells(self) -> tuple[str, ...]:
        aim = "" if self.aim is None else f"{self.aim}, {'met' if self.met else 'missed'}"
        return self.name, self.ours, self.peer, self.result, aim, self.checked

    def plain(self) -> dict[str, Any]:
        return asdict(self)


HEAD = ("row", "ours", "peer or limit", "result", "aim", "held equal")


def markdown(rows: Sequence[Row]) -> str:
    """The table as it stands in docs/bench.md."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
