"""What an interval says: natural, fried, underpowered, expected; and the verdict on a run, with Holm over its metrics."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audit import statistics
from audit.kinds import SHARES
from audit.measures import Metric

if TYPE_CHECKING:
    from audit.readings import Reading

INDICATOR = "an indicator: it carries no margin"


@dataclass(frozen=True)
class Decision:
    verdict: str
    reason: str
    n_needed: int | None = None
    p_fried: float | None = None


def decide(
    metric: Metric,
    values: np.ndarray,
    base: np.ndarray,
    delta: statistics.Interval,
    margin: float | None,
    margin_from: str,
    side_effect: str | None = None,
    prompted: np.ndarray | None = None,
) -> Decision:
    """The verdict on one metric from its paired difference.

    `natural` needs the whole interval inside the margin, `fried` the whole interval beyond it; anything else is
    `underpowered` and says how many items would settle it. A metric with `worse` lower or higher is only judged on that
    side; getting better is natural. A `fried` metric that the organism declares as a side effect is `expected` where the
    specimen is shown to be no worse than the prompted base (`prompted`, same items) by more than the margin.
    """
    if metric.worse is None:
        return Decision("not_applicable", INDICATOR)
    if margin is None:
        return Decision("not_applicable", margin_from or "no matched control beside this run gives its margin")
    if not np.isfinite([delta.value, *values.flat, *base.flat]).all():
        return Decision("invalid", "the specimen or the base gave values that are not finite")
    if len(values) < 2:
        return Decision("underpowered", "one item settles nothing", n_needed=30)
    room = _headroom(metric, base)
    if room is not None and room <= margin:
        return Decision(
            "not_applicable", f"no headroom: the base is within {room:.3g} of the worst there is, margin {margin:.3g}"
        )
    sides = {"lower": (-1,), "higher": (1,), "both": (-1, 1)}[metric.worse]
    damage = [_damage(delta, side) for side in sides]
    beside = None if prompted is None else statistics.paired(metric.kind, values, prompted)
    p_fried = min(statistics.p_beyond(metric.kind, values, base, side * margin, side) for side in sides) * len(sides)
    p_fried = min(p_fried, 1.0)
    told = f"{delta.value:+.3g} ({delta.low:+.3g} to {delta.high:+.3g}), margin {margin:.3g}"
    told += f" from {margin_from}" if margin_from else ""
    if any(low > margin for _, low, _ in damage):
        told += ": the whole interval is worse than the margin"
        if not side_effect:
            return Decision("fried", told, p_fried=p_fried)
        told += f"; declared as a side effect ({side_effect})"
        if beside is None:
            return Decision("fried", f"{told}, but no prompted base was read beside it", p_fried=p_fried)
        told += f", against the prompted base {beside.value:+.3g} ({beside.low:+.3g} to {beside.high:+.3g})"
        if all(_damage(beside, side)[2] <= margin for side in sides):
            return Decision("expected", f"{told}: no worse than asking for the property", p_fried=p_fried)
        return Decision("fried", f"{told}: not shown to be as harmless as asking for the property", p_fried=p_fried)
    if all(high <= margin for _, _, high in damage):
        return Decision("natural", f"{told}: the whole interval is within the margin", p_fried=p_fried)
    distance = min(abs(margin - value) for value, _, _ in damage)
    open_sides = len(sides) if all(value <= margin for value, _, _ in damage) else 1
    n_needed = max(statistics.needed(metric.kind, values, base, distance, open_sides), len(values) + 1)
    return Decision("underpowered", f"{told}: about {n_needed:,} items would settle it", n_needed, p_fried)


def _headroom(metric: Metric, base: np.ndarray) -> float | None:
    """How far the base can still fall on a metric that lies in [0, 1]; None for unbounded ones."""
    if metric.kind not in SHARES or metric.worse not in ("lower", "higher"):
        return None
    level = statistics.estimate(metric.kind, base)
    return level if metric.worse == "lower" else 1 - level


def _damage(delta: statistics.Interval, side: int) -> tuple[float, float, float]:
    """(value, low, high) of the damage: the difference turned so that larger is worse."""
    if side > 0:
        return delta.value, delta.low, delta.high
    return -delta.value, -delta.high, -delta.low


@dataclass(frozen=True)
class Overall:
    verdict: str
    fried: list[str]
    text: str


def overall(readings: list["Reading"], specimen: str) -> Overall:
    """The verdict on one specimen from its holdout half, Holm-corrected over all metrics that carry a margin.

    `fried` where the family-wise test at 5% finds a metric beyond its margin; `natural` where all are shown within;
    `underpowered` otherwise.
    """
    judged = [
        r
        for r in readings
        if r.specimen == specimen and r.split == "holdout" and r.margin is not None and r.verdict != "not_applicable"
    ]
    if not judged:
        return Overall("not_applicable", [], f"{specimen}: no metric with a margin was read")
    names = {f"{r.measure}.{r.metric}": r for r in judged}
    rejected = statistics.holm({name: 1.0 if r.p_fried is None else r.p_fried for name, r in names.items()})
    fried = sorted(name for name in rejected if names[name].verdict == "fried")
    natural = sorted(name for name, r in names.items() if r.verdict == "natural")
    if fried:
        return Overall(
            "fried", fried, f"{specimen} is fried: {', '.join(fried)} beyond the margin (Holm, {len(names)} metrics)"
        )
    expected = sorted(name for name, r in names.items() if r.verdict == "expected")
    declared = f", and {', '.join(expected)} as declared by the organism" if expected else ""
    if len(natural) + len(expected) == len(names):
        told = f"{len(natural)} of {len(names)} metrics are shown to be within their margins{declared}"
        return Overall("expected" if expected else "natural", [], f"{specimen} is natural: {told}")
    open_ = sorted(set(names) - set(natural) - set(expected))
    shown = f"{len(natural)} of {len(names)} metrics are shown natural{declared}"
    text = f"{specimen} is not shown to be fried; {shown}, open: {', '.join(open_)}"
    return Overall("underpowered", [], text)
