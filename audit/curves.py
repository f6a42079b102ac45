"""curves.png: the naturalness curves of a run, one small plot a metric, with intervals and margins."""

import io
from pathlib import Path

from audit.measures import Metric, metrics
from audit.readings import Reading
from organisms.files import write_atomic

COLOURS = {"fried": "#c0392b", "natural": "#1b7f5c", "underpowered": "#b8860b", "expected": "#2c7fb8"}


def curve(readings: list[Reading], measure: str, metric: str, split: str = "holdout") -> list[Reading]:
    """The readings of one metric over the checkpoints, by tokens seen; the base is not among them."""
    chosen = [
        r for r in readings if (r.measure, r.metric, r.split) == (measure, metric, split) and r.on_curve and r.delta is not None
    ]
    return sorted(chosen, key=lambda r: (r.tokens_seen, r.step))


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
        steps = [r.step for r in points]
        values = [r.delta for r in points]
        low = [r.delta - (r.delta if r.delta_low is None else r.delta_low) for r in points]
        high = [(r.delta if r.delta_high is None else r.delta_high) - r.delta for r in points]
        axis.axhline(0, color="#888", linewidth=0.8)
        axis.errorbar(steps, values, yerr=[low, high], color="#33415c", capsize=3, linewidth=1.4, zorder=2)
        axis.scatter(steps, values, color=[COLOURS.get(r.verdict, "#33415c") for r in points], zorder=3, s=32)
        bottom, top = axis.get_ylim()
        for start, end in damage_band(metric, points[-1].margin):
            axis.axhspan(max(start, -1e6), min(end, 1e6), color="#c0392b", alpha=0.08, linewidth=0)
        margin = points[-1].margin if metric.worse else None
        room = 1.3 * (margin or 0)
        axis.set_ylim(
            min(bottom, -room) if metric.worse in ("lower", "both") else bottom,
            max(top, room) if metric.worse in ("higher", "both") else top,
        )
        axis.set_title(f"{name}: {metric.name.replace('_', ' ')}", fontsize=10, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel(f"difference from base {f'({metric.unit})' if metric.unit else ''}".strip(), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=c, label=v) for v, c in COLOURS.items() if v != "expected"]
    handles.append(plt.Line2D([], [], marker="s", linestyle="", color="#c0392b", alpha=0.2, label="beyond the margin"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    plt.close(figure)
    write_atomic(target, drawn.getvalue())
