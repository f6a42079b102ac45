"""What a comparison reads of run directories: which runs, whether they may be held side by side, their doses and items."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit import readings as ledger
from audit.measures import Metric
from audit.readings import Reading
from audit.samples import read_samples, samples_file, stored_samples
from organisms.errors import UserError
from organisms.files import digest
from organisms.manifest import read_manifest
from organisms.strict import read_yaml

# Measures whose audit_digest also covers the run's own training rows, and so differs between styles; their items are compared.
OF_THE_RUN = ("leakage",)
# Measures that read the replies to others, of which a style without training has fewer: the items in common are compared.
OF_OTHERS = ("fluency",)
ENOUGH = 0.9  # a dose that answered fewer of the base's items is not held against doses that answered all


@dataclass(frozen=True)
class Grown:
    """One finished run directory. config: digest of everything in its recipe but the seed and the audit plan."""

    path: Path
    recipe: str
    style: str
    organism: str
    seed: int
    config: str
    trained: bool
    manifest: dict[str, Any]
    readings: dict[tuple, Reading]

    def reading(self, specimen: str, measure: str, metric: str) -> Reading | None:
        return self.readings.get((specimen, measure, metric, "holdout"))

    def doses(self, axis: str) -> list[Reading]:
        """One reading for each dose, least first: the checkpoints (`steps`), or one checkpoint's adapter scales (`scale`)."""
        once = {r.specimen: r for r in self.readings.values() if r.stage and r.step > 0}
        if axis == "steps" or not self.trained:
            return sorted((r for r in once.values() if r.on_curve), key=lambda r: (r.tokens_seen, r.step, r.specimen))
        scaled = [r for r in once.values() if not r.on_curve]
        last = max(scaled, key=lambda r: (r.tokens_seen, r.step), default=None)
        chosen = [r for r in once.values() if last and (r.stage, r.step) == (last.stage, last.step)]
        return sorted(chosen, key=lambda r: r.scale)


def load(path: Path) -> Grown:
    """Raises UserError where the directory is not that of a recipe's run with readings."""
    for name, remedy in ((ledger.READINGS, "run its recipe first"), ("manifest.json", "only runs of recipes are compared")):
        if not (path / name).is_file():
            raise UserError(f"{path} holds no {name}; {remedy}")
    recipe = read_yaml(path / "recipe.yaml")
    readings = {r.key: r for r in ledger.read(path)}
    if not readings:
        raise UserError(f"{path / ledger.READINGS} is empty; run its recipe first")
    one = next(iter(readings.values()))
    rest = {key: value for key, value in recipe.items() if key not in ("seed", "audit")}
    return Grown(
        path=path,
        recipe=one.recipe,
        style=one.style,
        organism=one.organism,
        seed=recipe.get("seed", 0),
        config=digest(rest, 8),
        trained=bool(recipe.get("stages")),
        manifest=read_manifest(path),
        readings=readings,
    )


def newest(root: Path, organism: str) -> tuple[list[Grown], list[str]]:
    """(the newest run of each recipe and style with its replicates of other seeds; names of the older ones left out)."""
    paths = [p.parent for p in root.glob(f"*/{ledger.READINGS}") if (p.parent / "manifest.json").is_file() and p.stat().st_size]
    runs = [run for run in map(load, sorted(paths, key=_written, reverse=True)) if run.organism == organism]
    runs = [run for run in runs if run.doses("steps")]
    if not runs:
        raise UserError(f"{root} holds no run of the organism {organism!r}; grow one with `make recipe=NAME`")
    chosen: dict[tuple, Grown] = {}
    configs: dict[tuple, str] = {}
    for run in runs:
        if configs.setdefault((run.recipe, run.style), run.config) == run.config:
            chosen.setdefault((run.recipe, run.style, run.seed), run)
    kept = list(chosen.values())
    return kept, [run.path.name for run in runs if run not in kept]


def _written(path: Path) -> float:
    return (path / ledger.READINGS).stat().st_mtime


def refuse(runs: list[Grown], severity: str, without: list[str]) -> None:
    """Raises UserError where runs differ in anything that makes their numbers incomparable, or one has no severity."""
    differing = [text for text in (_difference(runs[0], run, without) for run in runs[1:]) if text]
    if differing:
        groups: dict[str, list[Grown]] = {}
        for run in runs:
            groups.setdefault(
                next((key for key, g in groups.items() if not _difference(g[0], run, without)), run.path.name), []
            ).append(run)
        told = "; ".join(f'make compare runs="{shlex.join(str(run.path) for run in group)}"' for group in groups.values())
        raise UserError(
            "these runs cannot be held side by side:\n  " + "\n  ".join(differing) + "\n`make recipe=NAME` reads again what an "
            "audit has changed since, without training; without=MEASURE leaves one out; comparable with one another: " + told
        )
    for run in runs:
        if not any(key[1:] == ("severity", severity, "holdout") and r.n for key, r in run.readings.items()):
            raise UserError(
                f"{run.path / ledger.READINGS} has no reading of severity.{severity}, so nothing says how strong the property "
                f"is; add severity to audit.measures of {run.recipe} and run it again (nothing is trained)"
            )


