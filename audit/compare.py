"""Styles of one organism side by side at matched severity: which is more natural, on what evidence, what cannot be told.

Holdout half only. The family of Holm's correction is one pair of styles: all its metrics at all its levels of severity; the
error is not controlled over pairs. Damage is the difference from the base turned so that more is worse; a metric that is
worse on both sides counts its distance from the base, to the side that was read.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from audit import compare_matched as matched
from audit.compare_panels import Panel, panels_of
from audit.compare_runs import Grown
from audit.config import MEASURES
from audit.frontier import Chart, Line, Point
from audit.measures import metrics
from audit.statistics import Interval, holm
from organisms.errors import UserError


@dataclass(frozen=True)
class Style:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Grown]


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

    short: style -> what is said of one that does not surely reach the least severity at which anything could be compared.
    beside: names of the runs that gave marks only (controls, prompted bases, styles without training).
    """

    axis: str
    severity: Panel
    unit: str
    styles: list[Style]
    reach: dict[str, float]
    short: dict[str, str]
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
    (strength,) = panels_of(runs, marks, "severity", [metrics("severity")[severity]])
    if strength.n < 2:
        raise UserError(
            f"these runs share {strength.n} holdout items of {strength.name}, so severity cannot be matched; read more"
        )
    panels = []
    for name in (name for name in MEASURES if name not in without):
        panels += panels_of(runs, marks, name, [metric for metric in metrics(name).values() if metric.worse])
    unread = {p.name: next(iter(p.ends.values()), "too few items") for p in panels if p.n < 2 and p.metric.headline}
    panels = [panel for panel in panels if panel.n > 1]
    reach = {style.label: _reach(style, strength, axis) for style in styles}
    short = {style.label: _short(style, strength, axis, levels) for style in styles if reach[style.label] <= min(levels or [0])}
    pairs = [_pair(first, second, strength, panels, axis, reach, short, levels) for first, second in combinations(styles, 2)]
    charts = [_chart(styles, marks, strength, panel, axis) for panel in panels if panel.metric.headline]
    beside = frozenset(run.path.resolve().name for run, _ in marks.values())
    return Comparison(
        axis, strength, strength.metric.unit or "share of replies", styles, reach, short, pairs, charts, unread, beside
    )


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


def _reach(style: Style, severity: Panel, axis: str) -> float:
    curves = [severity.curve(run, axis) for run in style.runs if severity.doses[run.path.name, axis]]
    return min(map(matched.reach, curves)) if len(curves) == len(style.runs) else 0.0


def most(style: Style, severity: Panel, axis: str) -> float | None:
    """The greatest severity at any dose, the mean over seeds; None where there is none."""
    curves = [severity.curve(run, axis) for run in style.runs if severity.doses[run.path.name, axis]]
    return float(np.mean([curve[0].max() for curve in curves])) if curves else None


def _pair(first, second, severity: Panel, panels: list[Panel], axis: str, reach, short, levels: list[float] | None) -> Pair:
    told = [f"{label} {short[label]}" for label in (first.label, second.label) if label in short]
    if told:
        return Pair(first, second, [], f"no common severity: {'; '.join(told)}")
    top = min(reach[first.label], reach[second.label])
    tests = [_test(first, second, severity, panel, axis, level) for level in (levels or [top / 2, top]) for panel in panels]
    return Pair(first, second, _judged(tests, severity.n))


def _short(style: Style, severity: Panel, axis: str, levels: list[float] | None) -> str:
    level = f"{min(levels):+.3g}" if levels else "any severity above the base's"
    return f"never surely reaches {level} (its most is {_shown(most(style, severity, axis))}, n {severity.n})"


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
