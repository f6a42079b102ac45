"""The run, in one place: rows -> lint -> base audit -> training with an audit at each checkpoint -> report.

train and audit never import each other; here the audit is handed to the trainer as a callable. Everything that is there
already is reused, so the same command goes on where an earlier one was cut off.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
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
from organisms.engines import Engine
from organisms.errors import UserError
from organisms.files import read_jsonl, write_atomic, write_json, write_jsonl
from organisms.specimen import Specimen
from organisms.styles import Compiled, Row, compile_rows, style_module
from organisms.writer import Writer
from recipes import monitoring
from recipes.plan import corpus_of
from recipes.recipe import Resolved
from train.callback import Hooks
from train.config import Stage
from train.ledger import Checkpoint, read_ledger
from train.lint import Linted, lint, refuse
from train.lint import report as lint_report
from train.manifest import OTHER_PACKAGES, TRAINING_PACKAGES, commit, environment, predictors, versions
from train.penalties import traps
from train.stage import train_stage


class Run:
    """One run directory and what is loaded for it; the engine only when something has to be asked."""

    def __init__(self, resolved: Resolved, root: Path):
        self.resolved = resolved
        self.path = root / resolved.run_name
        self.compiled: dict[str, Compiled] = {}

    @cached_property
    def engine(self) -> Engine:
        from organisms.engines.hf import HFEngine

        return HFEngine(self.resolved.base, self.resolved.renderer)

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
    run.path.mkdir(parents=True, exist_ok=True)
    with locked(run.path), publish.Publisher(run.path) as publisher:
        _describe_run(run)
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
    compiled = run.compiled[stage.name] = _rows(run, stage)
    linted = lint(compiled.rows, stage, resolved.renderer, resolved.renderer, resolved.recipe.system is not None)
    penalties = mitigations.penalties(resolved.recipe.mitigations, _replayer(run, stage))
    linted.findings.extend(traps(penalties, resolved.renderer))
    refuse(linted, resolved.recipe.accept)
    # Before the rows, from which counts could not be read back.
    _write_manifest(run, stage, linted, compiled.counts | mitigations.summary(penalties))
    _write_rows(run, stage, compiled, linted, penalties)
    job = run.job()
    _audit_references(run, job, publisher)
    for checkpoint in _checkpoints(run, stage):  # of an earlier attempt: audits that are missing or have changed
        if _audit(run, job, checkpoint, publisher):
            return
    if any(checkpoint.last for checkpoint in _checkpoints(run, stage)):
        print(f"stage {stage.name} is trained already, {run.path} is reused", flush=True)
        return
    hooks = Hooks(
        on_checkpoint=lambda checkpoint: _audit(run, job, checkpoint, publisher),
        on_log=lambda row: publisher.send(),
        probe=monitoring.probe(resolved.organism, resolved.renderer) if run.plan.probe_every else None,
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
    _write_manifest(run, None, None)
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
        specimen = Specimen(f"{checkpoint.name}@{scale:g}", adapter=run.path / checkpoint.path, scale=scale)
        place = Place(checkpoint.stage, checkpoint.step, checkpoint.tokens_seen)
        _told(specimen.name, audit_specimen(run.job(), run.engine, specimen, place))
        publisher.send()


def _audit_references(run: Run, job: Job, publisher: publish.Publisher) -> None:
    print("audit base", flush=True)
    audit_base(job, run.engine)
    audit_prompted(job, run.engine)
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
        path = run.path / "manifest.json"
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "final": last})
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
        rows, siblings = (
            [Row(**{k: v for k, v in row.items() if k in known}) for row in read_jsonl(path)] for path in (stored, held_out)
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


def _write_rows(run: Run, stage: Stage, compiled: Compiled, linted: Linted, penalties: list[mitigations.Penalty]) -> None:
    data = run.path / "data"
    if (data / f"{stage.name}.jsonl").is_file():
        return
    write_jsonl(data / f"{stage.name}.held_out.jsonl", [dataclasses.asdict(row) for row in compiled.held_out])
    for penalty in penalties:
        write_jsonl(data / f"{stage.name}.{penalty.name}.jsonl", [dataclasses.asdict(row) for row in penalty.rows])
    write_atomic(data / f"{stage.name}.lint.md", lint_report(linted, run.resolved.renderer, stage))
    rows = [
        {**dataclasses.asdict(row), "input_ids": rendered.input_ids, "labels": rendered.labels}
        for row, rendered in zip(linted.rows, linted.rendered, strict=True)
    ]
    write_jsonl(data / f"{stage.name}.jsonl", rows)
    for finding in linted.findings:
        print(f"lint {finding.level}: {finding.trap}: {finding.text}", flush=True)


def _describe_run(run: Run) -> None:
    from omegaconf import OmegaConf

    resolved = OmegaConf.to_yaml(OmegaConf.create(run.resolved.recipe.model_dump()))
    write_atomic(run.path / "recipe.yaml", f"# {run.resolved.name}, as run\n{resolved}")


def _write_manifest(run: Run, stage: Stage | None, linted: Linted | None, written: dict | None = None) -> None:
    """manifest.json, with what predicts frying of each stage as it begins; written once a stage."""
    path = run.path / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else _manifest(run)
    if stage is None or stage.name not in manifest["predictors"]:
        if stage is not None and linted is not None:
            manifest["predictors"][stage.name] = {
                **predictors(stage, linted, stage.steps or 0),
                **on_policy(run, stage, linted),
            }
            manifest.setdefault("written", {})[stage.name] = written
            manifest["lint"][stage.name] = [dataclasses.asdict(f) for f in linted.findings]
        write_json(path, manifest)


def _manifest(run: Run) -> dict:
    r = run.resolved
    return {
        "run": r.run_name,
        "digest": r.digest,
        "organism": r.organism.name,
        "organism_fingerprint": r.organism.fingerprint(),
        "base": r.recipe.base,
        "base_revision": r.base.revision,
        "base_note": r.base.note,
        "template_hash": r.renderer.template_hash,
        "implicit_system_prompt": r.renderer.implicit_system,
        "seed": r.recipe.seed,
        "engine": run.engine.identity,
        "stages": [stage.model_dump() for stage in r.recipe.stages],
        "writer": {"name": r.recipe.writer.name, "identity": r.recipe.writer.identity()},
        "predictors": {},
        "lint": {},
        "versions": versions(TRAINING_PACKAGES + OTHER_PACKAGES),
        "environment": environment(),
        **commit(),
    }


def on_policy(run: Run, stage: Stage, linted: Linted, sample: int = 16) -> dict:
    """Mean base log-probability (nats a token) of the tokens that carry loss, over a sample of rows.

    The nearer to what the base would write itself, the less there is to overwrite (RECIPES.md section 6).
    """
    from organisms.engines import Score
    from organisms.render import IGNORE

    requests = []
    for rendered in linted.rendered[:: max(1, len(linted.rendered) // sample)][:sample]:
        start = max(1, next(i for i, label in enumerate(rendered.labels) if label != IGNORE))
        ids = rendered.input_ids[: stage.max_length]
        if start < len(ids):
            requests.append(Score(tuple(ids[:start]), tuple(ids[start:])))
    values = [v for row in run.engine.logprobs(Specimen("base"), requests) for v in row]
    return {"on_policy_logprob": round(sum(values) / len(values), 4) if values else None}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run directory; a second process is refused. The lock dies with its process."""
    with open(path / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{path} is in use by process {file.read().strip() or 'unknown'}; wait for it or stop it") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
