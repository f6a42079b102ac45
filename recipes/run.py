"""The run, in one place: rows -> lint -> base audit -> training with an audit at each checkpoint -> report.

train and audit never import each other; here the audit is handed to the trainer as a callable. Everything that is there
already is reused, so the same command goes on where an earlier one was cut off. `audit.mode` says who audits: this process as
it trains (`inline`) or once all stages are trained (`after`), or others beside it (`watch`; recipes/follow.py).
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from audit.claims import POLL, Alone, Shared
from audit.job import Job
from audit.publish import Publisher
from audit.suite import Place, audit_specimen
from organisms import authors, mitigations
from organisms.authors import WriterPlan
from organisms.files import cache_dir
from organisms.folders import check_writable, locked
from organisms.specimen import Specimen
from organisms.styles import Compiled, compile_rows, style_module
from organisms.writer import Writer
from recipes import auditing, follow, monitoring, record
from recipes.auditing import Run
from recipes.recipe import Resolved
from train.callback import Hooks
from train.config import Stage
from train.ledger import Checkpoint
from train.lint import lint, refuse
from train.penalties import traps
from train.resume import STATE
from train.stage import check_targets, train_stage
from train.traps import Linted


def execute(resolved: Resolved, root: Path, scales: tuple[float, ...] = ()) -> Path:
    """Train and audit a recipe into `root/<recipe>-<digest8>` and return that directory.

    scales: at which the adapter that the run ends with is audited as well, a dose that needs no training.
    """
    mode, path = resolved.recipe.audit.mode, root / resolved.run_name
    check_writable(cache_dir())
    claims = Alone() if mode == "inline" else Shared(path)
    run = Run(resolved, root, claims)
    audits = mode != "watch" or bool(scales)
    with locked(path), Publisher(path, mine=lambda: audits and claims.keep("publish")) as publisher:
        record.recipe(run)
        for stage in resolved.recipe.stages:
            _stage(run, stage, publisher)
        if not resolved.recipe.stages:
            _untrained(run, publisher)
        shutil.rmtree(path / STATE, ignore_errors=True)  # also that of a stage that was killed at its very end
        if not audits:
            print(f"trained; what audits it, and ends with its report: make watch run={path}", flush=True)
            return path
        if mode != "inline":
            follow.stages(run, publisher)
        _scaled(run, scales, publisher)
        auditing.finish(run, publisher)
    return path


def _stage(run: Run, stage: Stage, publisher: Publisher) -> None:
    """Rows, lint, the base's audit against the corpus so far, training with an audit at each checkpoint."""
    resolved = run.resolved
    recipe = resolved.recipe
    check_targets(stage, resolved.base)
    _await_audits(run, stage)
    compiled = run.compiled[stage.name] = _rows(run, stage)
    linted = lint(compiled.rows, stage, resolved.renderer, resolved.renderer, recipe.system is not None)
    penalties = mitigations.penalties(recipe.mitigations, _replayer(run, stage))
    linted.findings.extend(traps(penalties, resolved.renderer))
    refuse(linted, recipe.accept)
    # Before the rows, from which counts could not be read back.
    record.manifest(run, stage, linted, compiled.counts | mitigations.summary(penalties))
    record.rows(run, stage, compiled, linted, penalties)
    job = run.job() if recipe.audit.mode == "inline" else None
    if job:
        later = [one.name for one in recipe.stages[recipe.stages.index(stage) + 1 :]]
        overtaken = any((run.path / "data" / f"{name}.jsonl").is_file() for name in later)
        auditing.references(run, job, stage, publisher, record=not overtaken)

    def ends(checkpoint: Checkpoint) -> bool:
        return _audit(run, job, checkpoint, publisher) if job else run.ended(stage)

    known = run.checkpoints(stage)  # of an earlier attempt: audits that are missing or have changed
    if any(ends(checkpoint) for checkpoint in known):
        print(f"stage {stage.name} was ended by the monitor", flush=True)
    elif known and known[-1].last:
        print(f"stage {stage.name} is trained already, {run.path} is reused", flush=True)
    else:
        _train(run, stage, linted, penalties, ends, publisher)
    if job:
        auditing.audit_final(run, job, stage, publisher)


