"""Audits a base, or an adapter or a changed model of it, that exists already, into runs/audit-<base>[-<other>]-<digest8>."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from audit import judge, profiles, report
from audit import readings as ledger
from audit.config import AuditPlan
from audit.suite import Job, Place, audit_base, audit_prompted, audit_specimen
from audit.table import show
from audit.verdicts import overall
from organisms import adapters, external, models, weights
from organisms.engines import Engine
from organisms.engines.load import EnginePlan, load
from organisms.errors import UserError
from organisms.files import cache_dir, digest, write_json
from organisms.folders import check_writable, locked
from organisms.render import Renderer
from organisms.specimen import Specimen


@dataclass(frozen=True)
class Subject:
    """What is audited, by the names a user gives, and the organism that says what to ask.

    model: the base after full fine-tuning or with an adapter merged in, which is read in place of an adapter.
    """

    base: str
    adapter: str | None = None
    organism: str | None = None
    model: str | None = None

    @property
    def other(self) -> str | None:
        """What is compared with the base."""
        return self.adapter or self.model

    def __str__(self) -> str:
        return " + ".join(part for part in (self.base, self.other) if part)


@dataclass(frozen=True)
class Loaded:
    """A base; its weights are loaded when the engine is first asked for, and serve all audits of it."""

    base: models.Base
    plan: EnginePlan = EnginePlan()
    only_hf: bool = False

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(models.load_tokenizer(self.base), name=f"base {self.base.name}")

    @cached_property
    def engine(self) -> Engine:
        return load(self.plan, self.base, self.renderer, self.only_hf)


def audit_existing(subject: Subject, plan: AuditPlan, root: Path, loaded: Loaded | None = None) -> Path:
    """Audit and report. The training corpus is not known: leakage looks for the names that the organism is known to leak.

    loaded: the base, where an audit before this one has loaded it.
    Raises UserError where base, adapter, model or organism is not found, or what is compared with the base does not fit it or
    changes nothing.
    """
    if subject.adapter and subject.model:
        raise UserError(f"{subject}: name an adapter or a model, not both; an adapter on another base is audited with base=")
    loaded = loaded or Loaded(models.resolve(subject.base), plan.engine, bool(subject.model))
    found, renderer = loaded.base, loaded.renderer
    spec = external.load(subject.organism) if subject.organism else None
    adapter = adapters.find(subject.adapter) if subject.adapter else None
    if adapter:
        adapter = adapters.prepared(adapter, found)
    changed = models.resolve(subject.model) if subject.model else None
    if changed:
        weights.check(Path(models.fetched(changed)), found)
    told = notes(found, adapter) + ([f"model {changed.name}: read against {found.name}"] if changed else [])
    print("\n".join(f"  {note}" for note in told), flush=True)
    short = "-".join(re.sub(r"[^\w.]+", "_", Path(part).name)[:60] for part in (subject.base, subject.other) if part)
    content = adapter.fingerprint if adapter else changed and changed.revision
    name = f"audit-{short}-{digest([found.revision, content, subject.organism, plan.suite, plan.limit], 8)}"
    run = root / name
    check_writable(cache_dir())
    with locked(run):
        write_json(
            run / "audited.json", {"base": found.name, "revision": found.revision, "adapter": subject.other, "notes": told}
        )
        labels = {"run": name, "recipe": "audit", "organism": subject.organism or "", "style": "", "base": subject.base}
        margins = profiles.margins(plan.purpose or (spec.purpose if spec else "natural"), plan.measures)
        parameters = models.parameter_count(found)
        job = Job(run, labels, found.revision, plan, renderer, spec, None, margins, parameters, judge.load(plan.judge))
        print("audit base", flush=True)
        audit_base(job, loaded.engine)
        specimen = "base"
        if adapter or changed:
            audit_prompted(job, loaded.engine)
            kind = "adapter" if adapter else "model"
            specimen = f"{kind}-000001"
            print(f"audit {subject.other}", flush=True)
            one = Specimen.saved(specimen, adapter.directory if adapter else changed.directory)
            audit_specimen(job, loaded.engine, one, Place(kind, 1))
        everything = ledger.read(run)
        report.write(run)
        show(everything, specimen)
        if subject.other:
            print(overall(everything, specimen).text)
        print(f"report: {run / 'report.html'}")
        return run


def notes(base: models.Base, adapter: adapters.Adapter | None) -> list[str]:
    """What a reader of the numbers should know of the weights."""
    found = [f"base {base.name}: {base.note}"] if base.note else []
    if adapter:
        found.append(f"adapter {adapter.name}: {adapter.told}")
        found += [warning] if (warning := adapter.warning(base)) else []
    return found
