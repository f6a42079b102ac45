"""A run as it goes, seen from its files by another process: a live picture on a terminal, lines of what is new elsewhere."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit import readings as ledger
from audit.claims import POLL, being_read
from audit.curves import curve, headlines
from audit.readings import Reading
from audit.table import STYLE, difference
from audit.verdicts import overall
from organisms import locks
from organisms.files import read_jsonl
from organisms.folders import LOCK
from organisms.manifest import found_manifest

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # characters of a sparkline
RECENT = 50  # steps over which the pace is taken, audits between them included


@dataclass(frozen=True)
class Seen:
    """training: the lines of train.jsonl; trainer: who holds the run, None where nobody trains; auditing: what -> who."""

    run: str
    training: list[dict]
    checkpoints: list[str]
    readings: list[Reading]
    trainer: str | None
    auditing: dict[str, str]
    manifest: dict

    @property
    def curves(self) -> list[str]:
        """The checkpoints that have been read, in order."""
        points = {r.specimen: r for r in self.readings if r.on_curve}
        return sorted(points, key=lambda name: (points[name].tokens_seen, points[name].step))


def look(run: Path) -> Seen:
    """What stands in the run directory now."""
    rows, checkpoints = (
        read_jsonl(run / name) if (run / name).is_file() else [] for name in ("train.jsonl", "checkpoints.jsonl")
    )
    return Seen(
        run.name,
        rows,
        [row["name"] for row in checkpoints],
        ledger.read(run),
        locks.holder(run / LOCK),
        being_read(run),
        found_manifest(run),
    )


def sparkline(values: list[float]) -> str:
    """The values as bars from their least to their greatest; means of neighbours where there are more than WIDTH."""
    if not values:
        return ""
    if len(values) > WIDTH:
        edges = [round(k * len(values) / WIDTH) for k in range(WIDTH + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(values), max(values)
    if high == low:
        return BARS[3] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def left(rows: list[dict]) -> float | None:
    """Seconds to the end of the stage at the pace of its last steps; None where that cannot be told yet."""
    if not rows or "time" not in rows[-1]:
        return None
    recent = [row for row in rows if row["stage"] == rows[-1]["stage"] and "time" in row][-RECENT:]
    steps = recent[-1]["step"] - recent[0]["step"]
    if steps <= 0:
        return None
    return (recent[-1]["time"] - recent[0]["time"]) / steps * (recent[-1]["steps"] - recent[-1]["step"])


def training(seen: Seen) -> str:
    """Stage, step, loss and time left, in words."""
    if not seen.training:
        return "not training yet" if seen.trainer else "no trainer is running"
    row = seen.training[-1]
    text = f"{row['stage']} step {row['step']}{f' of {steps}' if (steps := row.get('steps')) else ''}, loss {row['loss']:.3f}"
    if row.get("probe_kl") is not None:
        text += f", KL to the start {row['probe_kl']:.3f}"
    if row["step"] == row.get("steps"):
        return text + ", trained"
    seconds = left(seen.training)
    if seen.trainer is None:
        return text + ", the trainer is not running"
    return text + ("" if seconds is None else f", {duration(seconds)} left in this stage")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def words(seen: Seen) -> list[str]:
    """The newest verdict, the alarms, and what the run ends with."""
    lines = [overall(seen.readings, seen.curves[-1]).text] if seen.curves else ["no checkpoint has been read yet"]
    lines += [f"monitor {alarm['action']}: {alarm['text']}" for alarm in seen.manifest.get("alarms", [])]
    return lines + ([f"the run ends with {seen.manifest['final']}"] if "final" in seen.manifest else [])


def picture(seen: Seen, note: str = "", said: list[str] = ()) -> Any:
    """The whole as something rich can print. said: the last lines of the process that audits."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    losses = sparkline([row["loss"] for row in seen.training if row["loss"] is not None])
    read = f"{len(seen.curves)} of {len(seen.checkpoints)} checkpoints read"
    parts = [Text(f"training  {training(seen)}  {losses}"), Text(f"audits    {read}")]
    parts += [Text(f"          {what}: {who}") for what, who in seen.auditing.items()]
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("difference from the base", "over checkpoints", "at the last one read", "verdict"):
        table.add_column(name, no_wrap=True)
    for measure, metric in headlines(seen.readings):
        points = curve(seen.readings, measure, metric.name)
        if points:
            last = points[-1]
            verdict = "" if last.verdict == "not_applicable" else last.verdict
            bars = sparkline([point.delta for point in points])
            table.add_row(f"{measure} {metric.name}", bars, difference(last), Text(verdict, STYLE.get(last.verdict, "")))
    parts += [Text(), table, Text(), *(Text(line) for line in words(seen))]
    parts += [Text(line, "dim") for line in ([note] if note else []) + list(said)]
    return Panel(Group(*parts), title=seen.run, title_align="left")


def news(before: Seen | None, now: Seen) -> list[str]:
    """What a reader of a log wants to be told since the last look."""
    lines = []
    tenths = [
        10 * s.training[-1]["step"] // max(s.training[-1].get("steps") or 1, 1) if s and s.training else -1
        for s in (before, now)
    ]
    stages = [s.training[-1]["stage"] if s and s.training else "" for s in (before, now)]
    if tenths[0] != tenths[1] or stages[0] != stages[1] or (before and (before.trainer is None) != (now.trainer is None)):
        lines.append(f"training: {training(now)}")
    known = before.curves if before else []
    lines += [f"read: {overall(now.readings, name).text}" for name in now.curves if name not in known]
    lines += [line for line in words(now)[1:] if before is None or line not in words(before)]
    return lines


def terminal() -> bool:
    return sys.stdout.isatty()


def show(run: Path, note: str = "", worker: list[str] | None = None) -> int:
    """Show a run until it is whole, and return the exit status.

    worker: arguments of the Python process that audits, started beside the picture so that neither waits for the other; the
    picture then ends with it, and what it had to say is printed. Without one, it ends when the run has its final checkpoint and
    nobody is at it.
    """
    process = worker and subprocess.Popen(
        [sys.executable, *worker], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )
    said: list[str] = []
    if process:
        threading.Thread(target=lambda: said.extend(iter(process.stdout.readline, "")), daemon=True).start()
    if terminal():
        _live(run, note, process, said)
    else:
        _lines(run, note)
    if process:
        status = process.wait()
        print("".join(said), end="")
        return status
    return 0


def _live(run: Path, note: str, process: subprocess.Popen | None, said: list[str]) -> None:
    from rich.live import Live

    with Live(picture(look(run), note), auto_refresh=False) as live:
        while process.poll() is None if process else not _whole(look(run)):
            time.sleep(POLL)
            live.update(picture(look(run), note, [line.rstrip() for line in said[-3:]]), refresh=True)


def _lines(run: Path, note: str) -> None:
    if note:
        print(note, flush=True)
    before = None
    while True:
        now = look(run)
        for line in news(before, now):
            print(line, flush=True)
        if _whole(now):
            return
        before = now
        time.sleep(POLL)


def _whole(seen: Seen) -> bool:
    return "final" in seen.manifest and seen.trainer is None and not seen.auditing
