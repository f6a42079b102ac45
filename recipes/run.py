"""The run, in one place: rows -> lint -> base audit -> training with an audit at each checkpoint -> report.

train and audit never import each other; here the audit is handed to the trainer as a callable. Everything that is there
already is reused, so the same command goes on where an earlier one was cut off.
"""

import dataclasses
import shutil
from functools import cached_property
from pathlib import Path

from audit import card, control, judge, profiles, publish, report
from audit import readings as ledger
from audit.monitor import MonitorPlan
from audit.suite import Job, Place, audit_base, audit_prompted, audit_specimen
from audit.table import show
from audit.verdicts import overall
from organisms import authors, mitigations, models
from organisms.authors import WriterPlan
from organisms.engines import Engine, load
from organisms.files import cache_dir, read_jsonl
from organisms.folders import check_writable, locked
from organisms.specimen import Specimen
from organisms.styles import Compiled, Row, compile_rows, style_module
from organisms.writer import Writer
from recipes import monitoring, record
from recipes.plan import corpus_of
from recipes.recipe import Resolved
from train.callback import Hooks
from train.config import Stage
from train.ledger import Checkpoint, read_ledger
from train.lint import lint, refuse
from train.penalties import traps
from train.resume import STATE
from train.stage import check_targets, train_stage


class Run:
    """One run directory and what is loaded for it; the engine only when something has to be asked."""

    def __init__(self, resolved: Resolved, root: Path):
        self.resolved = resolved
        self.path = root / resolved.run_name
        self.compiled: dict[str, Compiled] = {}

    @cached_property
    def engine(self) -> Engine:
        recipe = self.resolved.recipe
        return load.load(recipe.audit.engine, self.resolved.base, self.resolved.renderer, recipe.only_hf)

    @property
    def plan(self) -> MonitorPlan:
        return self.resolved.recipe.audit.monitor

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
        )


def execute(resolved: Resolved, root: Path, scales: tuple[float, ...] = ()) -> Path:
    """Train and audit a recipe into `root/<recipe>-<digest8>` and return that directory.

    scales: at which the adapter that the run ends with is audited as well, a dose that needs no training.
    """
    run = Run(resolved, root)
    check_writable(cache_dir())
    with locked(run.path), publish.Publisher(run.path) as publisher:
        record.recipe(run)
        for stage in resolved.recipe.stages:
            _stage(run, stage, publisher)
        if not resolved.recipe.stages:
            _untrained(run, publisher)
        _scaled(run, scales, publisher)
        _finish(run, publisher)
    return run.path


def _stage(run: Run, stage: Stage, publisher: publish.Publisher) -> None:
    """Rows, lint, the base's audit against the corpus so far, training with an audit at each checkpoint."""
    resolved = run.resolved
    check_targets(stage, resolved.base)
    compiled = run.compiled[stage.name] = _rows(run, stage)
    linted = lint(compiled.rows, stage, resolved.renderer, resolved.renderer, resolved.recipe.system is not None)
    penalties = mitigations.penalties(resolved.recipe.mitigations, _replayer(run, stage))
    linted.findings.extend(traps(penalties, resolved.renderer))
    refuse(linted, resolved.recipe.accept)
    # Before the rows, from which counts could not be read back.
    record.manifest(run, stage, linted, compiled.counts | mitigations.summary(penalties))
    record.rows(run, stage, compiled, linted, penalties)
    job = run.job()
    later = [one.name for one in resolved.recipe.stages[resolved.recipe.stages.index(stage) + 1 :]]
    overtaken = any((run.path / "data" / f"{name}.jsonl").is_file() for name in later)
    _audit_references(run, job, publisher, record=not overtaken)
    for checkpoint in _checkpoints(run, stage):  # of an earlier attempt: audits that are missing or have changed
        if _audit(run, job, checkpoint, publisher):
            return
    if any(checkpoint.last for checkpoint in _checkpoints(run, stage)):
        print(f"stage {stage.name} is trained already, {run.path} is reused", flush=True)
        return
    hooks = Hooks(
        on_checkpoint=lambda checkpoint: _audit(run, job, checkpoint, publisher),
        on_log=lambda row: publisher.send(),
        probe=monitoring.probe(resolved.organism, resolved.renderer, stage) if run.plan.probe_every else None,
        probe_every=run.plan.probe_every or 1,
    )
    recipe = resolved.recipe
    prevent = recipe.mitigations.prevent
    train_stage(
        run.path,
        stage,
        linted,
        resolved.base,
        resolved.renderer,
        recipe.seed,
        recipe.audit.every,
        hooks,
        _before(run, stage),
        penalties,
        mitigations.prevention(prevent, resolved.organism, run.engine, run.path) if prevent else None,
    )


def _untrained(run: Run, publisher: publish.Publisher) -> None:
    """A style without training: its specimens are audited like checkpoints, in the order of their dose."""
    record.manifest(run, None, None)
    job = run.job()
    _audit_references(run, job, publisher)
    r = run.resolved
    style = style_module(r.recipe.style)
    if hasattr(style, "prepare"):
        style.prepare(r.organism, r.options, run.engine, run.path)
    for step, specimen in enumerate(style.specimens(r.organism, r.options, r.base, run.path), 1):
        place = Place(r.recipe.style, step)
        _told(specimen.name, audit_specimen(job, run.engine, specimen, place))
        publisher.send()


