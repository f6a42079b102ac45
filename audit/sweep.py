"""Many audits in a row, from a list in audit/sweep_plans/: each base is loaded once, and what is done stays done."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from audit import results
from audit.config import AuditPlan, of_the_plan
from audit.existing import Subject, audit_existing, notes, opened
from audit.measures import Context, NotApplicable, measure, source
from audit.suite import answerable, context_of
from organisms import adapters, external, models
from organisms.engines import abilities
from organisms.engines.api import cost, lacking
from organisms.errors import Missing, UserError
from organisms.files import append_jsonl, digest, read_jsonl
from organisms.render import Renderer
from organisms.served import is_endpoint
from organisms.strict import Strict, Text, nearest, overridden, read_yaml, validate

FOLDER = Path(__file__).parent / "sweep_plans"
OF_ORGANISM = ("severity", "leakage")


class Entry(Strict):
    """Bases as they are, one adapter on a base, or a release of a family (`organisms/library/external/`) over its bases."""

    bases: list[Text] = []
    members: list[Text] = []
    family: str | None = None
    release: str | None = None
    base: str | None = None
    adapter: str | None = None
    organism: str | None = None
    tokenizer: str | None = Field(default=None, description="of bases that are endpoints: the base whose tokenizer they have")

    @model_validator(mode="after")
    def _one_of_three(self) -> "Entry":
        if bool(self.family) != bool(self.release) or (self.members and not self.family):
            raise ValueError("family and release go together, and members belong to them")
        if bool(self.base) == bool(self.family or self.bases):
            raise ValueError("name a base, or bases, or a family with a release")
        return self

    def subjects(self) -> Iterator[Subject]:
        if self.family:
            for one in external.released(self.family, self.release, self.bases, self.members):
                yield Subject(one.base, one.adapter, one.organism)
        else:
            for base in self.bases or [self.base]:
                yield Subject(base, self.adapter, self.organism, tokenizer=self.tokenizer)


class Figure(Strict):
    """x, y: `measure.metric`; x may be `parameters`, of the base."""

    x: Text
    y: Text


class Sweep(Strict):
    about: Text
    audit: AuditPlan = AuditPlan(suite="full")
    figure: Figure
    columns: list[Text] = Field(min_length=1, description="measure.metric, of the results table")
    audits: list[Entry] = Field(min_length=1)

    def subjects(self) -> list[Subject]:
        """All audits, those of one base in a row."""
        found = list(dict.fromkeys(subject for entry in self.audits for subject in entry.subjects()))
        order = list(dict.fromkeys(subject.base for subject in found))
        return sorted(found, key=lambda subject: order.index(subject.base))


class Asks(NamedTuple):
    """Requests of a measure, the tokens that they read and write at most, and what is left out and why."""

    requests: int
    tokens: int
    left_out: str


@dataclass(frozen=True)
class Check:
    """What one audit would ask, and what is not here."""

    subject: Subject
    notes: list[str]
    asked: dict[str, Asks]
    missing: list[str]


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, overrides: list[str] = ()) -> tuple[str, Sweep]:
    """(short name, sweep) of a shipped one or a YAML path. Raises UserError naming file, line and key."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and not path.is_file():
        raise UserError(f"there is no sweep {name!r} in audit/sweep_plans/{nearest(name, shipped())} (a path works too)")
    values = overridden(read_yaml(path), [f"audit.{override}" for override in of_the_plan(overrides)], str(path))
    return path.stem, validate(Sweep, values, str(path), path)


def check(subjects: list[Subject], plan: AuditPlan) -> Iterator[Check]:
    """Each audit as far as it is known without weights; what is out of reach is told, any other mistake raised.

    Of an endpoint nothing is asked but what it can do.
    """
    counted: dict[tuple, Asks] = {}
    for subject in subjects:
        missing: list[str] = []
        known = _behind_endpoint(subject, plan, missing) if is_endpoint(subject.base) else _here(subject, missing)
        spec = external.load(subject.organism) if subject.organism else None
        context = context_of(plan, known.renderer, spec, None, parameters=known.parameters, lacks=known.lacks)
        asked = {}
        for name in plan.measures:
            key = (known.place, context.parameters, name, subject.organism if name in OF_ORGANISM else None)
            if key not in counted:
                counted[key] = _asks(name, context)
            asked[name] = counted[key]
        yield Check(subject, known.notes if not missing else [], asked, missing)


@dataclass(frozen=True)
class Known:
    """A base without its weights; place: equal for bases whose requests are the same."""

    renderer: Renderer
    parameters: int | None
    notes: list[str]
    place: Any
    lacks: Callable[[Any], str | None] = lambda request: None


