"""Audits what training leaves in a run directory: from another process beside it, or afterwards; alone or with others.

The same steps as of a trainer that audits as it goes, so the same numbers. Everything is read off files, so any of the
processes may die and begin again. Stages come one after the other: the base's leakage is read against the rows of every stage
so far, and nobody begins with the next one's while a checkpoint of this one is still to be held against it.
"""

import time
from functools import partial

from audit import measures
from audit.claims import FOLDER, POLL, being_read
from audit.job import Job
from audit.publish import Publisher
from organisms import locks
from organisms.errors import UserError
from organisms.files import digest
from organisms.folders import LOCK
from organisms.manifest import read_manifest
from recipes import auditing, monitoring, record
from recipes.auditing import Run
from train.config import Stage


class _Patience:
    """Waits between two looks at the run directory and says what for, once."""

    def __init__(self, run: Run):
        self.run = run
        self.recipe = (run.path / "recipe.yaml").read_text(encoding="utf-8")
        self.said = ""

    def wait(self, what: str, trained: bool = True) -> None:
        """trained: the trainer has to bring it about."""
        if (self.run.path / "recipe.yaml").read_text(encoding="utf-8") != self.recipe:
            raise UserError(f"{self.run.path / 'recipe.yaml'} has changed since this process began to audit; start it again")
        if trained and locks.holder(self.run.path / LOCK) is None:
            what += f"; the trainer is not running: make recipe={self.run.resolved.name} (with the same settings) goes on"
        if what != self.said:
            print(what, flush=True)
        self.said = what
        time.sleep(POLL)


def stages(run: Run, publisher: Publisher) -> None:
    """Audit every stage, waiting for what is not trained yet and for what other processes are at."""
    patience = _Patience(run)
    run.compiled.clear()
    everything = run.resolved.recipe.stages
    for stage in everything:
        while (rows := auditing.stored_rows(run, stage)) is None:
            patience.wait(f"waiting for the rows of stage {stage.name}")
        run.compiled[stage.name] = rows
        job = run.job()
        lock, last = run.path / FOLDER / f"{stage.name}.stage.duty", stage is everything[-1]
        with locks.held(lock, shared=True):
            mark = _marked(run, stage)
            if last or mark != _key(job):
                _stage(run, job, stage, publisher, patience, overtaken=not last and mark is not None)
        if not last:
            with locks.held(lock):  # when all others have left the stage
                record.update(run.path, partial(_mark, stage=stage, key=_key(job)))


def _stage(run: Run, job: Job, stage: Stage, publisher: Publisher, patience: _Patience, overtaken: bool) -> None:
    """overtaken: it was audited before, by another plan, and perhaps the next one since."""
    auditing.references(run, job, stage, publisher, record=not overtaken)
    done: set[str] = set()
    judged: set[str] = set()
    while not _over(run, job, stage, publisher, done, judged):
        others = sorted(set(being_read(run.path).values()))
        patience.wait(f"waiting for {', '.join(others) or f'the next checkpoint of stage {stage.name}'}", not others)
    auditing.audit_final(run, job, stage, publisher)


def _over(run: Run, job: Job, stage: Stage, publisher: Publisher, done: set[str], judged: set[str]) -> bool:
    """Audit what is there and free; whether the stage is audited to its end. The monitor judges checkpoints in their order."""
    known, clear = run.checkpoints(stage), True
    for checkpoint in known:
        audit = partial(auditing.audit, run, job, checkpoint, publisher)
        if checkpoint.name not in done and run.claims.completely(audit, wait=False):
            done.add(checkpoint.name)
        clear = clear and checkpoint.name in done
        if clear and checkpoint.name not in judged:
            judged.add(checkpoint.name)
            if monitoring.at_checkpoint(run.path, job.plan, checkpoint, publisher):
                return True
    return clear and bool(known) and known[-1].last


def _key(job: Job) -> str:
    """Digest of what would have a stage audited again."""
    versions = {name: measures.measure(name).VERSION for name in job.plan.measures}
    rules = job.organism.scoring_rules() if job.organism else []
    return digest([job.plan.model_dump(exclude={"mode"}), job.margins, versions, rules], 12)


def _marked(run: Run, stage: Stage) -> str | None:
    return read_manifest(run.path).get("audited", {}).get(stage.name)


def _mark(manifest: dict, stage: Stage, key: str) -> dict:
    return {**manifest, "audited": {**manifest.get("audited", {}), stage.name: key}}
