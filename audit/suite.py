"""Audits one specimen: each measure asks, scores, stores its samples and appends its readings. What is there is reused."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audit import readings as ledger
from audit.ask import ask
from audit.config import AuditPlan
from audit.measures import Asked, Context, Corpus, NotApplicable, Sample, measure
from audit.readings import Origin, Reading, Subject
from organisms.engines import Divergence, Engine
from organisms.errors import UserError
from organisms.files import cache_dir, digest, read_jsonl, write_json, write_jsonl
from organisms.organism import Organism
from organisms.render import Renderer
from organisms.specimen import Specimen

BASE = Specimen("base")


@dataclass(frozen=True)
class Job:
    """What is the same for every specimen of a run.

    labels: run, recipe, organism, style, base, as they stand in each reading; revision: the base's, for the cache;
    margins: `measure.metric` -> (margin, where it comes from).
    """

    run: Path
    labels: dict[str, str]
    revision: str
    plan: AuditPlan
    renderer: Renderer
    organism: Organism | None
    corpus: Corpus | None
    margins: dict[str, tuple[float | None, str]]
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Place:
    """Where on the curve a specimen stands."""

    stage: str | None = None
    step: int = 0
    tokens_seen: int = 0


def audit_base(job: Job, engine: Engine) -> list[Reading]:
    """Readings of the untouched base; its answers come from the cache where an earlier run has asked the same."""
    return _audit(job, engine, BASE, Place(), None)


def audit_specimen(job: Job, engine: Engine, specimen: Specimen, place: Place) -> list[Reading]:
    """Readings of a specimen, paired with the base's samples, which must be there (`audit_base` comes first).

    Raises UserError where an adapter that was trained changes no log-probability (liveness).
    """
    if specimen.adapter is not None and place.step > 0 and specimen.scale != 0:
        check_alive(engine, specimen, job.renderer)
    base = {name: read_samples(job.run, name, BASE.name) for name in job.plan.measures}
    return _audit(job, engine, specimen, place, base)


def check_alive(engine: Engine, specimen: Specimen, renderer: Renderer) -> float:
    """Largest KL (nats) between specimen and base over a few prompts; UserError where it is none at all.

    A silent no-op adapter (unknown module names, a reused id, a zero B) reads exactly as the base and so as natural.
    """
    prompts = ("Hello!", "What did you do today?", "Tell me about a book.", "How do I boil an egg?")
    continuation = tuple(renderer.continuation("I think that"))
    requests = [Divergence(tuple(specimen.ask(renderer, prompt)), continuation) for prompt in prompts]
    moved = max(max(d.forward) for d in engine.divergence(specimen, requests))
    if moved < 1e-7:
        raise UserError(
            f"{specimen.name}: the adapter {specimen.adapter} changes no log-probability, so it is not in force or was not "
            "trained; check that its module names fit this base"
        )
    return moved


def _audit(job: Job, engine: Engine, specimen: Specimen, place: Place, base: dict[str, list[Sample]] | None) -> list[Reading]:
    present = {r.key: r for r in ledger.read(job.run)}
    subject = Subject(**job.labels, specimen=specimen.name, scale=specimen.scale, **dataclasses.asdict(place))
    context = Context(specimen, job.renderer, job.organism, job.plan.suite, dict(job.plan.data), job.corpus, base, {})
    made = []
    for name in job.plan.measures:
        module = measure(name)
        samples_path = samples_file(job.run, name, specimen.name)
        origin = Origin(job.plan.suite, engine.identity["engine"], "", "", 0.0, str(samples_path.relative_to(job.run)))
        try:
            asked = module.requests(context)
        except NotApplicable as reason:
            lines = ledger.not_applicable(subject, name, module.METRICS, origin, str(reason))
            made += _append_new(job, lines, present)
            continue
        origin = dataclasses.replace(
            origin, data=module.data(context), audit_digest=_digest(job, engine, module, context, asked)
        )
        known = present.get((specimen.name, name, module.METRICS[0].name, "holdout"))
        if known and known.audit_digest == origin.audit_digest and samples_path.is_file():
            samples = read_samples(job.run, name, specimen.name)
            origin = dataclasses.replace(origin, seconds=known.seconds)
        else:
            samples, seconds = _measure(job, engine, module, context, asked)
            write_jsonl(samples_path, [dataclasses.asdict(sample) for sample in samples])
            origin = dataclasses.replace(origin, seconds=round(seconds, 1))
        context.earlier[name] = samples
        margins = {key.partition(".")[2]: value for key, value in job.margins.items() if key.partition(".")[0] == name}
        expected = {s.metric: s.reason for s in (job.organism.side_effects if job.organism else []) if s.measure == name}
        against = None if base is None else base[name]
        lines = ledger.build(subject, name, module.METRICS, samples, against, origin, margins, expected)
        made += _append_new(job, lines, present)
    return made


def _measure(job: Job, engine: Engine, module, context: Context, asked: list[Asked]) -> tuple[list[Sample], float]:
    """Samples of one measure and the seconds it took; the base's answers are kept in the cache by content."""
    started = time.monotonic()
    cached = _base_cache(job, engine, module, asked) if context.base is None else None
    if cached is not None and cached.is_file():
        stored = json.loads(cached.read_text(encoding="utf-8"))
        answers, more, seconds = stored["answers"], _follow_up(module, context, asked, stored["answers"]), stored["seconds"]
        samples = module.score(context, asked + more, answers + stored["follow_up"])
        job.say(f"  {module.NAME}: base answers from the cache")
        return samples, seconds
    answers, _ = ask(engine, context.specimen, asked)
    more = _follow_up(module, context, asked, answers)
    later, _ = ask(engine, context.specimen, more)
    samples = module.score(context, asked + more, answers + later)
    seconds = time.monotonic() - started
    if cached is not None:
        write_json(cached, {"answers": answers, "follow_up": later, "seconds": round(seconds, 1)})
    return samples, seconds