def _here(subject: Subject, missing: list[str]) -> Known:
    found = _or_missing(models.resolve, subject.base, missing) or models.stand_in(subject.base)
    adapter = _or_missing(adapters.find, subject.adapter, missing) if subject.adapter else None
    if subject.model:
        _or_missing(models.resolve, subject.model, missing)
    renderer = Renderer(models.load_tokenizer(found), name=f"base {subject.base}")
    return Known(renderer, models.parameter_count(found), notes(found, adapter), found.directory)


def _behind_endpoint(subject: Subject, plan: AuditPlan, missing: list[str]) -> Known:
    reached = opened(subject, plan)
    if subject.tokenizer and _or_missing(models.described, subject.tokenizer, missing) is None:
        reached = replace(reached, tokenizer=models.EMBEDDED)  # counted by, and not asked with
        able = abilities.assumed(reached.renderer)
    else:
        able = reached.planned(missing)
    if subject.other:
        abilities.check_served(reached.engine.endpoint, able.served, subject.other)
    lacks = partial(lacking, able, reached.renderer)
    return Known(reached.renderer, reached.parameters, reached.told(able), reached.address, lacks)


def _or_missing(find: Any, name: str, missing: list[str]) -> Any:
    try:
        return find(name)
    except Missing:
        missing.append(name)
        return None


def _asks(name: str, context: Context) -> Asks:
    try:
        asked, left_out = answerable(measure(name).requests(context), context.lacks)
    except NotApplicable as reason:
        return Asks(0, 0, str(reason))
    return Asks(len(asked), sum(cost(context.renderer, one.request) for one in asked), left_out)


def describe(checks: list[Check]) -> list[str]:
    """The plan in lines for the terminal, what is missing at the end."""
    lines = []
    for number, one in enumerate(checks, 1):
        lines.append(f"{number:>3}  {one.subject}" + (f"  ({one.subject.organism})" if one.subject.organism else ""))
        lines += [f"     {note}" for note in one.notes]
        if is_endpoint(one.subject.base):
            left_out = {name: asks.left_out for name, asks in one.asked.items() if name != "fluency"}  # which asks nothing
            lines += [f"     {name}: {reason}" for name, reason in left_out.items() if reason]
            tokens = sum(asks.tokens for asks in one.asked.values())
            lines.append(f"     about {tokens:,} tokens read and written at most by each model, follow-up questions apart")
    asked = dict.fromkeys(", ".join(f"{name} {a.requests}" for name, a in one.asked.items() if a.requests) for one in checks)
    lines += [f"asked    {line}" for line in asked if line]
    here = [one for one in checks if not is_endpoint(one.subject.base)]  # of the others it is told above
    unread = [f"{name}: {a.left_out}" for one in here for name, a in one.asked.items() if a.left_out and name != "fluency"]
    lines += [f"unread   {line}" for line in dict.fromkeys(unread)]
    missing = list(dict.fromkeys(name for one in checks for name in one.missing))
    if missing:
        lines.append(f"missing  {len(missing)} are not here, and the hub or the endpoint cannot be reached:")
    return lines + [f"         {name}" for name in missing]


def run(name: str, sweep: Sweep, root: Path) -> list[str]:
    """Go through the audits and rewrite the results after each; returns what failed, one sentence each.

    An audit is done when the ledger holds it with the same plan, measures and their code; what was cut off goes on.
    """
    folder = root / f"sweep-{name}"
    ledger = folder / "sweep.jsonl"
    subjects = sweep.subjects()
    # How an endpoint is asked changes no reading.
    versions = [[measure(name).VERSION, source(name)] for name in sweep.audit.measures]
    plan_digest = digest([sweep.audit.model_dump(exclude={"endpoint"}), versions])
    done = {(row["subject"], row["plan"]) for row in (read_jsonl(ledger, results.ENTRY) if ledger.is_file() else [])}
    loaded = opens = None
    failed = []
    for number, subject in enumerate(subjects, 1):
        if (str(subject), plan_digest) in done:
            continue
        print(f"[{number}/{len(subjects)}] {subject}", flush=True)
        try:
            if loaded is None or opens != subject.opens:
                loaded = None  # the earlier base's memory is free before the next is loaded
                loaded, opens = opened(subject, sweep.audit), subject.opens
            made = audit_existing(subject, sweep.audit, folder, loaded)
        except UserError as error:
            failed.append(f"{subject}: {error}")
            print(f"left out: {error}", flush=True)
            continue
        row = {"subject": str(subject), "base": subject.base, "adapter": subject.adapter, "organism": subject.organism}
        append_jsonl(ledger, [{**row, "run": made.name, "parameters": loaded.parameters, "plan": plan_digest}])
        results.write(folder, sweep.about, sweep.columns, (sweep.figure.x, sweep.figure.y))
    return failed
