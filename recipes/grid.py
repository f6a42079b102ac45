"""A sweep's grid: recipes x organisms x bases x seeds; each cell is a run of one recipe, with what it needs and waits for."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from audit.measures import measure
from organisms.errors import Missing, UserError
from organisms.files import digest
from organisms.strict import Strict, Text, nearest, overridden, read_yaml, validate
from organisms.styles import compile_rows
from recipes.recipe import Resolved, resolve

FOLDER = Path(__file__).parent / "sweeps"
OF_EXISTING = Path(__file__).parent.parent / "audit" / "sweep_plans"  # `make audit sweep=NAME`
Seed = Annotated[int, Field(ge=0)]
Dose = Annotated[float, Field(gt=0, le=3)]


class Resources(Strict):
    """What one cell takes of a machine, in Ray's units. custom: resources that `ray start --resources` gave a machine."""

    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    memory_gb: float | None = Field(default=None, gt=0, description="main memory, for placement; not a limit")
    custom: dict[str, float] = {}


class Grid(Strict):
    """A product. An axis that is left out is the recipe's own value, or the sweep's where the sweep states one."""

    recipes: list[Text] = Field(min_length=1, description="a style with its hyper-parameters: a name in recipes/ or a path")
    organisms: list[Text] = []
    bases: list[Text] = []
    seeds: list[Seed] = []
    doses: list[Dose] | None = Field(default=None, description="adapter scales audited beside 1, as `make dose` does")
    set: list[Text] = Field(default=[], description="a.b=c, on every cell, after the sweep's own")
    resources: Resources | None = None


class Sweep(Strict):
    """A YAML file in recipes/sweeps/. retries: further attempts at a cell that was cut off; each goes on where it stopped."""

    about: Text
    grids: list[Grid] = Field(min_length=1)
    seeds: list[Seed] = []
    doses: list[Dose] = []
    set: list[Text] = []
    resources: Resources = Resources()
    placement: Literal["pack", "spread"] = Field(default="pack", description="fill machines one by one, or share cells out")
    retries: int = Field(default=2, ge=0)
    columns: list[Text] = Field(
        default=["severity.contrast", "drift.kl", "knowledge.accuracy", "instructions.prompt_strict", "refusals.over_refusal",
                 "preferences.decisiveness", "thinking.well_formed", "leakage.rate", "fluency.degenerate"],
        description="measure.metric, of the results table",
    )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One run: what `python -m recipes` is given for it, and what is known of it before it starts.

    run: its directory's name; audit: digest of what is read of it; rows: digest of what its rows are written from, empty where
    nothing has to be written; after: runs that must have ended before: its controls, and the one that writes the same rows.
    """

    recipe: str
    overrides: tuple[str, ...]
    base: str | None
    scales: tuple[float, ...]
    resources: Resources
    run: str = ""
    audit: str = ""
    rows: str = ""
    after: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        return [self.recipe, *self.overrides, *(["--base", self.base] if self.base else [])]

    def __str__(self) -> str:
        return " ".join([self.recipe, *([f"base={self.base}"] if self.base else []), *self.overrides])


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, overrides: list[str] = ()) -> tuple[str, Sweep]:
    """(short name, sweep) of a shipped one or a YAML path; overrides: a.b=c on every cell.

    Raises UserError naming file, line and key.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and not path.is_file():
        if (OF_EXISTING / f"{name}.yaml").is_file():
            raise UserError(f"{name} is a sweep over organisms that exist already: `make audit sweep={name}`")
        raise UserError(f"there is no sweep {name!r} in recipes/sweeps/{nearest(name, shipped())} (a path works too)")
    found = validate(Sweep, read_yaml(path), str(path), path)
    # A slip in them is told once, not for every cell; what a list holds, each recipe says itself.
    overridden({}, [one for one in overrides if "[" not in one.partition("=")[0]], "a recipe")
    return path.stem, found.model_copy(update={"set": [*found.set, *overrides]})


def expand(sweep: Sweep) -> list[Cell]:
    """Every cell of every grid, in order, not looked up yet."""
    return [cell for grid in sweep.grids for cell in _product(sweep, grid)]


