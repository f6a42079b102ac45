"""One naturalness curve as an inline SVG: differences from the base over steps, with intervals, margin and hover texts."""

from collections.abc import Callable
from html import escape

from audit.curves import along, damage_band
from audit.measures import Metric
from audit.readings import Reading
from audit.table import difference, number
from audit.verdicts import INDICATOR

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 12, 30
CIRCLE = "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
SHAPES = {
    "natural": CIRCLE,
    "fried": "M-4.5 -4.5h9v9h-9z",
    "underpowered": "M0 -6l6 6l-6 6l-6 -6z",
    "expected": "M0 -5.5l5.5 9.5h-11z",
    "invalid": "M-5 -3l2 -2l3 3l3 -3l2 2l-3 3l3 3l-2 2l-3 -3l-3 3l-2 -2l3 -3z",
}


def plot(measure: str, metric: Metric, points: list[Reading], monitor: list[Reading]) -> str:
    """SVG markup. `points` is the holdout half (drawn strong, with intervals), `monitor` the other half (drawn faint)."""
    place, unit = along(points)
    steps = [place(r) for r in points]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    margin = points[-1].margin if metric.worse else None
    values = [v for r in points + monitor for v in (r.delta, r.delta_low, r.delta_high) if v is not None] + [0.0]
    if margin is not None:
        values += [s * 1.25 * margin for s in {"lower": (-1,), "higher": (1,), "both": (-1, 1)}[metric.worse]]
    y_low, y_high = min(values), max(values)
    pad = 0.08 * (y_high - y_low or 1)
    y_low, y_high = y_low - pad, y_high + pad

    def x(r: Reading) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place(r) - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - min(max(value, y_low), y_high)) / (y_high - y_low)

    parts = []
    for start, end in damage_band(metric, margin):
        top, height = y(end), max(y(start) - y(end), 0)
        parts.append(f'<rect class="beyond" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{height:.1f}"/>')
    for tick in ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:+.3g}</text>')
    parts.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    for r in _labelled(points, x):
        parts.append(f'<text class="tick" x="{x(r):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{_short(place(r))}</text>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">{unit}</text>')
    parts.append(_line(monitor, x, y, "monitor"))
    parts.append(_line(points, x, y, "curve"))
    for r in points:
        if r.delta_low is not None and r.delta_high is not None:
            parts.append(
                f'<line class="interval {r.verdict}" x1="{x(r):.1f}" x2="{x(r):.1f}" '
                f'y1="{y(r.delta_low):.1f}" y2="{y(r.delta_high):.1f}"/>'
            )
    parts += [_mark(r.verdict, x(r), y(r.delta), told(r)) for r in points]
    last = f"at {points[-1].specimen} {difference(points[-1])}, {points[-1].verdict.replace('_', ' ')}"
    label = f"{measure} {metric.name.replace('_', ' ')}: difference from the base at {len(points)} checkpoints; {last}"
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def told(r: Reading) -> str:
    """What a mark says when it is pointed at, a line each: where, difference with interval, value with interval, n, verdict."""
    value = number(r.value)
    if r.ci_low is not None and r.ci_high is not None:
        value += f" ({number(r.ci_low)} to {number(r.ci_high)})"
    verdict = "indicator, no margin" if r.reason == INDICATOR else r.verdict.replace("_", " ")
    verdict += f": n {r.n_needed:,} would settle it" if r.n_needed else ""
    tokens = f", {r.tokens_seen:,} tokens" if r.tokens_seen else ""
    return "\n".join(
        (f"{r.stage} step {r.step}{tokens}", f"{difference(r)} against the base", f"value {value}", f"n {r.n}", verdict)
    )


def thinned(points: list[Reading], most: int = 40) -> list[Reading]:
    """At most so many points, evenly chosen, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def _labelled(points: list[Reading], x: Callable[[Reading], float], apart: float = 34) -> list[Reading]:
    """Checkpoints whose place is written on the axis: as many as do not run into one another, the last one always."""
    chosen = [points[-1]]
    for r in points[-2::-1]:
        if x(chosen[-1]) - x(r) >= apart:
            chosen.append(r)
    return chosen


def _short(value: int) -> str:
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}k" if value >= 1e4 else str(value)


def _line(readings: list[Reading], x, y, kind: str) -> str:
    points = " ".join(f"{x(r):.1f},{y(r.delta):.1f}" for r in readings if r.delta is not None)
    return f'<polyline class="{kind}" points="{points}"/>' if points else ""


def _mark(verdict: str, cx: float, cy: float, text: str) -> str:
    return mark(verdict, f"<title>{escape(text)}</title>", f'transform="translate({cx:.1f} {cy:.1f})"')


def mark(verdict: str, inside: str = "", place: str = "") -> str:
    """A mark whose shape says the verdict too, for those who cannot tell the colours apart."""
    return f'<path class="mark {verdict}" d="{SHAPES.get(verdict, CIRCLE)}" {place}>{inside}</path>'


def key(verdict: str) -> str:
    """A verdict's mark alone, for legends and tables."""
    return f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{mark(verdict)}</svg>'


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers between low and high, about `wanted` of them."""
    span = high - low
    step = 10.0 ** len(str(int(span))) if span >= 1 else 1.0
    while span / step < wanted:
        for factor in (0.5, 0.4, 0.5):
            step *= factor
            if span / step >= wanted:
                break
    first = int(low / step) - 1
    return [round(i * step, 10) for i in range(first, first + 40) if low <= i * step <= high]
