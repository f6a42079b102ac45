"""curves.png: the naturalness curves of a run, one small plot a metric, with intervals and margins."""

import io
from collections.abc import Callable
from pathlib import Path

from audit.measures import Metric, metrics
from audit.readings import Reading
from organisms.files import write_atomic

# Okabe and Ito's colours, which the colour-blind tell apart too (jfly.uni-koeln.de/color), and a shape for each verdict.
COLOURS = {"fried": "#D55E00", "natural": "#009E73", "underpowered": "#E69F00", "expected": "#0072B2", "invalid": "#CC79A7"}
SHAPES = {"fried": "s", "natural": "o", "underpowered": "D", "expected": "^", "invalid": "X"}
INK = "#33415c"


def curve(readings: list[Reading], measure: str, metric: str, split: str = "holdout") -> list[Reading]:
    """The readings of one metric over the checkpoints, by tokens seen; the base is not among them."""
    chosen = [
        r for r in readings if (r.measure, r.metric, r.split) == (measure, metric, split) and r.on_curve and r.delta is not None
    ]
    return sorted(chosen, key=lambda r: (r.tokens_seen, r.step))


def along(points: list[Reading]) -> tuple[Callable[[Reading], int], str]:
    """(where a reading stands on the x axis, its unit): steps, or tokens where a second stage counts its steps anew."""
    if len({r.stage for r in points}) > 1 and len({r.tokens_seen for r in points}) > 1:
        return (lambda r: r.tokens_seen), "tokens seen"
    return (lambda r: r.step), "step"


def headlines(readings: list[Reading]) -> list[tuple[str, Metric]]:
    """(measure, metric) to plot first: each measure's headline, in the order the readings stand."""
    names = dict.fromkeys(r.measure for r in readings)
    return [(name, metric) for name in names for metric in metrics(name).values() if metric.headline]


def damage_band(metric: Metric, margin: float | None) -> list[tuple[float, float]]:
    """Where a difference would be damage: intervals on the y axis, open ends as +-inf."""
    if metric.worse is None or margin is None:
        return []
    bands = {"lower": [(-float("inf"), -margin)], "higher": [(margin, float("inf"))]}
    return bands.get(metric.worse, bands["lower"] + bands["higher"])


def draw(readings: list[Reading], target: Path, title: str) -> None:
    """Write curves.png: differences from the base over training steps, holdout half, 95% intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(name, metric) for name, metric in headlines(readings) if curve(readings, name, metric.name)]
    if not panels:
        return
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 3.1 * rows), squeeze=False, layout="constrained")
    for axis, (name, metric) in zip(axes.flat, panels, strict=False):
        points = curve(readings, name, metric.name)
        place, unit = along(points)
        steps = [place(r) for r in points]
        values = [r.delta for r in points]
        low = [r.delta - (r.delta if r.delta_low is None else r.delta_low) for r in points]
        high = [(r.delta if r.delta_high is None else r.delta_high) - r.delta for r in points]
        axis.axhline(0, color="#888", linewidth=0.8)
        axis.errorbar(steps, values, yerr=[low, high], color=INK, capsize=3, linewidth=1.4, zorder=2)
        for step, r in zip(steps, points, strict=True):
            axis.plot(step, r.delta, SHAPES.get(r.verdict, "o"), color=COLOURS.get(r.verdict, INK), markersize=6, zorder=3)
        bottom, top = axis.get_ylim()
        for start, end in damage_band(metric, points[-1].margin):
            axis.axhspan(max(start, -1e6), min(end, 1e6), color=COLOURS["fried"], alpha=0.1, linewidth=0)
        margin = points[-1].margin if metric.worse else None
        room = 1.3 * (margin or 0)
        axis.set_ylim(
            min(bottom, -room) if metric.worse in ("lower", "both") else bottom,
            max(top, room) if metric.worse in ("higher", "both") else top,
        )
        axis.set_title(f"{name}: {metric.name.replace('_', ' ')}", fontsize=10, loc="left")
        axis.set_xlabel(unit, fontsize=8)
        axis.set_ylabel(f"difference from base {f'({metric.unit})' if metric.unit else ''}".strip(), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    drawn = {r.verdict for name, metric in panels for r in curve(readings, name, metric.name)}
    handles = [
        plt.Line2D([], [], marker=SHAPES[verdict], linestyle="", color=colour, label=verdict)
        for verdict, colour in COLOURS.items()
        if verdict in drawn
    ]
    handles.append(plt.Line2D([], [], marker="o", linestyle="", color=INK, label="no verdict"))
    handles.append(plt.Line2D([], [], marker="s", linestyle="", color=COLOURS["fried"], alpha=0.2, label="beyond the margin"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    plt.close(figure)
    write_atomic(target, picture.getvalue())
