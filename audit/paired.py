"""From samples to readings: each metric on each half of the items, paired by item with the base, and judged."""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from audit import statistics
from audit.measures import Metric, Sample, half
from audit.readings import SCHEMA, Origin, Reading, Subject
from audit.verdicts import decide

BASE_REASON = "the base is what others are held against"


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
