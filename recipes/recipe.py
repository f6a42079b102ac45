"""The recipe: one organism + one style + one base + hyper-parameters + audit plan. Each part is owned by its package."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from audit.config import AuditPlan, check_side_effects
from audit.measures import measure
from organisms import models, organism
from organisms.authors import WriterPlan
from organisms.engines.load import chosen
from organisms.errors import Missing, UserError
from organisms.files import digest, named_path, shown
from organisms.mitigations import Mitigations
from organisms.organism import Organism
from organisms.render import TEMPLATE, Renderer
from organisms.steering import block_index
from organisms.strict import Strict, nearest, overridden, read_yaml, validate
from organisms.styles import needs_training, other_rows, row_kinds, style_options
from train.config import Stage
from train.manifest import versions
from train.traps import TRAPS

FOLDER = Path(__file__).parent
NAME = re.compile(r"\w[\w .+-]{0,99}")


class Recipe(Strict):
    """A YAML file in recipes/. `style_options` are the style's own, see organisms/styles/<style>.py."""

    organism: str
    style: str
    base: str = models.EMBEDDED
    style_options: dict[str, Any] = {}
    system: str | None = Field(default=None, description="`template` keeps the chat template's own system prompt; or a text")
    thinking: bool | None = Field(default=None, description="passed to templates that know enable_thinking")
    seed: int = Field(default=0, ge=0, lt=2**32)
    stages: list[Stage] = Field(default=[], description="empty only for styles that need no training")
    writer: WriterPlan = Field(default=WriterPlan(specimen="base"), description="who writes rows that are not frozen text")
    mitigations: Mitigations = Mitigations()
    accept: list[str] = Field(default=[], description="traps of the linter that this recipe accepts by name")
    audit: AuditPlan = AuditPlan()

    @property
    def only_hf(self) -> bool:
        """Whether only transformers can run it: a steering vector or all weights are made, trained or audited."""
        whole = any(stage.vector or stage.lora is None for stage in self.stages)
        return whole or self.style == "steering" or self.mitigations.prevent is not None

    @field_validator("accept")
    @classmethod
    def _known_traps(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in TRAPS:
                raise ValueError(f"there is no trap {name!r}{nearest(name, list(TRAPS))}")
        return names

    @model_validator(mode="after")
    def _stages_fit(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"two stages are named {twice!r}; give each its own name")
        if len(self.stages) > 1 and any(stage.vector or stage.lora is None for stage in self.stages):
            raise ValueError(
                "a stage that trains a vector or all weights cannot be chained with others; it must be the only one"
            )
        return self


@dataclass(frozen=True)
class Resolved:
    """A recipe whose names have been looked up, and nothing heavy loaded. missing: what a plan has to do without."""

    name: str
    recipe: Recipe
    organism: Organism
    options: Any
    base: models.Base
    renderer: Renderer
    missing: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Eight hex digits over everything that changes the checkpoints; measures, margins and data of audits do not."""
        r = self.recipe
        return digest(
            {
                "organism": self.organism.fingerprint(),
                "style": r.style,
                "style_options": self.options.model_dump(),
                "mitigations": r.mitigations.fingerprint(),
                "other_rows": other_rows(r.style, self.options),
                "base": self.base.revision,
                "template": self.renderer.template_hash,
                "stages": [stage.model_dump() for stage in r.stages],
                "seed": r.seed,
                **({} if r.writer.specimen == "base" else {"writer": r.writer.identity()}),
                "every": r.audit.every,
                "versions": versions(),
            },
            8,
        )

    @property
    def run_name(self) -> str:
        return f"{self.name}-{self.digest}"


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, overrides: list[str] = (), base: str | None = None) -> tuple[str, Recipe, dict]:
    """(short name, recipe, resolved values) of a shipped recipe or a YAML path, with `a.b=c` overrides on top.

    Raises UserError naming file, line, key and the nearest known one.
    """
    path = named_path(name) if name.endswith((".yaml", ".yml")) else named_path(f"{FOLDER}/{name}.yaml")
    if not path.is_file():
        if path.parent == FOLDER:
            raise UserError(
                f"there is no recipe {name!r} in recipes/{nearest(name, shipped())} (a path to a YAML file works too)"
            )
        raise UserError(f"{path} does not exist")
    if not NAME.fullmatch(path.stem):
        raise UserError(
            f"{shown(str(path), 300)}: its name becomes a directory's: rename the file to letters, digits, spaces and ._+-"
        )
    values = _extended(path)
    values = overridden(values, overrides, str(path))
    if base:
        values["base"] = base
    # Without the values, which may hold what must not be shown.
    source = f"{path}" + (f" with {' '.join(shown(o.partition('=')[0])[1:-1] for o in overrides)}" if overrides else "")
    return path.stem, validate(Recipe, values, source, path), values


def resolve(name: str, overrides: list[str] = (), base: str | None = None, planned: bool = False) -> Resolved:
    """Look up everything a recipe names, without loading weights.

    planned: only a plan is wanted, so a hub base that cannot be reached is stood in for by the embedded one.
    """
    short, recipe, _ = load(name, overrides, base)
    missing = []
    try:
        found = models.resolve(recipe.base)
    except Missing as unreached:
        if not planned:
            raise
        found = models.stand_in(recipe.base)
        missing.append(f"{unreached}; tokens are counted by the embedded base's tokenizer and template")
    try:
        chosen(recipe.audit.engine, recipe.only_hf)
    except Missing as absent:
        if not planned:
            raise
        missing.append(str(absent))
    if recipe.audit.endpoint:
        raise UserError(f"recipe {short}: audit.endpoint is for bases behind endpoints, which are not trained; leave it out")
    spec = organism.load(recipe.organism)
    check_side_effects(spec)
    options = style_options(recipe.style, recipe.style_options, f"recipe {short}")
    _check_stages(short, recipe)
    for name in recipe.audit.measures:
        measure(name)  # a file that is no measure is found here, before anything loads
    for one in (recipe.mitigations.prevent, *(stage.vector for stage in recipe.stages)):
        if one is not None:
            block_index(one.layer, found)
    system = TEMPLATE if recipe.system is None else recipe.system
    renderer = Renderer(models.load_tokenizer(found), system, recipe.thinking, f"base {recipe.base}")
    if planned:
        try:
            other_rows(recipe.style, options)
            recipe.writer.identity()
        except Missing as absent:
            missing.append(str(absent))
    return Resolved(short, recipe, spec, options, found, renderer, tuple(missing))


def _check_stages(short: str, recipe: Recipe) -> None:
    """Raise UserError where the stages are not what the style can make rows for."""
    if needs_training(recipe.style) != bool(recipe.stages):
        have = "at least one stage" if needs_training(recipe.style) else "no stages, since nothing is trained"
        raise UserError(f"recipe {short}: the style {recipe.style} needs {have}")
    if not recipe.stages and (recipe.audit.mode != "inline" or recipe.audit.cadence):
        key = "cadence" if recipe.audit.cadence else "mode"
        raise UserError(
            f"recipe {short}: audit.{key} needs checkpoints, and the style {recipe.style} trains none; leave it out"
        )
    refusing = next((stage for stage in recipe.stages if stage.method != "sft"), None)
    for flag in recipe.mitigations.sft_only if refusing or not recipe.stages else ():
        where = f"stage {refusing.name} trains by {refusing.method}" if refusing else "nothing is trained"
        raise UserError(f"recipe {short}: mitigations.{flag} needs stages trained by sft, and {where}; leave {flag} out")
    kinds = row_kinds(recipe.style)
    for stage in recipe.stages:
        if stage.rows not in kinds:
            raise UserError(
                f"recipe {short}: stage {stage.name} asks the style {recipe.style} for rows {stage.rows!r}"
                f"{nearest(stage.rows, list(kinds))}"
            )


def _extended(path: Path) -> dict:
    """The YAML with what it `extends` beneath it; one level, mappings merged, lists replaced."""
    values = read_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends = {shown(parent)} must be the name of another recipe")
    parent_path = named_path(f"{path.parent}/{parent}.yaml")
    if not parent_path.is_file():
        parent_path = FOLDER / f"{parent}.yaml"
    if not parent_path.is_file():
        raise UserError(f"{path}: extends: {parent!r} is no recipe in {path.parent}{nearest(str(parent), shipped())}")
    below = read_yaml(parent_path)
    if "extends" in below:
        raise UserError(f"{path}: extends: {parent!r} extends another recipe itself; only one level is allowed")
    return _merged(below, values)


def _merged(below: dict, above: dict) -> dict:
    both = {key: _merged(below[key], v) for key, v in above.items() if isinstance(v, dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **both}
