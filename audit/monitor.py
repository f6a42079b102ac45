"""Watches a stage fry: which checkpoints breach the recipe's rules on the monitor half, and which one is worth keeping.

Everything is read off readings.jsonl, so a run that is taken up again comes to the same decision. The monitor half decides
here and is never part of the verdict, which the holdout half gives.
"""

from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from audit import measures
from audit.measures import MEASURES
from audit.readings import Reading
from organisms.strict import Strict, nearest


class MonitorPlan(Strict):
    """`audit.monitor`: rules by action. A rule is a measure (its headline) or `measure.metric`; margins are `audit.margins`.

    A rule is breached by a checkpoint whose reading of the monitor half is fried; `patience` breaches in a row, of one rule,
    are an alarm. `warn` says so; `stop` ends the stage; `rollback` ends it and goes on with the checkpoint worth keeping.
    """

    warn: list[str] = []
    stop: list[str] = []
    rollback: list[str] = []
    patience: int = Field(default=2, gt=0, description="consecutive breaches of one rule")
    severity: float = Field(default=0.0, ge=0, description="nats/token over the base that are enough to keep a checkpoint")
    probe_every: int | None = Field(default=10, gt=0, description="steps between cheap probes in the trainer; null: none")

    @field_validator("warn", "stop", "rollback")
    @classmethod
    def _known_rules(cls, rules: list[str]) -> list[str]:
        known = [f"{name}.{m.name}" for name in MEASURES for m in measures.metrics(name).values() if m.worse]
        for rule in rules:
            if _full(rule) not in known:
                raise ValueError(f"there is no rule {rule!r}: no such metric can breach a margin{nearest(rule, known)}")
        return rules

    @model_validator(mode="after")
    def _one_action(self) -> "MonitorPlan":
        every = [_full(rule) for rule in (*self.warn, *self.stop, *self.rollback)]
        twice = next((rule for rule in every if every.count(rule) > 1), None)
        if twice:
            raise ValueError(f"{twice} is named twice; give a rule one action")
        return self

    def rules(self) -> dict[str, str]:
        """`measure.metric` -> action."""
        return {_full(rule): action for action in ("warn", "stop", "rollback") for rule in getattr(self, action)}


@dataclass(frozen=True)
class Alarm:
    """A rule breached `patience` times in a row, the last time by `specimen`. kept: the checkpoint worth keeping, if any."""

    rule: str
    action: str
    specimen: str
    kept: str | None
    text: str


def alarms(plan: MonitorPlan, readings: list[Reading], checkpoints: list[str]) -> list[Alarm]:
    """Alarms of one stage in the order of its checkpoints; nothing is read past one that ends the stage.

    checkpoints: names in order, step 0 first. Checkpoints without a believable reading of a rule's metric neither breach nor
    clear it.
    """
    rules, streak, found = plan.rules(), {}, []
    read = {(r.specimen, f"{r.measure}.{r.metric}"): r for r in readings if r.split == "monitor"}
    for place, name in enumerate(checkpoints):
        for rule, action in rules.items():
            reading = read.get((name, rule))
            if reading is None or reading.verdict == "invalid":
                continue
            streak[rule] = streak.get(rule, 0) + 1 if reading.verdict == "fried" else 0
            if streak[rule] == plan.patience:
                kept = keepable(plan, readings, checkpoints[: place + 1])
                text = f"{rule} is fried on the monitor half at {plan.patience} checkpoints in a row, {name} the last: "
                text += reading.reason
                text += f"; {kept} is worth keeping" if kept else "; no checkpoint has severity enough within the margins"
                found.append(Alarm(rule, action, name, kept, text))
        if any(alarm.action != "warn" for alarm in found):
            break
    return found


def keepable(plan: MonitorPlan, readings: list[Reading], checkpoints: list[str]) -> str | None:
    """The earliest checkpoint with severity enough and no rule's metric fried or invalid, both on the monitor half.

    Enough: at least `plan.severity` above the base, and above it at all by the interval.
    """
    read = {(r.specimen, f"{r.measure}.{r.metric}"): r for r in readings if r.split == "monitor"}
    for name in checkpoints:
        severity = read.get((name, "severity.contrast"))
        strong = severity is not None and severity.delta is not None and severity.delta >= plan.severity
        whole = all((r := read.get((name, rule))) is None or r.verdict not in ("fried", "invalid") for rule in plan.rules())
        if strong and (severity.delta_low or 0) > 0 and whole:
            return name
    return None


def ended(plan: MonitorPlan, readings: list[Reading], checkpoints: list[str]) -> Alarm | None:
    """The alarm that ends the stage, or None."""
    return next((alarm for alarm in alarms(plan, readings, checkpoints) if alarm.action != "warn"), None)


def _full(rule: str) -> str:
    """A measure's name alone means its headline."""
    if rule not in MEASURES:
        return rule
    return f"{rule}.{next(metric.name for metric in measures.metrics(rule).values() if metric.headline)}"
