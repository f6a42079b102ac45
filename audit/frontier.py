"""The naturalness-severity frontier: severity on x, a measure's damage on y, a line a style. One small plot a headline metric.

Low and to the right is better. Colours are Okabe and Ito's (colour-blind safe, jfly.uni-koeln.de/color), and each style has a
mark of its own as well.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from audit.measures import Metric
from audit.statistics import Interval
from audit.svg import ticks
from audit.table import number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
SHAPES = ("o", "s", "D", "^", "v", "P")  # in matplotlib's letters
REFERENCE = "#7a8496"
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36


@dataclass(frozen=True)
class Point:
    """A dose or a mark. severity, damage: differences from the base, damage turned so that more is worse."""

    name: str
    severity: Interval
    damage: Interval


@dataclass(frozen=True)
class Line:
    """The doses of a style, least first; the base is its beginning. faint: the dose axis that was not compared."""

    label: str
    index: int
    points: list[Point]
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """One metric: a line a style, and marks for what is no dose (base, prompted, control) by label."""

    measure: str
    metric: Metric
    unit: str
    n: int
    margin: float | None
    lines: list[Line]
    marks: list[Point]

    @property
    def title(self) -> str:
        return f"{self.measure}: {self.metric.name.replace('_', ' ')}"

    @property
    def damage(self) -> str:
        return {"lower": "fall", "higher": "rise", "both": "change", None: "change"}[self.metric.worse]

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of x and y: all points and their intervals, the base, and the margin where it is near."""
        points = [p for line in self.lines for p in line.points] + self.marks
        xs = [0.0] + [v for p in points for v in (p.severity.low, p.severity.high)]
        ys = [0.0] + [v for p in points for v in (p.damage.low, p.damage.high)]
        if self.margin is not None:
            ys.append(1.25 * self.margin)
        return tuple((min(v) - 0.06 * (max(v) - min(v) or 1), max(v) + 0.06 * (max(v) - min(v) or 1)) for v in (xs, ys))


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def shape(index: int) -> str:
    return SHAPES[index % len(SHAPES)]


def plot(chart: Chart) -> str:
    """Inline SVG of one chart; the numbers of a point stand in its hover text."""
    (x_low, x_high), (y_low, y_high) = chart.ranges()

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - value) / (y_high - y_low)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    if chart.margin is not None:
        parts.append(f'<rect class="beyond" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{y(chart.margin) - TOP:.1f}"/>')
    for tick in ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:+.3g}</text>')
    for tick in ticks(x_low, x_high):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{tick:+.3g}</text>')
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{TOP}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    told = f"severity ({escape(chart.unit)})"
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{told}</text>')
    for line in chart.lines:
        tone, dash = colour(line.index), ' stroke-dasharray="4 4" opacity=".6"' if line.faint else ""
        path = " ".join(
            f"{x(s):.1f},{y(d):.1f}" for s, d in [(0, 0)] + [(p.severity.value, p.damage.value) for p in line.points]
        )
        parts.append(f'<polyline class="style" points="{path}" stroke="{tone}"{dash}/>')
        for point in line.points:
            parts += [] if line.faint else _bars(point, x, y, tone)
            parts.append(
                _mark(shape(line.index), x(point.severity.value), y(point.damage.value), tone, _told(line.label, point))
            )
    for point in chart.marks:
        parts += _bars(point, x, y, REFERENCE)
        parts.append(
            _mark(reference(point.name), x(point.severity.value), y(point.damage.value), REFERENCE, _told(point.name, point))
        )
    parts.append(_mark("*", x(0), y(0), REFERENCE, "base"))
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(_label(chart))}">'
        f"{''.join(parts)}</svg>"
    )


def reference(name: str) -> str:
    """The shape of a mark that is no style's."""
    return {"base": "*", "control": "x"}.get(name.split()[0], "+")


def legend(styles: list[str], charts: list[Chart]) -> list[tuple[str, str]]:
    """(label, SVG of its mark) of the styles, in the order of their colours, the base, and what stands beside them."""
    marks = dict.fromkeys(point.name for chart in charts for point in chart.marks)
    found = [(label, key(shape(k), colour(k))) for k, label in enumerate(styles)]
    return found + [(label, key(reference(label), REFERENCE)) for label in ("base", *marks)]


def key(letter: str, tone: str) -> str:
    """A mark alone, for the legend."""
    return f'<svg class="key" viewBox="0 0 14 14">{_mark(letter, 7, 7, tone, "")}</svg>'


