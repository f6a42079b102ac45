"""Styles of one organism side by side at matched severity: which is more natural, on what evidence, what cannot be told.

Holdout half only. The family of Holm's correction is one pair of styles: all its metrics at all its levels of severity; the
error is not controlled over pairs. Damage is the difference from the base turned so that more is worse; a metric that is
worse on both sides counts its distance from the base.
"""

import zlib
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from audit import compare_matched as matched
from audit import compare_runs
from audit.compare_runs import Grown
from audit.config import MEASURES
from audit.frontier import Chart, Line, Point
from audit.measures import Metric, Sample, half, metrics
from audit.paired import aligned
from audit.samples import read_samples
from audit.statistics import Interval, holm
from organisms.errors import UserError

AXES = ("steps", "scale")


@dataclass(frozen=True)
class Style:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Grown]


@dataclass(frozen=True)
class Panel:
    """One metric over all runs: (run name, specimen) -> (1 + resamples,) differences from the base, damage or severity.

    ends: (run name, axis) -> why its doses are not compared any further, where they are not.
    """

    measure: str
    metric: Metric
    n: int
    margin: float | None
    drawn: dict[tuple[str, str], np.ndarray]
    doses: dict[tuple[str, str], list[str]]
    ends: dict[tuple[str, str], str]

    @property
    def name(self) -> str:
        return f"{self.measure}.{self.metric.name}"

    def curve(self, run: Grown, axis: str, doses: list[str] | None = None) -> np.ndarray:
        """(1 + resamples, doses): the named doses, or all."""
        chosen = self.doses[run.path.name, axis] if doses is None else doses
        return np.stack([self.drawn[run.path.name, dose] for dose in chosen], axis=1)

    def along(self, other: "Panel", run: Grown, axis: str) -> list[str]:
        """The doses of a run at which this metric and another were both read."""
        known = other.doses[run.path.name, axis]
        return [dose for dose in self.doses[run.path.name, axis] if dose in known]


