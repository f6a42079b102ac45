"""results.md and figure.png of a sweep: its specimens side by side, with the readings published for the same bases."""

from dataclasses import dataclass
from pathlib import Path

from audit import readings as ledger
from audit.markdown import inline
from audit.readings import Reading
from audit.table import number
from organisms import external
from organisms.errors import UserError
from organisms.files import inside, read_jsonl, write_atomic

PARAMETERS = "parameters"
ENTRY = {"subject": str, "base": str, "adapter": str | None, "parameters": int | None, "run": str, "plan": str}


@dataclass(frozen=True)
class Row:
    """A base, or an adapter on it: `measure.metric` -> the reading of its holdout half."""

    base: str
    adapter: str | None
    parameters: int | None
    readings: dict[str, Reading]

    @property
    def label(self) -> str:
        return self.adapter or self.base

    def at(self, name: str) -> float | None:
        """What stands on an axis or in a column; None where it was not read or is not to be believed."""
        if name == PARAMETERS:
            return self.parameters
        reading = self.readings.get(name)
        return reading.value if reading and reading.verdict != "invalid" else None


def rows(folder: Path) -> list[Row]:
    """Bases and adapters of a sweep in the order in which they were audited. Raises UserError where nothing was."""
    entries = read_jsonl(folder / "sweep.jsonl", ENTRY)
    if not entries:
        raise UserError(f"{folder}: no audit of this sweep is done yet")
    latest = {entry["subject"]: entry for entry in entries}
    found: dict[tuple, Row] = {}
    for entry in latest.values():
        everything = ledger.read(inside(folder, entry["run"], str(folder / "sweep.jsonl")))
        for specimen, adapter in (("base", None), *([("adapter-000001", entry["adapter"])] if entry["adapter"] else [])):
            held = {f"{r.measure}.{r.metric}": r for r in everything if r.specimen == specimen and r.split == "holdout"}
            key = (entry["base"], adapter)
            earlier = found[key].readings if key in found else {}
            found[key] = Row(entry["base"], adapter, entry["parameters"], {**earlier, **held})
    return list(found.values())


def write(folder: Path, about: str, columns: list[str], axes: tuple[str, str]) -> Path:
    """(Re)write both from the readings; no model is needed."""
    found = rows(folder)
    write_atomic(folder / "results.md", table(found, about, columns))
    draw(found, folder / "figure.png", about, *axes)
    return folder / "results.md"


def table(found: list[Row], about: str, columns: list[str]) -> str:
    """Markdown: a row a specimen, under each base what was published for it; differences from the base carry a verdict."""
    lines = [f"# {about}", "", "Holdout half; the verdict is on the difference from the base.", ""]
    lines += [f"| specimen | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for base in dict.fromkeys(row.base for row in found):
        of_base = sorted((row for row in found if row.base == base), key=lambda row: row.adapter is not None)
        lines += [f"| {inline(row.label)} | {' | '.join(_cell(row, column) for column in columns)} |" for row in of_base]
        for family, one in _published(base):
            cells = (_stated(one.readings.get(column)) for column in columns)
            lines.append(f"| *published: {family}, {one.of}* ({one.note or family}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _published(base: str) -> list[tuple[str, external.Published]]:
    families = [(name, external.family(name)) for name in external.families()]
    return [(name, one) for name, family in families for one in family.published if one.base == base]


def _cell(row: Row, column: str) -> str:
    reading = row.readings.get(column)
    if reading is None or reading.value is None:
        return "-"
    verdict = "" if row.adapter is None or reading.verdict == "not_applicable" else f" {reading.verdict}"
    return f"{number(reading.value)}{verdict}"


def _stated(value: float | list[float] | None) -> str:
    if value is None:
        return "-"
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def draw(found: list[Row], target: Path, title: str, x: str, y: str) -> None:
    """A hollow point a base, a filled one an adapter, joined by a line; what has no reading on an axis is left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    placed = [row for row in found if row.at(x) is not None and row.at(y) is not None]
    if not placed:
        return
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    bases = {row.base: row for row in placed if row.adapter is None}
    for row in placed:
        point, start = (row.at(x), row.at(y)), bases.get(row.base)
        if row.adapter and start:
            axis.plot([start.at(x), point[0]], [start.at(y), point[1]], color="#9aa5b8", linewidth=0.9, zorder=1)
        axis.scatter(*point, s=34, zorder=2, edgecolor="#33415c", color="#c0392b" if row.adapter else "white")
        axis.annotate(_short(row), point, xytext=(5, 4), textcoords="offset points", fontsize=7, parse_math=False)
    if x == PARAMETERS:
        axis.set_xscale("log")
    axis.set(xlabel=x, ylabel=y)
    axis.set_title(title, parse_math=False)  # a dollar sign is a dollar sign
    figure.savefig(target, dpi=140)
    plt.close(figure)


def _short(row: Row) -> str:
    return row.label.rstrip("/").rpartition("/")[2]