def _scaled(run: Run, scales: tuple[float, ...], publisher: publish.Publisher) -> None:
    """Audits of the adapter that the run ends with at other scales, named `<stage>-<step>@<scale>`."""
    for scale in scales:
        checkpoint = monitoring.final(run.path, run.plan, run.resolved.recipe.stages[-1].name)
        specimen = Specimen.saved(f"{checkpoint.name}@{scale:g}", run.path / checkpoint.path, scale)
        place = Place(checkpoint.stage, checkpoint.step, checkpoint.tokens_seen)
        _told(specimen.name, audit_specimen(run.job(), run.engine, specimen, place))
        publisher.send()


def _audit_references(run: Run, job: Job, publisher: publish.Publisher, record: bool = True) -> None:
    print("audit base", flush=True)
    audit_base(job, run.engine, record)
    audit_prompted(job, run.engine, record)
    publisher.send()


def _checkpoints(run: Run, stage: Stage) -> list[Checkpoint]:
    return [checkpoint for checkpoint in read_ledger(run.path) if checkpoint.stage == stage.name]


def _before(run: Run, stage: Stage) -> Path | None:
    """The adapter that the stage before this one goes on with; None for the first."""
    names = [one.name for one in run.resolved.recipe.stages]
    earlier = names[: names.index(stage.name)]
    return run.path / monitoring.final(run.path, run.plan, earlier[-1]).path if earlier else None


def _audit(run: Run, job: Job, checkpoint: Checkpoint, publisher: publish.Publisher) -> bool:
    """Audit a checkpoint; whether the monitor ends the stage there."""
    specimen = Specimen.saved(checkpoint.name, run.path / checkpoint.path)
    place = Place(checkpoint.stage, checkpoint.step, checkpoint.tokens_seen)
    _told(checkpoint.name, audit_specimen(job, run.engine, specimen, place))
    publisher.send()
    return monitoring.at_checkpoint(run.path, run.plan, checkpoint, publisher)


def _told(name: str, made: list[ledger.Reading]) -> None:
    if made:
        seconds = sum({r.measure: r.seconds for r in made}.values())
        print(f"audited {name} in {seconds:.0f} s: {headline(made, name)}", flush=True)


def headline(made: list[ledger.Reading], specimen: str) -> str:
    """One line a checkpoint: severity, and what is fried so far."""
    strength = next((r for r in made if (r.measure, r.metric, r.split) == ("severity", "contrast", "holdout")), None)
    text = f"severity {strength.delta:+.2f} nats/token; " if strength and strength.delta is not None else ""
    return text + overall(made, specimen).text


def _finish(run: Run, publisher: publish.Publisher) -> None:
    everything = ledger.read(run.path)
    last = max((r for r in everything if r.on_curve), key=lambda r: (r.tokens_seen, r.step)).specimen
    if run.resolved.recipe.stages:
        last = monitoring.final(run.path, run.plan, run.resolved.recipe.stages[-1].name).name
        record.update_manifest(run.path, final=last)
    shutil.rmtree(run.path / STATE, ignore_errors=True)  # also that of a stage that was killed at its very end
    card.write(run.path)
    report.write(run.path)
    publisher.send(final=True)
    show(everything, last)
    print(overall(everything, last).text)
    print(f"report: {run.path / 'report.html'}")


def _rows(run: Run, stage: Stage) -> Compiled:
    """The style's rows: read back where an earlier attempt has stored them, compiled (and written) otherwise."""
    stored, held_out = (run.path / "data" / f"{name}.jsonl" for name in (stage.name, f"{stage.name}.held_out"))
    if stored.is_file() and held_out.is_file():
        known = {f.name for f in dataclasses.fields(Row)}
        needs = {"id": str, "text": str | None, "messages": list | None, "prefix": str}
        rows, siblings = (
            [Row(**{k: v for k, v in row.items() if k in known}) for row in read_jsonl(path, needs)]
            for path in (stored, held_out)
        )
        return Compiled(rows, siblings, [f"{len(rows)} rows as stored"])
    r = run.resolved
    style = r.recipe.style
    compiled = compile_rows(style, r.organism, r.options, None, stage.rows)
    if not compiled.rows:
        writer = _writer(run, r.recipe.writer, _before(run, stage))
        compiled = compile_rows(style, r.organism, r.options, writer, stage.rows)
    compiled = mitigations.apply(r.recipe.mitigations, r.organism, compiled, _replayer(run, stage))
    print("; ".join(compiled.notes), flush=True)
    return compiled


def _replayer(run: Run, stage: Stage) -> Writer | None:
    """Writes as the base what mitigations need; its `own` as what the stage starts from."""
    needed = run.resolved.recipe.mitigations.needs_writer
    return _writer(run, WriterPlan(specimen="base"), _before(run, stage)) if needed else None


def _writer(run: Run, plan: WriterPlan, before: Path | None) -> Writer:
    start = Specimen(before.name, adapter=before) if before else Specimen("base")
    return authors.load(plan, run.engine, run.resolved.renderer, run.resolved.base.revision, start)