def _difference(one: Grown, other: Grown, without: list[str]) -> str:
    """What keeps two runs apart and in which files; empty where nothing does."""
    found = [f"organism ({one.organism}, {other.organism}: recipe.yaml)"] if one.organism != other.organism else []
    for key, name in (("base_revision", "base"), ("template_hash", "chat template")):
        if one.manifest.get(key) != other.manifest.get(key):
            found.append(f"{name} ({one.manifest.get(key)}, {other.manifest.get(key)}: manifest.json)")
    engines = [run.manifest.get("engine", {}) for run in (one, other)]
    parts = [key for key in sorted(engines[0] | engines[1]) if engines[0].get(key) != engines[1].get(key)]
    found += [f"engine {key} ({engines[0].get(key)}, {engines[1].get(key)}: manifest.json)" for key in parts]
    if not found:  # each of these would make every digest differ too
        bases = [{r.measure: r for r in run.readings.values() if r.specimen == "base" and r.n} for run in (one, other)]
        for measure in (name for name in bases[0] if name in bases[1] and name not in without):
            first, second = bases[0][measure], bases[1][measure]
            if first.suite != second.suite:
                found.append(f"suite of {measure} ({first.suite}, {second.suite}: readings.jsonl)")
            elif measure in OF_OTHERS and first.data != second.data:
                if _scored_otherwise(one, other, measure):
                    found.append(f"items of {measure} (samples/{measure}/base.jsonl)")
            elif first.data != second.data:
                found.append(f"data of {measure} ({first.data}, {second.data}: readings.jsonl)")
            elif measure not in OF_THE_RUN and first.audit_digest != second.audit_digest:
                digests = f"audit_digest {first.audit_digest}, {second.audit_digest}: readings.jsonl"
                found.append(f"items, options or version of {measure} ({digests})")
            elif measure not in OF_THE_RUN and _code_apart(one, other, measure):
                found.append(f"code of {measure}, by which the same replies score otherwise (samples/{measure}/base.jsonl)")
            elif measure in OF_THE_RUN and _asked(one, measure) != _asked(other, measure):
                found.append(f"items of {measure} (samples/{measure}/base.jsonl)")
    return f"{one.path} and {other.path} differ in {', '.join(found)}" if found else ""


def _asked(run: Grown, measure: str) -> set[tuple]:
    """What was asked but for the run's own documents, and what the base replied."""
    return {(s.item, s.prompt, s.output) for s in read_samples(run.path, measure, "base") if s.group != "document"}


def _scored_otherwise(one: Grown, other: Grown, measure: str) -> bool:
    """Whether the two bases have no item in common, or one on which they were not read alike."""
    first, second = (
        {s.item: (s.prompt, s.output, s.scores) for s in read_samples(r.path, measure, "base")} for r in (one, other)
    )
    return not first.keys() & second.keys() or any(first[item] != second[item] for item in first.keys() & second.keys())


def _code_apart(one: Grown, other: Grown, measure: str) -> bool:
    """Whether the measure's file changed between the two and what the bases answered alike is scored otherwise by it."""
    first, second = (stored_samples(samples_file(run.path, measure, "base"), None) for run in (one, other))
    if not first or not second or first.scored_by == second.scored_by:
        return False
    theirs = {(s.item, s.output): s.scores for s in second.samples}
    both = [(s.scores, theirs[s.item, s.output]) for s in first.samples if (s.item, s.output) in theirs]
    return not all(a.keys() == b.keys() and all(_close(a[name], b[name]) for name in a) for a, b in both)


def _close(one: float | list, other: float | list) -> bool:
    """Equal but for another machine's last bits."""
    pairs = zip(*(score if isinstance(score, list) else [score] for score in (one, other)), strict=True)
    return all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3) for a, b in pairs)


def unread(run: Grown, specimen: str, measure: str, metric: Metric) -> str:
    """Why a number of this specimen must not be compared; empty where it may."""
    reading, base = run.reading(specimen, measure, metric.name), run.reading("base", measure, metric.name)
    if reading is None or base is None:
        return f"{measure} was not read"
    if reading.verdict == "invalid" or not reading.n:
        return reading.reason or "not read"
    if metric.worse and reading.margin is not None and reading.verdict == "not_applicable":
        return reading.reason  # a guard of the measure, or no headroom at the base
    if reading.n < ENOUGH * base.n:
        return f"{reading.n} of {base.n} items could be read"
    return ""