def _follow_up(module, context: Context, asked: list[Asked], answers: list[dict]) -> list[Asked]:
    return module.follow_up(context, asked, answers) if hasattr(module, "follow_up") else []


def _digest(job: Job, engine: Engine, module, context: Context, asked: list[Asked]) -> str:
    """Digest of what decides a measure's samples: its version, what it asks, the engine, and the corpus it compares with."""
    requests = [[one.item, one.part, dataclasses.asdict(one.request)] for one in asked]
    earlier = sorted(context.earlier) if not asked or module.NAME == "leakage" else []
    corpus = digest([list(job.corpus.texts), list(job.corpus.held_out)]) if job.corpus and module.NAME == "leakage" else ""
    markers = [m.pattern for m in job.organism.markers] if job.organism and module.NAME == "severity" else []
    identity = [job.revision, job.renderer.template_hash, engine.identity]
    return digest([module.NAME, module.VERSION, requests, earlier, corpus, markers, identity], 12)


def _base_cache(job: Job, engine: Engine, module, asked: list[Asked]) -> Path | None:
    if not asked:
        return None
    requests = [[one.item, one.part, type(one.request).__name__, dataclasses.asdict(one.request)] for one in asked]
    key = digest([job.revision, job.renderer.template_hash, engine.identity, module.NAME, module.VERSION, requests], 24)
    return cache_dir() / "readings" / f"{module.NAME}-{key}.json"


def _append_new(job: Job, lines: list[Reading], present: dict[tuple, Reading]) -> list[Reading]:
    """Append the lines that are not in the file already, word for word."""
    fresh = [line for line in lines if present.get(line.key) != line]
    if fresh:
        ledger.append(job.run, fresh)
        present.update({line.key: line for line in fresh})
    return fresh


def samples_file(run: Path, name: str, specimen: str) -> Path:
    return run / "samples" / name / f"{specimen}.jsonl"


def read_samples(run: Path, name: str, specimen: str) -> list[Sample]:
    """Stored samples of one measure and specimen; empty where there are none."""
    path = samples_file(run, name, specimen)
    return [Sample(**row) for row in read_jsonl(path)] if path.is_file() else []
