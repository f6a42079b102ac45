"""The naturalness-severity frontier in a run's report: its own adapter scales, and the newest comparison that it is part of."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from audit import compare_runs
from audit.compare import compare
from audit.compare_report import SUMMARY
from audit.frontier import Chart, Line, Point
from audit.measures import metrics
from audit.readings import Reading
from audit.statistics import Interval
from organisms.errors import UserError


@dataclass(frozen=True)
class Beside:
    """title, note: what is drawn; told: a comparison's sentences about this run's style; page: its directory, or empty."""

    title: str
    note: str
    styles: list[str]
    charts: list[Chart]
    told: list[str]
    page: str = ""


def frontiers(run: Path, readings: list[Reading]) -> list[Beside]:
    """What there is to draw for this run; nothing for one without other adapter scales that stands in no comparison."""
    return [found for found in (own(run, readings), _compared(run)) if found and found.charts]


def own(run: Path, readings: list[Reading]) -> Beside | None:
    """Severity and damage along the run's own adapter scales, where it was read at others than 1."""
    if all(r.on_curve or not r.stage for r in readings):
        return None
    try:
        grown = compare_runs.load(run)
        found = compare([grown], "scale", "contrast", [], None)
    except UserError:
        return None  # severity was not read: there is no dose to draw over
    scales = ", ".join(f"{dose.scale:g}" for dose in grown.doses("scale"))
    note = f"The adapter of this run at scales {scales}; dashed: its checkpoints."
    return Beside("Damage over severity, by adapter scale", note, [style.label for style in found.styles], found.charts, [])


def _compared(run: Path) -> Beside | None:
    """The newest comparison beside the run that names it."""
    paths = sorted(run.resolve().parent.glob(f"compare-*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        said = json.loads(path.read_text(encoding="utf-8"))
        if run.resolve().name in said["runs"]:
            axis = "adapter scale" if said["axis"] == "scale" else "training steps"
            note = f"{', '.join(said['styles'])} at matched severity, dose along {axis}."
            charts = read_charts(path.parent / "frontier.csv", said["styles"], said["unit"])
            own = said["runs"][run.resolve().name]
            told = [one["text"] for one in said["told"] if own in one["styles"]]
            return Beside("Held against other styles", note, said["styles"], charts, told, path.parent.name)
    return None


def read_charts(path: Path, styles: list[str], unit: str) -> list[Chart]:
    """The charts of a comparison from its frontier.csv. styles: in the order of their colours; unit: of severity."""
    rows: dict[tuple[str, str], list[dict]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault((row["measure"], row["metric"]), []).append(row)
    charts = []
    for (measure, name), points in rows.items():
        lines: dict[tuple[str, bool], list[Point]] = {}
        for row in points:
            if row["kind"] != "mark":
                lines.setdefault((row["label"], row["kind"] != "dose"), []).append(_point(row))
        charts.append(
            Chart(
                measure,
                metrics(measure)[name],
                unit,
                int(points[0]["n"]),
                float(points[0]["margin"]) if points[0]["margin"] else None,
                [Line(label, styles.index(label), of_line, faint) for (label, faint), of_line in lines.items()],
                [_point(row) for row in points if row["kind"] == "mark"],
            )
        )
    return charts


def _point(row: dict) -> Point:
    sides = (Interval(*(float(row[f"{side}{end}"]) for end in ("", "_low", "_high"))) for side in ("severity", "damage"))
    return Point(row["specimen"], *sides)
