"""readings.jsonl, the truth: one line a number, with its interval, sample size and verdict."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from audit import statistics
from audit.lines import fault
from audit.measures import Metric, Sample, half
from audit.verdicts import decide
from organisms.errors import UserError
from organisms.files import append_jsonl, is_a, read_numbered_jsonl

READINGS = "readings.jsonl"
SCHEMA = 1
BASE_REASON = "the base is what others are held against"


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


@dataclass(frozen=True)
class Terms:
    """What the readings of one measure are judged by.

    margins: metric -> (margin, where it comes from) where it is not the metric's own. expected: metric -> the organism's
    reason why it may fall. prompted: the prompted base's samples, where it was read. guards: split -> metric -> (verdict,
    reason) of readings that must not be believed, as the measure says.
    """

    margins: dict[str, tuple[float | None, str]] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    prompted: list[Sample] | None = None
    guards: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)


def build(
    subject: Subject,
    measure: str,
    metrics: tuple[Metric, ...],
    samples: list[Sample],
    base: list[Sample] | None,
    origin: Origin,
    terms: Terms,
) -> list[Reading]:
    """Readings of one measure: each metric on the monitor and the holdout half, paired by item with the base's samples.

    base: None when the subject is the base itself.
    """
    return [
        _reading(subject, measure, metric, split, samples, base, origin, terms)
        for metric in metrics
        for split in ("monitor", "holdout")
    ]


def aligned(metric: Metric, split: str | None, *specimens: list[Sample]) -> tuple[str, list[np.ndarray]]:
    """A metric's scores on the units that all specimens hold: (kind, an array a specimen in the same order of units).

    split: `monitor`, `holdout`, or None for both. Arrays are (n,), or (n, 2) numerators and denominators. Where a cluster holds
    several items it is one unit with the sums of their scores, so a rate becomes a share and a mean a ratio.
    """
    scores = [{s.item: s.scores[metric.name] for s in samples if metric.name in s.scores} for samples in specimens]
    unit = {s.item: s.unit for s in specimens[0]}
    items = sorted(item for item in set.intersection(*map(set, scores)) if split is None or half(unit[item]) == split)
    units = sorted({unit[item] for item in items})
    if len(units) == len(items) or metric.kind in ("pairs", "constant"):
        return metric.kind, [np.array([values[item] for item in items], float) for values in scores]
    place = np.array([units.index(unit[item]) for item in items])
    sums = []
    for values in scores:
        rows = [v if isinstance(v, list) else [v, 1.0] for v in (values[item] for item in items)]
        sums.append(np.zeros((len(units), 2)))
        np.add.at(sums[-1], place, np.array(rows, float))
    return {"rate": "share", "mean": "ratio"}.get(metric.kind, metric.kind), sums


def _reading(subject, measure, metric, split, samples, base, origin, terms: Terms) -> Reading:
    kind, (values, *others) = aligned(metric, split, samples, *([] if base is None else [base]))
    margin, margin_from = terms.margins.get(metric.name, (metric.margin, ""))
    nothing = dict.fromkeys(("value", "ci_low", "ci_high", "delta", "delta_low", "delta_high", "mde"))
    blank = Reading(
        schema=SCHEMA,
        **dataclasses.asdict(subject),
        **nothing,
        measure=measure,
        metric=metric.name,
        n=len(values),
        margin=margin,
        split=split,
        verdict="not_applicable",
        **dataclasses.asdict(origin),
    )
    guarded = terms.guards.get(split, {}).get(metric.name)
    if not len(values):
        verdict, reason = guarded or ("not_applicable", "no item of this half concerns it")
        return dataclasses.replace(blank, verdict=verdict, reason=reason)
    metric = dataclasses.replace(metric, kind=kind)
    if not np.isfinite(values).all():
        return dataclasses.replace(blank, verdict="invalid", reason="the specimen gave values that are not finite")
    level = _transform(metric, statistics.single(metric.kind, values))
    shown = dataclasses.replace(
        blank, value=_finite(level.value), ci_low=_finite(level.low), ci_high=_finite(level.high), reason=BASE_REASON
    )
    if others:
        prompted = None
        if terms.prompted:
            _, (same, _, asked) = aligned(metric, split, samples, base, terms.prompted)
            prompted = asked if np.array_equal(same, values) else None  # it must have been asked all the same items
        shown = _paired(shown, metric, values, others[0], margin_from, terms.expected.get(metric.name), prompted)
    if guarded:
        verdict, reason = guarded
        return dataclasses.replace(shown, verdict=verdict, reason=reason, n_needed=None, p_fried=None)
    return shown


def _paired(shown: Reading, metric: Metric, values, base, margin_from: str, side_effect: str | None, prompted) -> Reading:
    """The reading with its difference from the base and the verdict on it."""
    delta, mde = _difference(metric, values, base)
    decided = decide(metric, values, base, delta, shown.margin, margin_from, side_effect, prompted)
    p_differs = None
    if metric.kind == "rate":
        p_differs = statistics.mcnemar(int(((values == 1) & (base == 0)).sum()), int(((values == 0) & (base == 1)).sum()))
    return dataclasses.replace(
        shown,
        delta=_finite(delta.value),
        delta_low=_finite(delta.low),
        delta_high=_finite(delta.high),
        mde=_finite(mde),
        verdict=decided.verdict,
        reason=decided.reason,
        n_needed=decided.n_needed,
        p_fried=_finite(decided.p_fried),
        p_differs=_finite(p_differs),
    )


def _difference(metric: Metric, values: np.ndarray, base: np.ndarray) -> tuple[statistics.Interval, float]:
    delta = statistics.paired(metric.kind, values, base)
    mde = statistics.minimum_detectable(metric.kind, values, base)
    if metric.transform != "exp":
        return delta, mde
    # exp(a) - exp(b) at the base's level, from the interval of a - b.
    level = _exp(statistics.estimate(metric.kind, base))
    moved = statistics.Interval(*(level * _expm1(x) for x in (delta.value, delta.low, delta.high)))
    return moved, level * _expm1(mde)


def _transform(metric: Metric, interval: statistics.Interval) -> statistics.Interval:
    if metric.transform != "exp":
        return interval
    return statistics.Interval(_exp(interval.value), _exp(interval.low), _exp(interval.high))


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # beyond a float, and shown as no number


def _expm1(nats: float) -> float:
    return math.expm1(nats) if nats < 700 else math.inf


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
