"""What came of a sweep: results.md with a row a run and dose, and the commands that compare them."""

import json
from pathlib import Path

from audit import readings as ledger
from audit.readings import Reading
from audit.table import difference, number
from organisms.files import write_atomic
from recipes.cell import finished
from recipes.grid import Cell, Sweep
from recipes.store import Copy, Store


def write(name: str, sweep: Sweep, cells: list[Cell], root: str) -> list[str]:
    """Write the table beside the runs; returns lines for the terminal. Runs in a store are fetched, without their weights."""
    store = Store(root)
    done = [cell for cell in cells if finished(store, cell)]
    if not done:
        return []
    folder = Path("runs" if "://" in root else root) / f"sweep-{name}"
    runs = [_here(store, cell, folder, root) for cell in done]
    lines = [
        f"# {sweep.about}",
        "",
        "Holdout half: difference from the base on the same items (95% interval), and the verdict on it.",
        "",
    ]
    lines += [
        f"| run | organism | base | seed | specimen | {' | '.join(sweep.columns)} |",
        "|---" * (5 + len(sweep.columns)) + "|",
    ]
    groups: dict[tuple, list[Path]] = {}
    for run in runs:
        readings, seed = ledger.read(run), json.loads((run / "manifest.json").read_text(encoding="utf-8"))["seed"]
        one = readings[0]
        groups.setdefault((one.organism, one.base), []).append(run)
        for specimen in _specimens(run, readings):
            cells_of = (_cell(readings, specimen, column) for column in sweep.columns)
            lines.append(f"| {run.name} | {one.organism} | {one.base} | {seed} | {specimen} | {' | '.join(cells_of)} |")
    told = [f'make compare runs="{" ".join(map(str, found))}"' for found in groups.values() if len(found) > 1]
    if told:
        lines += ["", "At matched severity:", "", "```", *told, "```"]
    write_atomic(folder / "results.md", "\n".join(lines) + "\n")
    return [f"results: {folder / 'results.md'}", *(f"compare: {command}" for command in told)]


def _here(store: Store, cell: Cell, folder: Path, root: str) -> Path:
    if "://" not in root:
        return Path(root) / cell.run
    copy = Copy(store, folder / "runs" / cell.run)
    copy.pull(weights=False)
    return copy.run


def _specimens(run: Path, readings: list[Reading]) -> list[str]:
    """What a run ends with and its other doses; without training, everything that it reads."""
    last = json.loads((run / "manifest.json").read_text(encoding="utf-8")).get("final")
    known = list(dict.fromkeys(r.specimen for r in readings if r.stage and r.step > 0))
    return [name for name in known if last is None or name == last or name.startswith(f"{last}@")]


def _cell(readings: list[Reading], specimen: str, column: str) -> str:
    measure, _, metric = column.partition(".")
    held = {r.key: r for r in readings}.get((specimen, measure, metric, "holdout"))
    if held is None or held.value is None:
        return "-"
    verdict = "" if held.verdict == "not_applicable" else f" {held.verdict.replace('_', ' ')}"
    return f"{difference(held) or number(held.value)}{verdict}"