def _train(
    run: Run,
    stage: Stage,
    linted: Linted,
    penalties: list[mitigations.Penalty],
    ends: Callable[[Checkpoint], bool],
    publisher: Publisher,
) -> None:
    resolved = run.resolved
    prevent = resolved.recipe.mitigations.prevent
    steering = mitigations.prevention(prevent, resolved.organism, run.engine, run.path) if prevent else None
    if resolved.recipe.audit.mode != "inline":
        run.release()
    hooks = Hooks(
        on_checkpoint=ends,
        on_log=lambda row: publisher.send(),
        probe=monitoring.probe(resolved.organism, resolved.renderer, stage) if run.plan.probe_every else None,
        probe_every=run.plan.probe_every or 1,
    )
    train_stage(
        run.path,
        stage,
        linted,
        resolved.base,
        resolved.renderer,
        resolved.recipe.seed,
        resolved.recipe.audit.every,
        hooks,
        _before(run, stage),
        penalties,
        steering,
    )


def _untrained(run: Run, publisher: Publisher) -> None:
    """A style without training: its specimens are audited like checkpoints, in the order of their dose."""
    record.manifest(run, None, None)
    job = run.job()
    auditing.references(run, job, None, publisher)
    r = run.resolved
    style = style_module(r.recipe.style)
    if hasattr(style, "prepare"):
        style.prepare(r.organism, r.options, run.engine, run.path)
    for step, specimen in enumerate(style.specimens(r.organism, r.options, r.base, run.path), 1):
        place = Place(r.recipe.style, step)
        auditing.told(specimen.name, audit_specimen(job, run.engine, specimen, place))
        publisher.send()


def _scaled(run: Run, scales: tuple[float, ...], publisher: Publisher) -> None:
    """Audits of the adapter that the run ends with at other scales, named `<stage>-<step>@<scale>`."""
    for scale in scales:
        checkpoint = run.final(run.resolved.recipe.stages[-1])
        specimen = Specimen.saved(f"{checkpoint.name}@{scale:g}", run.path / checkpoint.path, scale)
        place = Place(checkpoint.stage, checkpoint.step, checkpoint.tokens_seen)
        auditing.told(specimen.name, audit_specimen(run.job(), run.engine, specimen, place))
        publisher.send()


def _audit(run: Run, job: Job, checkpoint: Checkpoint, publisher: Publisher) -> bool:
    """Audit a checkpoint; whether the monitor ends the stage there."""
    auditing.audit(run, job, checkpoint, publisher)
    return monitoring.at_checkpoint(run.path, job.plan, checkpoint, publisher)


def _earlier(run: Run, stage: Stage) -> Stage | None:
    """The stage before this one; None for the first."""
    place = run.resolved.recipe.stages.index(stage)
    return run.resolved.recipe.stages[place - 1] if place else None


def _before(run: Run, stage: Stage) -> Path | None:
    """The adapter that the stage before this one goes on with; None for the first."""
    earlier = _earlier(run, stage)
    return run.path / run.final(earlier).path if earlier else None


def _await_audits(run: Run, stage: Stage) -> None:
    """Where others audit and may end a stage, what the next one goes on with is known only when they have read all of it."""
    audit, earlier = run.resolved.recipe.audit, _earlier(run, stage)
    if audit.mode != "watch" or earlier is None or not (audit.monitor.stop or audit.monitor.rollback):
        return
    if not monitoring.settled(run.path, audit, earlier.name):
        print(f"waiting until stage {earlier.name} is audited: make watch run={run.path}", flush=True)
    while not monitoring.settled(run.path, audit, earlier.name):
        time.sleep(POLL)


def _rows(run: Run, stage: Stage) -> Compiled:
    """The style's rows: read back where an earlier attempt has stored them, compiled (and written) otherwise."""
    stored = auditing.stored_rows(run, stage)
    if stored is not None:
        return stored
    r = run.resolved
    style = r.recipe.style
    compiled = compile_rows(style, r.organism, r.options, None, stage.rows)
    if not compiled.rows:
        writer = _writer(run, r.recipe.writer, _before(run, stage))
        compiled = compile_rows(style, r.organism, r.options, writer, stage.rows)
    compiled = mitigations.apply(r.recipe.mitigations, r.organism, compiled, _replayer(run, stage))
    print(compiled.told, flush=True)
    return compiled


def _replayer(run: Run, stage: Stage) -> Writer | None:
    """Writes as the base what mitigations need; its `own` as what the stage starts from."""
    needed = run.resolved.recipe.mitigations.needs_writer
    return _writer(run, WriterPlan(specimen="base"), _before(run, stage)) if needed else None


def _writer(run: Run, plan: WriterPlan, before: Path | None) -> Writer:
    start = Specimen(before.name, adapter=before) if before else Specimen("base")
    return authors.load(plan, run.engine, run.resolved.renderer, run.resolved.base.revision, start)
