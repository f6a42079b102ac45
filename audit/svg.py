"""One naturalness curve as an inline SVG: differences from the base over steps, with intervals, margin and hover texts."""

from html import escape

from audit.curves import damage_band
from audit.measures import Metric
from audit.readings import Reading
from audit.table import difference, number

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 30


def plot(metric: Metric, points: list[Reading], monitor: list[Reading]) -> str:
    """SVG markup. `points` is the holdout half (drawn strong, with intervals), `monitor` the other half (drawn faint)."""
    steps = [r.step for r in points]
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    margin = points[-1].margin if metric.worse else None
    values = [v for r in points + monitor for v in (r.delta, r.delta_low, r.delta_high) if v is not None] + [0.0]
    if margin is not None:
        values += [s * 1.25 * margin for s in {"lower": (-1,), "higher": (1,), "both": (-1, 1)}[metric.worse]]
    y_low, y_high = min(values), max(values)
    pad = 0.08 * (y_high - y_low or 1)
    y_low, y_high = y_low - pad, y_high + pad

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - x_low) / (x_high - x_low)

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
    for step in steps:
        parts.append(f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{step}</text>')
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">step</text>')
    parts.append(_line(monitor, x, y, "monitor"))
    parts.append(_line(points, x, y, "curve"))
    for r in points:
        if r.delta_low is not None and r.delta_high is not None:
            parts.append(
                f'<line class="interval {r.verdict}" x1="{x(r.step):.1f}" x2="{x(r.step):.1f}" '
                f'y1="{y(r.delta_low):.1f}" y2="{y(r.delta_high):.1f}"/>'
            )
        told = f"step {r.step}: {difference(r)}, value {number(r.value)}, n {r.n}, {r.verdict}"
        parts.append(_mark(r.verdict, x(r.step), y(r.delta), told))
    label = f"{metric.name}: " + "; ".join(f"step {r.step} {difference(r)} {r.verdict}" for r in points)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _line(readings: list[Reading], x, y, kind: str) -> str:
    points = " ".join(f"{x(r.step):.1f},{y(r.delta):.1f}" for r in readings if r.delta is not None)
    return f'<polyline class="{kind}" points="{points}"/>' if points else ""


def _mark(verdict: str, cx: float, cy: float, told: str) -> str:
    """A mark whose shape says the verdict too, for those who cannot tell the colours apart."""
    title = f"<title>{escape(told)}</title>"
    if verdict == "fried":
        shape = f"M{cx - 5:.1f} {cy - 5:.1f}h10v10h-10z"
    elif verdict == "underpowered":
        shape = f"M{cx:.1f} {cy - 6:.1f}l6 6l-6 6l-6 -6z"
    else:
        return f'<circle class="mark {verdict}" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5">{title}</circle>'
    return f'<path class="mark {verdict}" d="{shape}">{title}</path>'


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
