"""What a run writes down of itself: the recipe as run, the manifest with what predicts frying, the rows as trained."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from audit.claims import Alone
from organisms import locks, mitigations, models
from organisms.engines.load import chosen
from organisms.errors import UserError
from organisms.files import read_jsonl, write_atomic, write_jsonl
from organisms.manifest import FILE, REMEDY, found_manifest, read_manifest
from organisms.sealed import check_sealed_text, write_sealed, write_sealed_text
from organisms.specimen import Specimen
from organisms.styles import Compiled
from recipes.recipe import Resolved, resolve
from train.config import Stage
from train.lint import report as lint_report
from train.manifest import OTHER_PACKAGES, TRAINING_PACKAGES, commit, environment, predictors, versions
from train.traps import Linted

if TYPE_CHECKING:
    from recipes.auditing import Run


def rows(run: "Run", stage: Stage, compiled: Compiled, linted: Linted, penalties: list[mitigations.Penalty]) -> None:
    """data/<stage>*: the rows as trained, siblings, the penalties' rows, and what the loss falls on; written once."""
    data = run.path / "data"
    if (data / f"{stage.name}.jsonl").is_file():
        return
    write_jsonl(data / f"{stage.name}.held_out.jsonl", [dataclasses.asdict(row) for row in compiled.held_out])
    for penalty in penalties:
        write_jsonl(data / f"{stage.name}.{penalty.name}.jsonl", [dataclasses.asdict(row) for row in penalty.rows])
    write_atomic(data / f"{stage.name}.lint.md", lint_report(linted, run.resolved.renderer, stage))
    trained = [
        {**dataclasses.asdict(row), "input_ids": rendered.input_ids, "labels": rendered.labels}
        for row, rendered in zip(linted.rows, linted.rendered, strict=True)
    ]
    write_jsonl(data / f"{stage.name}.jsonl", trained)
    for finding in linted.findings:
        print(f"lint {finding.level}: {finding.trap}: {finding.text}", flush=True)


def recipe(run: "Run") -> None:
    """recipe.yaml, every default written out.

    Raises UserError where the one that is there, or the manifest, was changed by hand: nothing would come of it.
    """
    from omegaconf import OmegaConf

    path = run.path / "recipe.yaml"
    if (run.path / FILE).is_file():
        found = read_manifest(run.path)
        if found.get("digest") != run.resolved.digest:
            raise UserError(f"{run.path / FILE} is of the run {found.get('run')}, not of {run.resolved.run_name}; {REMEDY}")
    if path.is_file():
        check_sealed_text(
            path, "a run follows the recipe that it is started with, not this copy: change that one, and delete this"
        )
    resolved = OmegaConf.to_yaml(OmegaConf.create(run.resolved.recipe.model_dump()))
    write_sealed_text(path, f"{run.resolved.name}, as run", resolved)


def resolved(path: Path) -> Resolved:
    """The recipe of a run directory. Raises UserError where this checkout, with these versions, would train another one."""
    named = resolve(str(path / "recipe.yaml"))
    found = dataclasses.replace(named, name=path.name.removesuffix(f"-{named.digest}"))
    if found.run_name != path.name:
        raise UserError(
            f"{path}: its recipe now has the digest {named.digest}, so the organism's texts or a training package has changed "
            "since, or the directory was renamed; run the recipe again and name that run"
        )
    return found


def same_engine(path: Path, resolved: Resolved) -> None:
    """Raises UserError where this process would read a run by another engine than it was read by so far."""
    device = models.default_device()
    engine = chosen(resolved.recipe.audit.engine, resolved.recipe.only_hf)
    now = {"engine": engine, "device": device.split(":")[0], "dtype": models.default_dtype(device)}
    then = found_manifest(path).get("engine", now)
    changed = [f"{key} {then.get(key)}, here {value}" for key, value in now.items() if then.get(key) != value]
    if changed:
        raise UserError(f"{path} was read by another engine ({'; '.join(changed)}); a curve stays on one engine")


def update(run: Path, change: Callable[[dict], dict]) -> None:
    """Rewrite manifest.json, one process at a time: the trainer and those who audit both write into it.

    The lock is on the file, which is a new one each time it is written; `locks.attempt` sees to that.
    """
    path = run / FILE
    with locks.held(path) if path.is_file() else contextlib.nullcontext():  # nobody audits a run without one
        values = found_manifest(run)
        changed = change(copy.deepcopy(values))
        if changed != values:
            write_sealed(path, changed)


def manifest(run: "Run", stage: Stage | None, linted: Linted | None, written: dict | None = None) -> None:
    """manifest.json, with what predicts frying of each stage as it begins; written once a stage."""

    def begun(values: dict) -> dict:
        values = values or _manifest(run)
        if stage is not None and linted is not None and stage.name not in values["predictors"]:
            values["predictors"][stage.name] = predictors(stage, linted, stage.steps or 0)
            values.setdefault("written", {})[stage.name] = written
            values["lint"][stage.name] = [dataclasses.asdict(f) for f in linted.findings]
        return values

    update(run.path, begun)


def audited(run: "Run", stage: Stage | None) -> None:
    """What whoever audits adds to the manifest: its engine, and how near a stage's stored rows are to what the base would say.

    Raises UserError where the run was read by another engine and others may be auditing it.
    """
    manifest = read_manifest(run.path)
    found = {}
    if stage is not None and "on_policy_logprob" not in manifest["predictors"][stage.name]:
        found = on_policy(run, stage)
    identity = run.engine.identity

    def read(values: dict) -> dict:
        if values.get("engine", identity) != identity:
            if not isinstance(run.claims, Alone):
                raise UserError(
                    f"{run.path} was read by another engine: {values['engine']}, here {identity}; a curve stays on one engine: "
                    "audit it where that began, or run its recipe with audit.mode=inline, which reads all of it again"
                )
            print(f"another engine than before: the base and every checkpoint are read again with {identity['engine']}")
        if stage is not None:
            values["predictors"][stage.name] |= found
        return {**values, "engine": identity}

    update(run.path, read)


def _manifest(run: "Run") -> dict:
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
        "stages": [stage.model_dump() for stage in r.recipe.stages],
        "writer": {"name": r.recipe.writer.name, "identity": r.recipe.writer.identity()},
        "predictors": {},
        "lint": {},
        "versions": versions(TRAINING_PACKAGES + OTHER_PACKAGES),
        "environment": environment(),
        **commit(),
    }


def on_policy(run: "Run", stage: Stage, sample: int = 16) -> dict:
    """Mean base log-probability (nats a token) of the tokens that carry loss, over a sample of a stage's stored rows.

    The nearer to what the base would write itself, the less there is to overwrite.
    """
    from organisms.engines import Score
    from organisms.render import IGNORE

    requests = []
    trained = read_jsonl(run.path / "data" / f"{stage.name}.jsonl")
    for row in trained[:: max(1, len(trained) // sample)][:sample]:
        start = max(1, next(i for i, label in enumerate(row["labels"]) if label != IGNORE))
        ids = row["input_ids"][: stage.max_length]
        if start < len(ids):
            requests.append(Score(tuple(ids[:start]), tuple(ids[start:])))
    values = [v for row in run.engine.logprobs(Specimen("base"), requests) for v in row]
    return {"on_policy_logprob": round(sum(values) / len(values), 4) if values else None}
