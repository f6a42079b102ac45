"""The audit part of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from audit import measures
from audit.judge import JudgePlan
from audit.measures import MEASURES
from audit.monitor import MonitorPlan
from organisms.data import SETS
from organisms.engines.load import EnginePlan
from organisms.errors import UserError
from organisms.files import shown
from organisms.organism import Organism, Purpose
from organisms.served import EndpointPlan
from organisms.strict import PLACE, Strict, nearest, validate

Suite = Literal["quick", "full"]
Mode = Literal["inline", "watch", "after"]


class AuditPlan(Strict):
    """What is measured, how often, on which rows, and what counts as damage."""

    suite: Suite = "quick"
    every: int = Field(default=20, gt=0, description="steps between checkpoints; step 0 and the last are always audited")
    mode: Mode = Field(
        default="inline",
        description="who audits checkpoints: the trainer as it goes, `make watch` beside it, or the trainer after all stages",
    )
    measures: list[str] = list(MEASURES)
    cadence: dict[str, Annotated[int, Field(gt=0)]] = Field(
        default={}, description="measure -> every how many-th checkpoint it is read at; step 0 and the last always"
    )
    data: dict[str, str] = Field(default={}, description="per data set: auto, embedded, mirror, hub or a path")
    margins: dict[str, dict[str, float]] = Field(default={}, description="measure -> metric -> margin, in the metric's unit")
    options: dict[str, dict[str, Any]] = Field(default={}, description="measure -> its own options, see its file")
    limit: int | None = Field(
        default=None, gt=0, description="most items of each kind (context, label, form) that a measure asks"
    )
    engine: EnginePlan = EnginePlan()
    endpoint: EndpointPlan | None = Field(default=None, description="how a base that is an endpoint is asked")
    judge: JudgePlan | None = Field(default=None, description="who judges replies; None: rules only")
    monitor: MonitorPlan = MonitorPlan()
    purpose: Purpose | None = Field(default=None, description="profile of margins; None: the organism's")
    control: str | None = Field(
        default=None, description="run directory of the matched control; None: the newest matching one beside this run"
    )

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in MEASURES:
                raise ValueError(measures.unknown(name))
        if not names:
            raise ValueError("name at least one measure")
        if set(names) <= {"fluency"}:
            raise ValueError("fluency reads other measures' generations; add one, e.g. instructions")
        return [name for name in MEASURES if name in names]

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, values in options.items():
            if name not in MEASURES:
                raise ValueError(measures.unknown(name))
            module = measures.measure(name)
            if not hasattr(module, "Options"):
                raise ValueError(f"{name} has no options")
            try:
                validate(module.Options, values, f"options of {name}")
            except UserError as error:
                raise ValueError(str(error)) from None
        return options

    @model_validator(mode="after")
    def _cadence_is_of_measures(self) -> "AuditPlan":
        for name in self.cadence:
            if name not in self.measures:
                raise ValueError(f"cadence: {name!r} is not among the measures{nearest(name, self.measures)}")
        return self

    @model_validator(mode="after")
    def _alarms_come_in_time(self) -> "AuditPlan":
        ending = [*self.monitor.stop, *self.monitor.rollback]
        if ending and self.mode == "after":
            raise ValueError(
                f"mode: after reads checkpoints when all are trained, so {', '.join(ending)} can end nothing; put it under "
                "monitor.warn, or choose mode: inline or watch"
            )
        return self

    def nth(self, name: str) -> int:
        """The measure is read at every n-th checkpoint."""
        return self.cadence.get(name, 1)

    def due(self, place: int, last: bool) -> list[str]:
        """The measures that are read at a stage's checkpoint. place: from 0, which is step 0; last: of the stage."""
        return [name for name in self.measures if last or place % self.nth(name) == 0]

    def lends(self, name: str, reader: str) -> bool:
        """Whether `reader` looks at the replies of measure `name`: only where it finds them at each point of its curve."""
        return self.nth(reader) % self.nth(name) == 0

    def measure_options(self) -> dict[str, Any]:
        """measure -> its validated Options, for the measures whose options are stated."""
        return {name: measures.measure(name).Options(**values) for name, values in self.options.items()}

    @field_validator("data")
    @classmethod
    def _known_sets(cls, sources: dict[str, str]) -> dict[str, str]:
        for name in sources:
            if name not in SETS:
                raise ValueError(f"there is no data set {name!r}{nearest(name, list(SETS))}")
        return sources

    @field_validator("margins", mode="before")
    @classmethod
    def _margins_are_of_metrics(cls, margins: Any) -> Any:
        for name, value in margins.items() if isinstance(margins, dict) else ():
            if name in MEASURES and isinstance(value, int | float):
                bearing = sorted((m for m in measures.metrics(name).values() if m.worse), key=lambda m: not m.headline)
                remedy = (
                    f"did you mean {PLACE}.{name}.{bearing[0].name}={value}?" if bearing else f"{name} has none, leave it out"
                )
                raise ValueError(f"a margin is of one metric that can be worse; {remedy}")
        return margins

    @field_validator("margins")
    @classmethod
    def _known_margins(cls, margins: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        for name, values in margins.items():
            if name not in MEASURES:
                raise ValueError(measures.unknown(name))
            known = {metric.name for metric in measures.metrics(name).values() if metric.worse}
            for metric, value in values.items():
                if metric not in known:
                    raise ValueError(f"{name} has no metric {metric!r} that can carry a margin{nearest(metric, sorted(known))}")
                if not value > 0:
                    raise ValueError(f"the margin of {name}.{metric} must be above 0, it is {value}")
        return margins


def check_side_effects(organism: Organism) -> None:
    """Raise UserError where an organism expects a worsening of what no measure reads: the expectation would never be met."""
    for number, effect in enumerate(organism.side_effects):
        place = f"{organism.source}: side_effects.{number}"
        if effect.measure not in MEASURES:
            raise UserError(f"{place}: {measures.unknown(effect.measure)}")
        known = [metric.name for metric in measures.metrics(effect.measure).values() if metric.worse]
        if effect.metric not in known:
            raise UserError(
                f"{place}: {effect.measure} has no metric {effect.metric!r} that can worsen{nearest(effect.metric, known)}"
            )


def of_the_plan(overrides: list[str]) -> list[str]:
    """The overrides of an audit by itself. Raises UserError where one is written as in a recipe."""
    for override in overrides:
        if override.startswith("audit."):
            raise UserError(
                f"override {shown(override)}: nothing but the audit is set here, so leave `audit.` out: "
                f"{shown(override.removeprefix('audit.'))[1:-1]}"
            )
    return overrides
