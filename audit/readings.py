"""readings.jsonl, the truth: one line a number, with its interval, sample size and verdict."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audit import statistics
from audit.measures import Metric, Sample, half
from audit.verdicts import decide
from organisms.errors import UserError
from organisms.files import append_jsonl, read_numbered_jsonl

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
    n_needed: items at which an underpowered verdict would be settled. p_fried: one-sided p of 'no worse than the margin'.
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
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return (self.specimen, self.measure, self.metric, self.split)

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


def build(
    subject: Subject,
    measure: str,
    metrics: tuple[Metric, ...],
    samples: list[Sample],
    base: list[Sample] | None,
    origin: Origin,
    margins: dict[str, tuple[float | None, str]],
    expected: dict[str, str],
) -> list[Reading]:
    """Readings of one measure: each metric on the monitor and the holdout half, paired by item with the base's samples.

    base: None when the subject is the base itself. margins: metric -> (margin, where it comes from) where it is not the
    metric's own. expected: metric -> the organism's reason why it may fall.
    """
    readings = []
    for metric in metrics:
        for split in ("monitor", "holdout"):
            own = {s.item: s.scores[metric.name] for s in samples if metric.name in s.scores and half(s.item) == split}
            against = {s.item: s.scores[metric.name] for s in base or [] if metric.name in s.scores}
            readings.append(
                _reading(subject, measure, metric, split, own, against if base is not None else None, origin, margins, expected)
            )
    return readings


def _reading(subject, measure, metric, split, own, against, origin, margins, expected) -> Reading:
    items = sorted(own) if against is None else sorted(own.keys() & against.keys())
    margin, margin_from = margins.get(metric.name, (metric.margin, ""))
    common = dict(
        schema=SCHEMA,
        **dataclasses.asdict(subject),
        measure=measure,
        metric=metric.name,
        n=len(items),
        split=split,
        **dataclasses.asdict(origin),
    )
    nothing = dict.fromkeys(("value", "ci_low", "ci_high", "delta", "delta_low", "delta_high", "mde"))
    if not items:
        return Reading(**common, **nothing, margin=margin, verdict="not_applicable", reason="no item of this half concerns it")
    values = np.array([own[item] for item in items], float)
    if not np.isfinite(values).all():
        reason = "the specimen gave values that are not finite"
        return Reading(**common, **nothing, margin=margin, verdict="invalid", reason=reason)
    level = _transform(metric, statistics.single(metric.kind, values))
    shown = dict(value=_finite(level.value), ci_low=_finite(level.low), ci_high=_finite(level.high))
    if against is None:
        rest = {**nothing, **shown}
        return Reading(
            **common, **rest, margin=margin, verdict="not_applicable", reason="the base is what others are held against"
        )
    base_values = np.array([against[item] for item in items], float)
    delta, mde = _difference(metric, values, base_values)
    decided = decide(metric, values, base_values, delta, margin, margin_from, expected.get(metric.name))
    return Reading(
        **common,
        **shown,
        delta=_finite(delta.value),
        delta_low=_finite(delta.low),
        delta_high=_finite(delta.high),
        mde=_finite(mde),
        margin=margin,
        verdict=decided.verdict,
        reason=decided.reason,
        n_needed=decided.n_needed,
        p_fried=_finite(decided.p_fried),
    )


def _difference(metric: Metric, values: np.ndarray, base: np.ndarray) -> tuple[statistics.Interval, float]:
    delta = statistics.paired(metric.kind, values, base)
    mde = statistics.minimum_detectable(metric.kind, values, base)
    if metric.transform != "exp":
        return delta, mde
    # exp(a) - exp(b) at the base's level, from the interval of a - b.
    level = math.exp(statistics.estimate(metric.kind, base))
    moved = statistics.Interval(*(level * math.expm1(x) for x in (delta.value, delta.low, delta.high)))
    return moved, level * math.expm1(mde)


def _transform(metric: Metric, interval: statistics.Interval) -> statistics.Interval:
    if metric.transform != "exp":
        return interval
    return statistics.Interval(math.exp(interval.value), math.exp(interval.low), math.exp(interval.high))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def not_applicable(subject: Subject, measure: str, metrics: tuple[Metric, ...], origin: Origin, reason: str) -> list[Reading]:
    """Lines that say why a measure has nothing to say about a specimen."""
    nothing = dict.fromkeys(("value", "ci_low", "ci_high", "delta", "delta_low", "delta_high", "mde", "margin"))
    return [
        Reading(
            schema=SCHEMA,
            **dataclasses.asdict(subject),
            measure=measure,
            metric=metric.name,
            n=0,
            **nothing,
            verdict="not_applicable",
            split=split,
            **dataclasses.asdict(origin),
            reason=reason,
        )
        for metric in metrics
        for split in ("monitor", "holdout")
    ]


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
    if row.get("schema") != SCHEMA:
        raise UserError(
            f"{place} has schema {row.get('schema')!r}, this version reads {SCHEMA}; read it with the version that wrote it"
        )
    known = {f.name for f in dataclasses.fields(Reading)} - {"extra"}
    try:
        return Reading(**{k: v for k, v in row.items() if k in known}, extra={k: v for k, v in row.items() if k not in known})
    except TypeError as error:
        raise UserError(f"{place} is not a reading: {str(error).removeprefix('Reading.__init__() ')}") from None


def append(run: Path, readings: list[Reading]) -> None:
    append_jsonl(run / READINGS, [reading.row() for reading in readings])
