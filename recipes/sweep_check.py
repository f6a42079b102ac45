"""`make sweep check=1`: every cell resolved and planned without loading weights, what all of them cost, and what is missing."""

from collections import Counter as Tally

from organisms import models
from organisms.errors import UserError
from recipes import cost, grid
from recipes.cost import Hours
from recipes.counting import Count, Counter
from recipes.grid import Cell, Sweep
from recipes.plan import counted, plan
from recipes.recipe import Resolved


def check(name: str, sweep: Sweep, cells: list[Cell]) -> list[str]:
    """The plan in lines for the terminal. Raises one UserError that names every bad cell."""
    found = grid.look_up(cells, planned=True)
    counts = count(found)
    lines = [f"sweep       {name}: {sweep.about}; {len(found)} cells"]
    for number, ((cell, resolved), one) in enumerate(zip(found, counts, strict=True), 1):
        run = cell.run if not resolved.missing else resolved.name
        waits = f"; after {', '.join(cell.after)}" if cell.after and not resolved.missing else ""
        lines.append(f"{number:>4}  {run}: {cell}{f' at scales {_scales(cell)}' if cell.scales else ''}{waits}")
        lines.append(f"      {_price(resolved, one, len(cell.scales))}")
    lines += _sum(found, counts)
    missing = dict.fromkeys(what for _, resolved in found for what in resolved.missing)
    return [*lines, *(f"missing     {what}" for what in missing)]


def count(found: list[tuple[Cell, Resolved]]) -> list[Count]:
    """The tokens of each cell; what several ask alike is counted once. Raises one UserError that names every bad cell."""
    counter, bad, counts = Counter(), [], []
    for cell, resolved in found:
        try:
            counts.append(counted(resolved, plan(resolved), counter))
        except UserError as error:
            bad.append(f"{cell}: {error}")
    if bad:
        raise UserError(f"{len(bad)} of {len(found)} cells are refused:\n  " + "\n  ".join(dict.fromkeys(bad)))
    return counts


def priced(resolved: Resolved, one: Count, scales: int) -> Hours | None:
    """What a cell costs, with its audits at other scales."""
    return cost.hours(resolved.base, one.with_specimens(one.specimens + scales))


def _price(resolved: Resolved, one: Count, scales: int) -> str:
    hours = priced(resolved, one, scales)
    if hours is None:
        return f"the size of {resolved.recipe.base} is not known"
    parts = f"training {_time(hours.training)}, {hours.specimens} audits {_time(hours.specimens * hours.audit)}"
    return f"{_time(hours.total)} on {hours.unit}: {parts}" + (f", writing {_time(hours.writing)}" if hours.writing else "")


def _sum(found: list[tuple[Cell, Resolved]], counts: list[Count]) -> list[str]:
    """Totals by kind of device. Rows that several cells train on are written once."""
    total: Tally = Tally()
    written = set()
    for (cell, resolved), one in zip(found, counts, strict=True):
        hours = priced(resolved, one, len(cell.scales))
        if hours is None:
            continue
        total[hours.unit, "training"] += hours.training
        total[hours.unit, "audits"] += hours.specimens * hours.audit
        if cell.rows not in written:
            total[hours.unit, "writing"] += hours.writing
        written.add(cell.rows)
    lines = []
    for unit in dict.fromkeys(unit for unit, _ in total):
        parts = {part: total[unit, part] for part in ("writing", "training", "audits")}
        told = ", ".join(f"{part} {_time(hours)}" for part, hours in parts.items() if hours)
        lines.append(f"cost        {_time(sum(parts.values()))} on {unit} in all: {told}")
    sized = sum(models.parameter_count(resolved.base) is None for _, resolved in found)
    return lines + ([f"cost        without {sized} cells whose base has no known size"] if sized else [])


def _scales(cell: Cell) -> str:
    return ", ".join(f"{scale:g}" for scale in cell.scales)


def _time(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{hours * 60:.2g} min"
