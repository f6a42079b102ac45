"""What is audited of a run, one function a step: for the trainer that audits as it goes, and for those that follow it."""

import dataclasses
from functools import cached_property
from pathlib import Path

from audit import card, control, judge, profiles, publish, report
from audit import readings as ledger
from audit.claims import Alone, Shared
from audit.job import Job
from audit.monitor import MonitorPlan
from audit.suite import Place, audit_base, audit_prompted, audit_specimen
from audit.table import show
from audit.verdicts import overall
from organisms import models
from organisms.engines import Engine, load
from organisms.files import read_jsonl
from organisms.specimen import Specimen
from organisms.styles import Compiled, Row
from recipes import monitoring
from recipes.plan import corpus_of
from recipes.recipe import Resolved
from recipes.record import audited, update
from train.config import Stage
from train.ledger import Checkpoint, read_ledger


class Run:
    """One run directory and what is loaded for it; the engine only when something has to be asked."""

    def __init__(self, resolved: Resolved, root: Path, claims: Alone | Shared | None = None):
        self.resolved = resolved
        self.path = root / resolved.run_name
        self.claims = claims or Alone()
        self.compiled: dict[str, Compiled] = {}

    @cached_property
    def engine(self) -> Engine:
        recipe = self.resolved.recipe
        return load.load(recipe.audit.engine, self.resolved.base, self.resolved.renderer, recipe.only_hf)

    def release(self) -> None:
        """Let go of the engine; it is loaded again when something has to be asked."""
        self.__dict__.pop("engine", None)

    @property
    def plan(self) -> MonitorPlan:
        return self.resolved.recipe.audit.monitor

    def checkpoints(self, stage: Stage) -> list[Checkpoint]:
        return [checkpoint for checkpoint in read_ledger(self.path) if checkpoint.stage == stage.name]

    def final(self, stage: Stage) -> Checkpoint | None:
        """What a stage goes on with; None before its first checkpoint."""
        return monitoring.final(self.path, self.resolved.recipe.audit, stage.name)

    def ended(self, stage: Stage) -> bool:
        """Whether the monitor has ended a stage."""
        return monitoring.ending(self.path, self.resolved.recipe.audit, stage.name) is not None

    def job(self) -> Job:
        """What is audited against what; the corpus is what every stage so far has trained on."""
        corpus = corpus_of(list(self.compiled.values()))
        r = self.resolved
        labels = {
            "run": r.run_name,
            "recipe": r.name,
            "organism": r.organism.name,
            "style": r.recipe.style,
            "base": r.recipe.base,
        }
        stated = {f"{m}.{k}": (v, "the recipe") for m, values in r.recipe.audit.margins.items() for k, v in values.items()}
        plan = r.recipe.audit
        profile = profiles.margins(plan.purpose or r.organism.purpose, plan.measures)
        return Job(
            self.path,
            labels,
            r.base.revision,
            plan,
            r.renderer,
            r.organism,
            corpus,
            {**profile, **control.margins(self.path, plan), **stated},
            models.parameter_count(r.base),
            judge.load(plan.judge),
            claims=self.claims,
        )


def stored_rows(run: Run, stage: Stage) -> Compiled | None:
    """The rows of a stage as its training has stored them; None where it has not."""
    stored, held_out = (run.path / "data" / f"{name}.jsonl" for name in (stage.name, f"{stage.name}.held_out"))
    if not (stored.is_file() and held_out.is_file()):
        return None
    known = {f.name for f in dataclasses.fields(Row)}
    needs = {"id": str, "text": str | None, "messages": list | None, "prefix": str}
    rows, siblings = (
        [Row(**{k: v for k, v in row.items() if k in known}) for row in read_jsonl(path, needs)] for path in (stored, held_out)
    )
    return Compiled(rows, siblings, [f"{len(rows)} rows as stored"])


def references(run: Run, job: Job, stage: Stage | None, publisher: publish.Publisher, record: bool = True) -> None:
    """The base, and the base that is asked for the property; before any checkpoint, which is held against them.

    record: append their readings; not of a stage that a later one has overtaken.
    """
    audited(run, stage)
    print("audit base", flush=True)
    run.claims.completely(lambda: audit_base(job, run.engine, record))
    run.claims.completely(lambda: audit_prompted(job, run.engine, record))
    publisher.send()


def audit(run: Run, job: Job, checkpoint: Checkpoint, publisher: publish.Publisher) -> None:
    """One checkpoint, by the measures that are due there."""
    names = monitoring.due(run.path, job.plan, checkpoint.stage)[checkpoint.name]
    _audit(run, job, checkpoint, publisher, names)


def audit_final(run: Run, job: Job, stage: Stage, publisher: publish.Publisher) -> None:
    """What a stage goes on with, by every measure: where the monitor has ended the stage, that was no last checkpoint."""
    if job.plan.cadence and run.ended(stage):
        run.claims.completely(lambda: _audit(run, job, run.final(stage), publisher, job.plan.measures))


def _audit(run: Run, job: Job, checkpoint: Checkpoint, publisher: publish.Publisher, names: list[str]) -> None:
    specimen = Specimen.saved(checkpoint.name, run.path / checkpoint.path)
    place = Place(checkpoint.stage, checkpoint.step, checkpoint.tokens_seen)
    told(checkpoint.name, audit_specimen(job, run.engine, specimen, place, names))
    publisher.send()


def told(name: str, made: list[ledger.Reading]) -> None:
    if made:
        seconds = sum({r.measure: r.seconds for r in made}.values())
        print(f"audited {name} in {seconds:.0f} s: {headline(made, name)}", flush=True)


def headline(made: list[ledger.Reading], specimen: str) -> str:
    """One line a checkpoint: severity, and what is fried so far."""
    strength = next((r for r in made if (r.measure, r.metric, r.split) == ("severity", "contrast", "holdout")), None)
    text = f"severity {strength.delta:+.2f} nats/token; " if strength and strength.delta is not None else ""
    return text + overall(made, specimen).text


def finish(run: Run, publisher: publish.Publisher) -> None:
    """Which checkpoint the run ends with; card, report, table."""
    everything = ledger.read(run.path)
    last = max((r for r in everything if r.on_curve), key=lambda r: (r.tokens_seen, r.step)).specimen
    if run.resolved.recipe.stages:
        last = run.final(run.resolved.recipe.stages[-1]).name
        update(run.path, lambda manifest: {**manifest, "final": last})
    card.write(run.path)
    report.write(run.path)
    publisher.send(final=True)
    show(everything, last)
    print(overall(everything, last).text)
    print(f"report: {run.path / 'report.html'}")
