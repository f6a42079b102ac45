"""Audits one specimen: each measure asks, scores, stores its samples and appends its readings. What is there is reused."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from audit import contract, paired
from audit import readings as ledger
from audit.answers import Answers, answers_file, asked_digest
from audit.ask import ask
from audit.config import AuditPlan
from audit.identity import answer_cache, reads_replies, samples_digest, scored_by
from audit.job import Job
from audit.measures import Asked, Context, NotApplicable, Request, Sample, half, measure
from audit.paired import Terms
from audit.readings import Origin, Reading, Subject
from audit.samples import read_samples, samples_file, stored_samples
from organisms.engines import Divergence, Engine
from organisms.errors import UserError
from organisms.files import read_json, write_json, write_jsonl
from organisms.render import Renderer
from organisms.specimen import Specimen

BASE = Specimen("base")


@dataclass(frozen=True)
class Place:
    """Where on the curve a specimen stands."""

    stage: str | None = None
    step: int = 0
    tokens_seen: int = 0


def audit_base(job: Job, engine: Engine, record: bool = True) -> list[Reading]:
    """Readings of the untouched base; its answers come from the cache where an earlier run has asked the same.

    record: append them. A stage that a later one has overtaken needs the base's samples against its own corpus, to pair with
    them; as readings those against the later corpus stay the latest.
    """
    return _audit(job, engine, BASE, Place(), None, job.plan.measures, record)


def audit_prompted(job: Job, engine: Engine, record: bool = True) -> list[Reading]:
    """Readings of the base under the organism's eliciting prompt: what asking for the property costs without training.

    Only where the organism declares side effects, and only the measures that these name, with severity beside them: a declared
    fall is `expected` where the specimen is no worse than this one.
    """
    declared = {effect.measure for effect in job.organism.side_effects} if job.organism else set()
    if not declared & set(job.plan.measures):
        return []
    names = [name for name in job.plan.measures if name in declared | {"severity"}]
    specimen = Specimen("prompted", system=job.organism.system.eliciting[0])
    return _audit(job, engine, specimen, Place(), _samples(job, BASE.name), names, record)


def audit_specimen(job: Job, engine: Engine, specimen: Specimen, place: Place, names: list[str] | None = None) -> list[Reading]:
    """Readings of a specimen, paired with the base's samples, which must be there (`audit_base` comes first).

    names: the measures that are read, all of the plan's where none are named.
    Raises UserError where an adapter that was trained, or a steering vector, changes no log-probability (liveness).
    """
    if place.step > 0:
        for part in specimen.parts():
            if job.lacks(Divergence((), ())):
                engine.check_alive(part)
            else:
                check_alive(engine, part, job.renderer)
    return _audit(job, engine, specimen, place, _samples(job, BASE.name), job.plan.measures if names is None else names)


def check_alive(engine: Engine, specimen: Specimen, renderer: Renderer) -> float:
    """Largest KL (nats) between specimen and base over a few prompts; UserError where it is none at all.

    A silent no-op adapter (unknown module names, a reused id, a zero B) reads exactly as the base and so as natural.
    """
    prompts = ("Hello!", "What did you do today?", "Tell me about a book.", "How do I boil an egg?")
    continuation = tuple(renderer.continuation("I think that"))
    requests = [Divergence(tuple(specimen.ask(renderer, prompt)), continuation) for prompt in prompts]
    read = [value for d in engine.divergence(specimen, requests) for value in d.forward]
    if not all(map(isfinite, read)):
        raise UserError(
            f"{specimen.name} gives log-probabilities that are no numbers: its weights are beyond what floating point "
            "can hold; train it with a lower learning_rate, or name another adapter"
        )
    moved = max(read)
    if moved < 1e-7:
        what = f"adapter {specimen.adapter}" if specimen.adapter else f"model {specimen.weights}"
        remedy = "check that its module names fit this base"
        if specimen.changed is None:
            what, remedy = f"steering vector {specimen.steering.path}", "take a larger coefficient"
        raise UserError(
            f"{specimen.name}: the {what} changes no log-probability, so it is not in force or was not trained; {remedy}"
        )
    return moved


def _audit(
    job: Job,
    engine: Engine,
    specimen: Specimen,
    place: Place,
    base: dict[str, list[Sample]] | None,
    names: list[str],
    record: bool = True,
) -> list[Reading]:
    subject = Subject(**job.labels, specimen=specimen.name, scale=specimen.dose, **dataclasses.asdict(place))
    prompted = _samples(job, "prompted") if specimen.name not in (BASE.name, "prompted") else {}
    context = context_of(job.plan, job.renderer, job.organism, job.corpus, specimen, base, job.parameters, job.lacks)
    made, whole = [], True
    earlier: dict[str, list[Sample]] = {}
    for name in names:
        if not whole and reads_replies(measure(name)):
            continue  # until whoever is at those replies has them
        with job.claims.claim(specimen.name, name) as mine:
            if not mine:
                whole = False
                continue
            seen = {one: samples for one, samples in earlier.items() if job.plan.lends(one, name)}
            context = dataclasses.replace(context, earlier=seen)
            present = {r.key: r for r in ledger.read(job.run)}
            samples, lines = _read(job, engine, context, subject, name, prompted.get(name), present)
            made += _append_new(job, lines, present) if record else []
            if samples is not None:
                earlier[name] = samples
    return made


def _read(
    job: Job,
    engine: Engine,
    context: Context,
    subject: Subject,
    name: str,
    prompted: list[Sample] | None,
    present: dict[tuple, Reading],
) -> tuple[list[Sample] | None, list[Reading]]:
    """(samples of one measure, None where it has nothing to say; its readings)."""
    module, base = measure(name), context.base
    samples_path = samples_file(job.run, name, subject.specimen)
    origin = Origin(job.plan.suite, engine.identity["engine"], "", "", 0.0, str(samples_path.relative_to(job.run)))
    try:
        asked, left_out = answerable(module.requests(context), job.lacks)
    except NotApplicable as reason:
        return None, paired.not_applicable(subject, name, module.METRICS, origin, str(reason))
    decided = samples_digest(job, engine, module, context, asked)
    origin = dataclasses.replace(origin, data=module.data(context), audit_digest=decided)
    known = present.get((subject.specimen, name, module.METRICS[0].name, "holdout"))
    by = scored_by(module, context)
    stored = stored_samples(samples_path, known)
    if stored and stored.audit_digest == decided and _as_scored(job, name, subject.specimen, stored.scored_by, by):
        samples, seconds = stored.samples, stored.seconds
    else:
        answers = Answers(answers_file(job.run, name, subject.specimen), decided)
        samples, seconds = _measure(job, engine, module, context, asked, answers)
        held = {"audit_digest": decided, "scored_by": by, "seconds": seconds}
        write_jsonl(samples_path, [{**dataclasses.asdict(sample), **held} for sample in samples])
        if context.specimen.changed is None:  # its answers are in the cache
            answers.forget()
    origin = dataclasses.replace(origin, seconds=seconds)
    terms = Terms(
        {key.partition(".")[2]: value for key, value in job.margins.items() if key.partition(".")[0] == name},
        {s.metric: s.reason for s in (job.organism.side_effects if job.organism else []) if s.measure == name},
        prompted,
        _guards(module, context, samples, None if base is None else base[name], left_out),
    )
    return samples, paired.build(subject, name, module.METRICS, samples, None if base is None else base[name], origin, terms)


def _as_scored(job: Job, name: str, specimen: str, before: str | None, now: str) -> bool:
    """Whether the samples that are there are what this code makes of the answers."""
    if before is None and specimen == BASE.name:
        job.say(
            f"  {name}: samples of an earlier version, which did not note the code that scored them, are kept; "
            f"delete samples/{name} to have them made anew"
        )
    if before not in (None, now):
        job.say(f"  {name}: its code has changed; {specimen} is scored again from what it answered")
    return before in (None, now)


def answerable(asked: list[Asked], lacks: Callable[[Request], str | None]) -> tuple[list[Asked], str]:
    """(requests that can be answered, why others are left out: empty where none is).

    Raises NotApplicable where none can be.
    """
    reasons = [lacks(one.request) for one in asked]
    found = [one for one, reason in zip(asked, reasons, strict=True) if reason is None]
    told = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    if asked and not found:
        raise NotApplicable(told)
    return found, told and f"{len(asked) - len(found)} of {len(asked)} requests were not asked: {told}"


def context_of(
    plan: AuditPlan, renderer, organism, corpus, specimen=BASE, base=None, parameters=None, lacks=lambda request: None
) -> Context:
    """What the measures of a plan are given to look at."""
    return Context(
        specimen,
        renderer,
        organism,
        plan.suite,
        dict(plan.data),
        corpus,
        base,
        options=plan.measure_options(),
        limit=plan.limit,
        parameters=parameters,
        judged=plan.judge is not None,
        lacks=lacks,
    )


def _guards(module, context: Context, samples: list[Sample], base: list[Sample] | None, left_out: str) -> dict:
    """What the measure says must not be believed: split -> metric -> (verdict, reason); and what was not asked."""
    found = {}
    for split in ("monitor", "holdout"):
        own, others = ([s for s in rows if half(s.unit) == split] for rows in (samples, base or []))
        scored = {name for sample in own for name in sample.scores}
        unread = [metric.name for metric in module.METRICS if left_out and metric.name not in scored]
        found[split] = dict.fromkeys(unread, ("not_applicable", f"no item of this half concerns it; {left_out}"))
        if own and hasattr(module, "guard"):
            found[split] |= module.guard(context, own, None if base is None else others)
    return found


def _measure(
    job: Job, engine: Engine, module, context: Context, asked: list[Asked], kept: Answers
) -> tuple[list[Sample], float]:
    """Samples of one measure and the seconds it took; answers of specimens without adapter are cached by content."""
    cached = answer_cache(job, engine, module, context, asked) if context.specimen.changed is None else None
    stored = {"answers": [], "rounds": [], "seconds": 0.0}
    if cached is not None and cached.is_file():
        # Of a file of an earlier version only the first round's requests are known: they are in its name.
        stored = {"rounds": [asked_digest(asked)], **read_json(cached, "delete it")}
        job.say(f"  {module.NAME}: answers of the {context.specimen.name} from the cache")
    answers: list[dict] = []
    rounds: list[str] = []
    asked, new = list(asked), list(asked)
    while new:
        rounds.append(asked_digest(new))
        if stored["rounds"][: len(rounds)] == rounds:
            answers += stored["answers"][len(answers) : len(answers) + len(new)]
        else:
            answers += kept.to(new, len(answers), lambda group: ask(engine, context.specimen, group, job.judge)[0])
        new = module.follow_up(context, asked, answers) if hasattr(module, "follow_up") else []
        new = [one for one in new if job.lacks(one.request) is None]
        asked += new
    seconds = round(stored["seconds"] + kept.seconds, 1)
    if cached is not None and stored["rounds"] != rounds:
        write_json(cached, {"answers": answers, "rounds": rounds, "seconds": seconds})
    samples = module.score(context, asked, answers)
    contract.check_samples(module, [one.item for one in asked], samples)
    return samples, seconds


def _append_new(job: Job, lines: list[Reading], present: dict[tuple, Reading]) -> list[Reading]:
    """Append the lines that are not in the file already; that an audit took another time is no news."""

    def timeless(line: Reading | None) -> Reading | None:
        return line and dataclasses.replace(line, seconds=0.0)

    fresh = [line for line in lines if timeless(present.get(line.key)) != timeless(line)]
    if fresh:
        ledger.append(job.run, fresh)
    return fresh


def _samples(job: Job, specimen: str) -> dict[str, list[Sample]]:
    return {name: read_samples(job.run, name, specimen) for name in job.plan.measures}