def _bars(point: Point, x, y, tone: str) -> list[str]:
    s, d = point.severity, point.damage
    ends = [(s.value, s.value, d.low, d.high), (s.low, s.high, d.value, d.value)]
    return [
        f'<line class="bar" stroke="{tone}" x1="{x(x1):.1f}" x2="{x(x2):.1f}" y1="{y(y1):.1f}" y2="{y(y2):.1f}"/>'
        for x1, x2, y1, y2 in ends
    ]


def _told(label: str, point: Point) -> str:
    name = "" if label == point.name else f" at {point.name}"
    s, d = (
        f"{number(i.value, True)} ({number(i.low, True)} to {number(i.high, True)})" for i in (point.severity, point.damage)
    )
    return f"{label}{name}\nseverity {s}\ndamage {d}"


def _label(chart: Chart) -> str:
    told = [_told(line.label, point) for line in chart.lines for point in line.points if not line.faint]
    told += [_told(p.name, p) for p in chart.marks]
    return f"{chart.title}, damage over severity. " + "; ".join(text.replace("\n", ", ") for text in told)


def _mark(letter: str, cx: float, cy: float, tone: str, told: str) -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    strokes = {"x": "M-4 -4l8 8M-4 4l8 -8", "+": "M-5 0h10M0 -5v10", "*": "M-5 0h10M-2.5 -4.3l5 8.6M-2.5 4.3l5 -8.6"}
    filled = {
        "s": "M-4 -4h8v8h-8z", "D": "M0 -5.4l5.4 5.4l-5.4 5.4l-5.4 -5.4z", "^": "M0 -5l5 9h-10z", "v": "M0 5l5 -9h-10z",
        "P": "M-1.8 -5h3.6v3.2h3.2v3.6h-3.2v3.2h-3.6v-3.2h-3.2v-3.6h3.2z",
    }  # fmt: skip
    place = f'transform="translate({cx:.1f} {cy:.1f})"'
    if letter in strokes:
        return f'<path class="mark" d="{strokes[letter]}" fill="none" stroke="{tone}" stroke-width="2" {place}>{title}</path>'
    if letter == "o":
        return f'<circle class="mark" r="4.4" fill="{tone}" {place}>{title}</circle>'
    return f'<path class="mark" d="{filled[letter]}" fill="{tone}" {place}>{title}</path>'


def draw(charts: list[Chart], target: Path, title: str) -> None:
    """Write frontier.png: the charts as small multiples with one legend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.3 * columns, 3.4 * rows), squeeze=False, layout="constrained")
    handles = {}
    for axis, chart in zip(axes.flat, charts, strict=False):
        axis.axhline(0, color="#888", linewidth=0.8)
        axis.axvline(0, color="#888", linewidth=0.8)
        for line in chart.lines:
            xs, ys = ([0.0] + [getattr(p, part).value for p in line.points] for part in ("severity", "damage"))
            style = {"linestyle": "--", "alpha": 0.5} if line.faint else {}
            axis.plot(xs, ys, color=colour(line.index), linewidth=1.5, **style)
            for point in line.points:
                handle = _errorbar(axis, point, colour(line.index), shape(line.index), not line.faint)
                handles.setdefault(line.label, handle)
        for point in chart.marks:
            handles.setdefault(point.name, _errorbar(axis, point, REFERENCE, reference(point.name), True))
        (base,) = axis.plot([0], [0], marker="*", color=REFERENCE, linestyle="", markersize=9)
        handles.setdefault("base", base)
        (x_low, x_high), (y_low, y_high) = chart.ranges()
        axis.set_xlim(x_low, x_high)
        axis.set_ylim(y_low, y_high)
        if chart.margin is not None:
            axis.axhspan(chart.margin, y_high, color="#c0392b", alpha=0.08, linewidth=0)
        axis.set_title(f"{chart.title} (n {chart.n})", fontsize=10, loc="left")
        axis.set_xlabel(f"severity ({chart.unit})", fontsize=8)
        axis.set_ylabel(f"{chart.damage} {f'({chart.metric.unit})' if chart.metric.unit else ''}".strip(), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(charts) :]:
        axis.set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    temporary = target.with_name(f".{target.name}")
    figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    temporary.replace(target)


def _errorbar(axis, point: Point, tone: str, letter: str, bars: bool):
    import matplotlib.colors

    s, d = point.severity, point.damage
    errors = {"xerr": [[s.value - s.low], [s.high - s.value]], "yerr": [[d.value - d.low], [d.high - d.value]]} if bars else {}
    light = (*matplotlib.colors.to_rgb(tone), 0.45)
    return axis.errorbar(
        [s.value], [d.value], color=tone, ecolor=light, marker=letter, elinewidth=1.1, markersize=6, linestyle="", **errors
    )