def _product(sweep: Sweep, grid: Grid) -> Iterator[Cell]:
    axes = (grid.recipes, grid.organisms or [None], grid.bases or [None], grid.seeds or sweep.seeds or [None])
    for recipe, organism, base, seed in itertools.product(*axes):
        own = [*([f"organism={organism}"] if organism else []), *([f"seed={seed}"] if seed is not None else [])]
        yield Cell(
            str(Path(recipe).resolve()) if Path(recipe).suffix in (".yaml", ".yml") else recipe,
            (*own, *sweep.set, *grid.set),
            base,
            tuple(sorted({*(sweep.doses if grid.doses is None else grid.doses)} - {1.0})),
            grid.resources or sweep.resources,
        )


def look_up(cells: list[Cell], planned: bool = False) -> list[tuple[Cell, Resolved]]:
    """Each cell with its recipe resolved, equal ones once. Raises one UserError that names every bad cell.

    planned: only a plan is wanted: bases that cannot be reached are stood in for.
    """
    found: dict[tuple[str, str], tuple[Cell, Resolved]] = {}
    compiled: dict[str, bool] = {}
    bad: list[str] = []
    for cell in cells:
        try:
            resolved = resolve(cell.recipe, list(cell.overrides), cell.base, planned)
            cell = _known(cell, resolved, compiled)
        except UserError as error:
            bad.append(f"{cell}: {error}")
            continue
        key = (cell.run, resolved.recipe.base)
        if key in found and found[key][0].audit != cell.audit:
            bad.append(f"{cell}: another cell is the same run with another audit plan; state the audit once")
        earlier = found[key][0].scales if key in found else ()
        found[key] = (replace(cell, scales=tuple(sorted({*earlier, *cell.scales}))), resolved)
    if bad:
        raise UserError(f"{len(bad)} of {len(cells)} cells are refused:\n  " + "\n  ".join(dict.fromkeys(bad)))
    return _ordered(list(found.values()))


def _known(cell: Cell, resolved: Resolved, compiled: dict[str, bool]) -> Cell:
    recipe = resolved.recipe
    if cell.scales and not recipe.stages:
        raise UserError(f"the style {recipe.style} trains no adapter, so there is none to scale; leave doses out")
    plan = recipe.audit
    if plan.mode == "watch":
        raise UserError("audit.mode: watch leaves the audits to another process, and a cell ends when it is read; take after")
    audit = digest([plan.model_dump(), [measure(name).VERSION for name in plan.measures]], 12)
    # What is missing is part of a run's digest; a plan can do without.
    name = resolved.run_name if not resolved.missing else f"{resolved.name}-{digest(cell.arguments, 8)}"
    return replace(cell, run=name, audit=audit, rows=_written_from(resolved, compiled))


def _written_from(resolved: Resolved, compiled: dict[str, bool]) -> str:
    """Digest of what decides the rows that an author has to write first; empty where all of them are frozen text.

    compiled: what is known of it so far, since compiling the plan of a large corpus takes a second.
    """
    recipe = resolved.recipe
    kinds = sorted({stage.rows for stage in recipe.stages})
    made_of = digest([resolved.organism.fingerprint(), recipe.style, resolved.options.model_dump(), kinds])
    if made_of not in compiled:
        try:
            rows = [compile_rows(recipe.style, resolved.organism, resolved.options, None, kind).rows for kind in kinds]
        except Missing:  # told when the cell is planned
            rows = []
        compiled[made_of] = all(rows)
    if compiled[made_of]:
        return ""
    author = recipe.writer.model_dump() if recipe.writer.model else [recipe.writer.name, recipe.base]
    return digest([made_of, author, recipe.mitigations.fingerprint()], 12)


def _ordered(found: list[tuple[Cell, Resolved]]) -> list[tuple[Cell, Resolved]]:
    """Controls first, and each cell with what it waits for."""
    found = sorted(found, key=lambda one: one[1].recipe.style != "control")
    controls = [one for one in found if one[1].recipe.style == "control"]
    writers: dict[str, str] = {}
    ordered = []
    for cell, resolved in found:
        control = resolved.recipe.style == "control"
        after = [] if control else [other.run for other, known in controls if _matched(known, resolved)]
        if cell.rows and (first := writers.setdefault(cell.rows, cell.run)) != cell.run:
            after.append(first)
        ordered.append((replace(cell, after=tuple(dict.fromkeys(after))), resolved))
    return ordered


def _matched(control: Resolved, other: Resolved) -> bool:
    """Whether a run is held against this control's drift (audit/control.py)."""
    same = control.base == other.base and control.renderer.template_hash == other.renderer.template_hash
    return same and control.recipe.stages == other.recipe.stages
