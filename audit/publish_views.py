"""What W&B gets of a finished run beside its curves: tables, pictures, report, organism card; and all of a comparison."""

import csv
import json
from pathlib import Path
from typing import Any

from audit import beside, frontier, transcripts, wandb_run
from audit import readings as ledger
from audit.compare_report import POINT_COLUMNS, SUMMARY, points
from audit.readings import Reading
from audit.report import final_specimen
from audit.verdicts import INDICATOR, overall
from organisms.files import write_json

READING_COLUMNS = (
    "specimen", "stage", "step", "tokens_seen", "scale", "measure", "metric", "split", "value", "ci_low", "ci_high", "n",
    "delta", "delta_low", "delta_high", "mde", "margin", "verdict", "reason", "n_needed", "data",
)  # fmt: skip
VERDICT_COLUMNS = (
    "measure", "metric", "verdict", "value", "delta", "delta_low", "delta_high", "n", "n_needed", "mde", "margin", "reason",
)  # fmt: skip
TRANSCRIPT_COLUMNS = ("measure", "group", "item", "flags", "prompt", "base", "specimen", "reply")
TRANSCRIPTS = 1_500_000  # bytes
RECORDS = ("readings.jsonl", "checkpoints.jsonl", "train.jsonl", "manifest.json", "recipe.yaml")


def send(run: Any, folder: Path) -> None:
    """The tables, pictures and artifacts of a finished run, and its verdict in the summary. run: the open W&B run."""
    import wandb

    readings = ledger.read(folder)
    last = final_specimen(folder, readings)
    views = {"report/readings": _table(wandb, READING_COLUMNS, _cells(readings, READING_COLUMNS))}
    if last:
        judged = [r for r in readings if r.specimen == last and r.split == "holdout" and r.reason != INDICATOR]
        views["report/verdicts"] = _table(wandb, VERDICT_COLUMNS, _cells(judged, VERDICT_COLUMNS))
        views["report/transcripts"] = _table(wandb, TRANSCRIPT_COLUMNS, _transcripts(folder, readings, last))
        said = overall(readings, last)
        run.summary.update({"specimen": last, "verdict": said.verdict, "verdict_in_words": said.text})
    scales = beside.own(folder, readings)
    if scales and scales.charts:
        frontier.draw(scales.charts, folder / "frontier.png", f"{folder.name}: damage over severity, by adapter scale")
        views["report/frontier"] = _table(wandb, POINT_COLUMNS, points(scales.charts))
    for name in ("curves", "frontier"):
        if (folder / f"{name}.png").is_file():
            views[f"report/{name}_picture"] = wandb.Image(str(folder / f"{name}.png"))
    run.log(views)
    for kind, names in (
        ("report", ("report.html", "curves.png", "frontier.png")),
        ("organism-card", ("README.md",)),
        ("organism-run", RECORDS),
    ):
        _artifact(run, folder, kind, names)


def compared(folder: Path) -> str:
    """A comparison as a W&B run of its own (job type `compare`): its tables, pictures and pages. Returns the W&B id."""
    if wandb_run.mode() == "disabled":
        return "disabled"
    import wandb

    state, said = wandb_run.state(folder), json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    run = wandb_run.start(folder, state["id"], said["organism"], "compare", said)
    tables = {"pairs": "compare.csv", "frontier": "frontier.csv"}
    views = {f"compare/{name}": _table(wandb, *_csv(folder / file)) for name, file in tables.items()}
    if (folder / "frontier.png").is_file():
        views["compare/frontier_picture"] = wandb.Image(str(folder / "frontier.png"))
    run.log(views)
    run.summary.update({"in_words": "\n".join(one["text"] for one in said["told"])})
    names = ("compare.html", "compare.md", "compare.csv", "frontier.csv", "frontier.png", SUMMARY)
    _artifact(run, folder, "comparison", names)
    wandb_run.finish(folder, run, whole=True)
    write_json(folder / wandb_run.STATE, state)
    return state["id"]


def _artifact(run: Any, folder: Path, kind: str, names: tuple[str, ...]) -> None:
    import wandb

    artifact = wandb.Artifact(f"{wandb_run.plain(folder.name)}-{kind}"[-128:], type=kind)
    for name in names:
        if (folder / name).is_file():
            artifact.add_file(str(folder / name))
    if artifact.manifest.entries:
        run.log_artifact(artifact)


def _table(wandb: Any, columns: tuple[str, ...], rows: list[list]) -> Any:
    return wandb.Table(columns=list(columns), data=rows)


def _cells(readings: list[Reading], columns: tuple[str, ...]) -> list[list]:
    return [[getattr(reading, column) for column in columns] for reading in readings]


def _transcripts(folder: Path, readings: list[Reading], last: str) -> list[list]:
    """Base and organism side by side, as the report chooses them."""
    measures = list(dict.fromkeys(r.measure for r in readings))
    return [
        [p.measure, p.group, p.item, "; ".join(p.flags), p.prompt, _text(p.base), last, _text(p.after)]
        for p in transcripts.choose(folder, measures, last, TRANSCRIPTS).pairs
    ]


def _text(pieces: list[tuple[str, str]]) -> str:
    return "".join(text for text, _ in pieces)


def _csv(path: Path) -> tuple[tuple[str, ...], list[list]]:
    """Columns and rows of one of our CSV files: numbers where a column holds nothing else, None where a cell is empty."""
    with open(path, encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    numeric = [all(_number(row[k]) for row in rows if row[k]) for k in range(len(columns))]
    cells = [[None if not cell else float(cell) if numeric[k] else cell for k, cell in enumerate(row)] for row in rows]
    return tuple(columns), cells


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
