"""readings.jsonl, the truth: one line a number, with its interval, sample size and verdict."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.lines import fault
from organisms.errors import UserError
from organisms.files import append_jsonl, is_a, read_numbered_jsonl

READINGS = "readings.jsonl"
SCHEMA = 1


@dataclass(frozen=True)
class Subject:
    """Whose reading it is: the columns that every line of one specimen shares."""

    run: str
    recipe: str
    organism: str
    style: str
    base: str
    specimen: str
    stage: str | None = None
    step: int = 0
    tokens_seen: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Reading:
    """One line. Values are in the metric's unit; `delta` is specimen minus base on the same items; intervals are 95%.

    mde: the smallest true difference that 80% of such audits would find. margin: the damage that is tolerated.
    n_needed: items at which an underpowered verdict would be settled. p_fried: one-sided p of 'no worse than the margin';
    p_differs: McNemar's exact two-sided p of 'no difference from the base', rates only.
    """

    schema: int
    run: str
    recipe: str
    organism: str
    style: str
    base: str
    specimen: str
    stage: str | None
    step: int
    tokens_seen: int
    scale: float
    measure: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n: int
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    mde: float | None
    margin: float | None
    verdict: str
    split: str
    suite: str
    engine: str
    data: str
    audit_digest: str
    seconds: float
    samples: str
    reason: str = ""
    n_needed: int | None = None
    p_fried: float | None = None
    p_differs: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return (self.specimen, self.measure, self.metric, self.split)

    @property
    def on_curve(self) -> bool:
        """Whether it is a point of the run's curve: not the base, what stands beside it, or an adapter at another scale.

        Steered specimens have their coefficient as scale and are points; a checkpoint at another scale is named with an @.
        """
        return bool(self.stage) and "@" not in self.specimen

    def row(self) -> dict:
        """The line as a dict; keys that this version does not know are kept as they were read."""
        values = dataclasses.asdict(self)
        return {**values.pop("extra"), **values}


@dataclass(frozen=True)
class Origin:
    """How the samples were made: the columns that every line of one measure shares."""

    suite: str
    engine: str
    data: str
    audit_digest: str
    seconds: float
    samples: str


def read(run: Path) -> list[Reading]:
    """The readings of a run directory, the latest line of each (specimen, measure, metric, split), in file order.

    Raises UserError on a line of an unknown schema or without a required key.
    """
    path = run / READINGS
    if not path.is_file():
        return []
    latest: dict[tuple, Reading] = {}
    for number, row in read_numbered_jsonl(path):
        reading = parse(row, f"{path} line {number}")
        latest.pop(reading.key, None)
        latest[reading.key] = reading
    return list(latest.values())


def parse(row: dict, place: str) -> Reading:
    if not is_a(row.get("schema"), int) or row["schema"] != SCHEMA:
        raise UserError(
            f"{place} has schema {row.get('schema')!r}, this version reads {SCHEMA}; read it with the version that wrote it"
        )
    known = {f.name for f in dataclasses.fields(Reading)} - {"extra"}
    try:
        reading = Reading(
            **{k: v for k, v in row.items() if k in known}, extra={k: v for k, v in row.items() if k not in known}
        )
    except TypeError as error:
        raise UserError(f"{place} is not a reading: {str(error).removeprefix('Reading.__init__() ')}") from None
    if wrong := fault(row):
        raise UserError(f"{place} is not a reading: {wrong}; mend or remove that line")
    return reading


def append(run: Path, readings: list[Reading]) -> None:
    append_jsonl(run / READINGS, [reading.row() for reading in readings])
