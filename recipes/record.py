"""What a run writes down of itself: the recipe as run, the manifest with what predicts frying, the rows as trained."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from organisms import mitigations
from organisms.errors import UserError
from organisms.files import write_atomic, write_jsonl
from organisms.manifest import FILE, REMEDY, found_manifest, read_manifest
from organisms.sealed import check_sealed_text, write_sealed, write_sealed_text
from organisms.specimen import Specimen
from organisms.styles import Compiled
from train.config import Stage
from train.lint import Linted
from train.lint import report as lint_report
from train.manifest import OTHER_PACKAGES, TRAINING_PACKAGES, commit, environment, predictors, versions

if TYPE_CHECKING:
    from recipes.run import Run


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


def manifest(run: "Run", stage: Stage | None, linted: Linted | None, written: dict | None = None) -> None:
    """manifest.json, with what predicts frying of each stage as it begins; written once a stage."""
    path = run.path / FILE
    values = found_manifest(run.path) or _manifest(run)
    if values["engine"] != run.engine.identity:
        print(f"another engine than before: the base and every checkpoint are read again with {run.engine.identity['engine']}")
        values["engine"] = run.engine.identity
        write_sealed(path, values)
    if stage is None or stage.name not in values["predictors"]:
        if stage is not None and linted is not None:
            values["predictors"][stage.name] = {
                **predictors(stage, linted, stage.steps or 0),
                **on_policy(run, stage, linted),
            }
            values.setdefault("written", {})[stage.name] = written
            values["lint"][stage.name] = [dataclasses.asdict(f) for f in linted.findings]
        write_sealed(path, values)


def update_manifest(run: Path, **changes: object) -> None:
    write_sealed(run / FILE, {**read_manifest(run), **changes})


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
        "engine": run.engine.identity,
        "stages": [stage.model_dump() for stage in r.recipe.stages],
        "writer": {"name": r.recipe.writer.name, "identity": r.recipe.writer.identity()},
        "predictors": {},
        "lint": {},
        "versions": versions(TRAINING_PACKAGES + OTHER_PACKAGES),
        "environment": environment(),
        **commit(),
    }


def on_policy(run: "Run", stage: Stage, linted: Linted, sample: int = 16) -> dict:
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