@dataclass(frozen=True)
class Test:
    """One metric of a pair at one severity. verdict: `first` or `second` more natural, `alike` within the margin, or `open`."""

    level: float
    panel: Panel
    first: Interval | None = None
    second: Interval | None = None
    found: matched.Matched | None = None
    verdict: str = "open"
    reason: str = ""
    n_needed: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two styles; reason: why there is nothing to test, empty where there is."""

    first: Style
    second: Style
    tests: list[Test]
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """reach: style -> the severity it surely reaches. unit: of severity. unread: headline -> why it is not compared at all.

    beside: names of the runs that gave marks only (controls, prompted bases, styles without training).
    """

    axis: str
    severity: Panel
    unit: str
    styles: list[Style]
    reach: dict[str, float]
    pairs: list[Pair]
    charts: list[Chart]
    unread: dict[str, str]
    beside: frozenset[str]


def compare(runs: list[Grown], axis: str, severity: str, without: list[str], levels: list[float] | None) -> Comparison:
    """Everything there is to say about runs that `compare_runs.refuse` has let pass. levels: severities; None: chosen."""
    styles = _styles([run for run in runs if run.trained and run.style != "control" and run.doses(axis)])
    if not styles:
        wanted = "checkpoints" if axis == "steps" else 'adapter scales; add some with `make dose run=DIR scales="0.5 1.5"`'
        raise UserError(f"none of {', '.join(run.path.name for run in runs)} is a trained style with {wanted}")
    marks = _marks(runs)
    (strength,) = _panels(runs, marks, "severity", [metrics("severity")[severity]])
    if strength.n < 2:
        raise UserError(
            f"these runs share {strength.n} holdout items of {strength.name}, so severity cannot be matched; read more"
        )
    panels = []
    for name in (name for name in MEASURES if name not in without):
        panels += _panels(runs, marks, name, [metric for metric in metrics(name).values() if metric.worse])
    unread = {p.name: next(iter(p.ends.values()), "too few items") for p in panels if p.n < 2 and p.metric.headline}
    panels = [panel for panel in panels if panel.n > 1]
    reach = {style.label: _reach(style, strength, axis) for style in styles}
    pairs = [_pair(first, second, strength, panels, axis, reach, levels) for first, second in combinations(styles, 2)]
    charts = [_chart(styles, marks, strength, panel, axis) for panel in panels if panel.metric.headline]
    beside = frozenset(run.path.resolve().name for run, _ in marks.values())
    return Comparison(axis, strength, strength.metric.unit or "share of replies", styles, reach, pairs, charts, unread, beside)


def _styles(runs: list[Grown]) -> list[Style]:
    """Replicates together; named by the style, by the recipe where two share a style, by the run where two share a recipe."""
    groups: dict[tuple, list[Grown]] = {}
    for run in runs:
        groups.setdefault((run.recipe, run.config), []).append(run)
    names = {key: (group[0].style, group[0].recipe, group[0].path.name) for key, group in groups.items()}
    labels = {}
    for key, (style, recipe, name) in names.items():
        alike = [other for other in names.values() if other[0] == style]
        labels[key] = style if len(alike) == 1 else recipe if sum(o[1] == recipe for o in alike) == 1 else name
    return [Style(labels[key], sorted(group, key=lambda run: run.seed)) for key, group in groups.items()]


def _marks(runs: list[Grown]) -> dict[str, tuple[Grown, str]]:
    """label -> (run, specimen) of what stands beside the styles: the prompted base, styles without training, the controls."""
    marks = {}
    for run in runs:
        if any(key[0] == "prompted" for key in run.readings):
            marks.setdefault("prompted base", (run, "prompted"))
        if run.style == "control":
            others = [r for r in runs if r.style != "control" and r.manifest.get("stages") == run.manifest.get("stages")]
            label = "control" if others else "control of other stages"
            for dose in run.doses("steps")[-1:]:
                marks.setdefault(label, (run, dose.specimen))
        elif not run.trained:
            marks |= {dose.specimen: (run, dose.specimen) for dose in run.doses("steps")}
    return marks


def _panels(runs: list[Grown], marks: dict, measure: str, wanted: list[Metric]) -> list[Panel]:
    """The differences of all doses and marks that can be read, on the items that all of them have, in the same resamples."""
    names = {run.path.name: [dose.specimen for axis in AXES for dose in run.doses(axis)] for run in runs}
    keys = {(run.path.name, name) for run in runs for name in ("base", *names[run.path.name])}
    keys |= {(run.path.name, name) for run, name in marks.values()}
    runs_by_name = {run.path.name: run for run in runs}
    samples = {(name, specimen): read_samples(runs_by_name[name].path, measure, specimen) for name, specimen in keys}
    return [_panel(runs, marks, measure, metric, samples) for metric in wanted]


def _panel(runs: list[Grown], marks: dict, measure: str, metric: Metric, samples: dict) -> Panel:
    doses, ends = {}, {}
    for run, axis in product(runs, AXES):
        names = [dose.specimen for dose in run.doses(axis)]
        read = [name for name in names if run.reading(name, measure, metric.name)]
        names = read or names  # dear measures are read at fewer checkpoints
        stop = next((k for k, name in enumerate(names) if compare_runs.unread(run, name, measure, metric)), len(names))
        doses[run.path.name, axis] = names[:stop]
        if stop < len(names):
            ends[run.path.name, axis] = f"{names[stop]}: {compare_runs.unread(run, names[stop], measure, metric)}"
    keys = [(run, name) for (run, _), names in doses.items() for name in names]
    asked = [_items(samples[key], metric) for key in keys if key[0] in {run.path.name for run in runs if run.trained}]
    keys += [(run.path.name, name) for run, name in marks.values() if not compare_runs.unread(run, name, measure, metric)]
    # What stands beside the styles must not cost them items: it is left out where it was not asked all that they were.
    shared = set.intersection(*asked) if asked else set()
    keys = [key for key in dict.fromkeys(keys) if shared <= _items(samples[key], metric)]
    bases = list(dict.fromkeys((run, "base") for run, _ in keys))
    if keys:
        kind, values = aligned(metric, "holdout", *(samples[key] for key in keys + bases))
        metric = replace(metric, kind=kind)
    else:
        values = []
    n, drawn = len(values[0]) if values else 0, {}
    if n > 1:
        weights = matched.weights(n, zlib.crc32(f"{measure}.{metric.name}".encode()))
        base = dict(zip(bases, values[len(keys) :], strict=True))
        for key, own in zip(keys, values, strict=False):
            moved = matched.differences(metric.kind, own, base[key[0], "base"], weights)
            drawn[key] = {"lower": -moved, "both": abs(moved)}.get(metric.worse, moved)
    margins = [r.margin for run in runs for r in run.readings.values() if (r.measure, r.metric) == (measure, metric.name)]
    return Panel(measure, metric, n, min((m for m in margins if m is not None), default=None), drawn, doses, ends)


def _items(samples: list[Sample], metric: Metric) -> set[str]:
    return {s.item for s in samples if metric.name in s.scores and half(s.unit) == "holdout"}


def _reach(style: Style, severity: Panel, axis: str) -> float:
    curves = [severity.curve(run, axis) for run in style.runs if severity.doses[run.path.name, axis]]
    return min(map(matched.reach, curves)) if len(curves) == len(style.runs) else 0.0


def most(style: Style, severity: Panel, axis: str) -> float | None:
    """The greatest severity at any dose, the mean over seeds; None where there is none."""
    curves = [severity.curve(run, axis) for run in style.runs if severity.doses[run.path.name, axis]]
    return float(np.mean([curve[0].max() for curve in curves])) if curves else None


def _pair(first, second, severity: Panel, panels: list[Panel], axis: str, reach, levels: list[float] | None) -> Pair:
    top = min(reach[first.label], reach[second.label])
    short = [style for style in (first, second) if reach[style.label] <= (min(levels) if levels else 0)]
    if short:
        level = f"{min(levels):+.3g}" if levels else "any severity above the base's"
        told = (
            f"{s.label} never surely reaches {level} (its most is {_shown(most(s, severity, axis))}, n {severity.n})"
            for s in short
        )
        return Pair(first, second, [], "no common severity: " + "; ".join(told))
    tests = [_test(first, second, severity, panel, axis, level) for level in (levels or [top / 2, top]) for panel in panels]
    return Pair(first, second, _judged(tests, severity.n))


def _shown(value: float | None) -> str:
    return "not read" if value is None else f"{value:+.3g}"


def _test(first: Style, second: Style, severity: Panel, panel: Panel, axis: str, level: float) -> Test:
    sides: list[list[np.ndarray]] = []
    for style in (first, second):
        side = []
        for run in style.runs:
            key = (run.path.name, axis)
            doses = panel.along(severity, run, axis)
            dose = severity.curve(run, axis, doses) if doses else None
            if dose is None or matched.reach(dose) < level:
                if key in panel.ends:
                    return Test(level, panel, reason=f"{style.label} cannot be read as far as there: {panel.ends[key]}")
                where = f" where {panel.measure} was read" if len(doses) < len(severity.doses[key]) else ""
                return Test(level, panel, reason=f"{style.label} never surely reaches {level:+.3g}{where}")
            side.append(matched.at(dose, panel.curve(run, axis, doses), level))
        sides.append(side)
    kind, sizes = panel.metric.kind, (panel.n, severity.n)
    one, other = (matched.difference(side, [], kind, *sizes).interval for side in sides)
    return Test(level, panel, one, other, matched.difference(*sides, kind, *sizes))


def _judged(tests: list[Test], n_severity: int) -> list[Test]:
    """With Holm over all of them; what was not tested keeps its reason."""
    p_values = {str(k): test.found.p for k, test in enumerate(tests) if test.found}
    rejected = holm(p_values)
    return [
        _verdict(test, n_severity, str(k) in rejected, len(p_values)) if test.found else test for k, test in enumerate(tests)
    ]


def _verdict(test: Test, n_severity: int, rejected: bool, tests: int) -> Test:
    interval, margin = test.found.interval, test.panel.margin
    if rejected and not interval.low <= 0 <= interval.high:
        return replace(test, verdict="first" if interval.value < 0 else "second")
    if margin is not None and -margin <= interval.low and interval.high <= margin:
        return replace(test, verdict="alike", reason=f"no further apart than the margin {margin:.3g}")
    items = matched.needed(test.found, test.panel.metric.kind, test.panel.n, n_severity, margin, tests)
    if items is None:
        more = "the seeds differ by more than the styles: add seeds" if test.found.seeds else "no difference was seen"
        return replace(test, reason=more)
    return replace(test, reason=f"n {items:,} would settle it", n_needed=items)


def _chart(styles: list[Style], marks: dict, severity: Panel, panel: Panel, axis: str) -> Chart:
    """A line a style (the mean of its seeds at each dose) along the compared axis, a faint one along the other."""

    def point(name: str, keys: list[tuple[str, str]]) -> Point:
        sides = [([p.drawn[key] for key in keys], [], p.metric.kind, p.n, p.n) for p in (severity, panel)]
        shown = [matched.difference(*side).interval for side in sides]
        return Point(name, *shown)

    lines = []
    for index, style in enumerate(styles):
        for along in ("steps", "scale"):
            doses = [panel.along(severity, run, along) for run in style.runs]
            points = [
                point(names[0], [(run.path.name, name) for run, name in zip(style.runs, names, strict=True)])
                for names in zip(*doses, strict=False)
            ]
            if points:
                lines.append(Line(style.label, index, points, faint=along != axis))
    keys = {label: (run.path.name, name) for label, (run, name) in marks.items()}
    beside = [point(label, [key]) for label, key in keys.items() if key in severity.drawn and key in panel.drawn]
    unit = severity.metric.unit or "share of replies"
    return Chart(panel.measure, panel.metric, unit, panel.n, panel.margin, lines, beside)
