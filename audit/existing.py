"""Audits a base, or an adapter or a changed model of it, that exists already, into runs/audit-<base>[-<other>]-<digest8>.

Its weights are here or on the hub (Loaded), or behind an endpoint (audit/reached.py).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from audit import judge, profiles, report
from audit import readings as ledger
from audit.config import AuditPlan, check_side_effects
from audit.job import Job
from audit.measures import measure
from audit.reached import Reached
from audit.suite import Place, audit_base, audit_prompted, audit_specimen
from audit.table import show
from audit.verdicts import overall
from organisms import adapters, external, models, weights
from organisms.engines import Engine
from organisms.engines.load import EnginePlan, load
from organisms.errors import UserError
from organisms.files import cache_dir, digest, write_json
from organisms.folders import check_writable, locked
from organisms.render import Renderer
from organisms.served import Address, EndpointPlan, is_endpoint
from organisms.specimen import Specimen


@dataclass(frozen=True)
class Subject:
    """What is audited, by the names a user gives, and the organism that says what to ask.

    model: the base after full fine-tuning or with an adapter merged in, which is read in place of an adapter. Where the base is
    an endpoint, URL#model, either is another name that the same server serves, and tokenizer the base whose tokenizer and
    template the served models have; without one they are asked by messages.
    """

    base: str
    adapter: str | None = None
    organism: str | None = None
    model: str | None = None
    tokenizer: str | None = None

    @property
    def opens(self) -> tuple:
        """What has to be opened for it; equal for subjects that can share it."""
        return self.base, self.tokenizer, bool(self.model)

    @property
    def other(self) -> str | None:
        """What is compared with the base."""
        return self.adapter or self.model

    def __str__(self) -> str:
        by = f" by the tokenizer of {self.tokenizer}" if self.tokenizer else ""
        return " + ".join(part for part in (self.base, self.other) if part) + by


@dataclass(frozen=True)
class Loaded:
    """A base; its weights are loaded when the engine is first asked for, and serve all audits of it."""

    base: models.Base
    plan: EnginePlan = EnginePlan()
    only_hf: bool = False

    @property
    def revision(self) -> str:
        return self.base.revision

    @property
    def parameters(self) -> int | None:
        return models.parameter_count(self.base)

    @property
    def notes(self) -> list[str]:
        return notes(self.base, None)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(models.load_tokenizer(self.base), name=f"base {self.base.name}")

    @cached_property
    def engine(self) -> Engine:
        return load(self.plan, self.base, self.renderer, self.only_hf)

    def lacks(self, request: Any) -> None:
        """An engine that reads weights answers everything."""

    def compared(self, name: str, adapter: str | None, model: str | None) -> tuple[Specimen, str, list[str]]:
        """(specimen, digest of its weights, what to tell of it) of an adapter or a model, once it is seen to fit the base."""
        if adapter:
            found = adapters.prepared(adapters.find(adapter), self.base)
            return Specimen.saved(name, found.directory), found.fingerprint, notes(self.base, found)[len(self.notes) :]
        changed = models.resolve(model)
        weights.check(Path(models.fetched(changed)), self.base)
        told = [f"model {changed.name}: read against {self.base.name}"]
        return Specimen.saved(name, changed.directory), changed.revision, told


def opened(subject: Subject, plan: AuditPlan) -> Loaded | Reached:
    """The base that is audited; no weights are loaded and no endpoint is asked yet. Raises UserError where it is not found."""
    if is_endpoint(subject.base):
        return Reached(Address.parse(subject.base), subject.tokenizer, plan.endpoint or EndpointPlan())
    if subject.tokenizer:
        raise UserError(f"{subject.base} brings its own tokenizer: tokenizer= is for endpoints (https://host/v1#model)")
    return Loaded(models.resolve(subject.base), plan.engine, bool(subject.model))


def audit_existing(subject: Subject, plan: AuditPlan, root: Path, loaded: Loaded | Reached | None = None) -> Path:
    """Audit and report. The training corpus is not known: leakage looks for the names that the organism is known to leak.

    loaded: the base, where an audit before this one has opened it.
    Raises UserError where base, adapter, model or organism is not found, or what is compared with the base does not fit it or
    changes nothing.
    """
    if subject.adapter and subject.model:
        raise UserError(f"{subject}: name an adapter or a model, not both; an adapter on another base is audited with base=")
    for name in plan.measures:
        measure(name)  # a file that is no measure is found here, before anything loads
    loaded = loaded or opened(subject, plan)
    spec = external.load(subject.organism) if subject.organism else None
    if spec:
        check_side_effects(spec)
    kind, specimen, content, told = "adapter" if subject.adapter else "model", None, None, list(loaded.notes)
    if subject.other:
        specimen, content, of_other = loaded.compared(f"{kind}-000001", subject.adapter, subject.model)
        told += of_other
    print("\n".join(f"  {note}" for note in told), flush=True)
    short = "-".join(_last(part) for part in (subject.base, subject.other) if part)
    name = f"audit-{short}-{digest([loaded.revision, content, subject.organism, plan.suite, plan.limit], 8)}"
    run = root / name
    check_writable(cache_dir())
    with locked(run):
        audited = {"base": subject.base, "revision": loaded.revision, "adapter": subject.other, "notes": told}
        write_json(run / "audited.json", audited)
        labels = {"run": name, "recipe": "audit", "organism": subject.organism or "", "style": "", "base": subject.base}
        margins = profiles.margins(plan.purpose or (spec.purpose if spec else "natural"), plan.measures)
        fixed = (run, labels, loaded.revision, plan, loaded.renderer, spec, None, margins, loaded.parameters)
        job = Job(*fixed, judge.load(plan.judge), loaded.lacks)
        print("audit base", flush=True)
        audit_base(job, loaded.engine)
        if specimen:
            audit_prompted(job, loaded.engine)
            print(f"audit {subject.other}", flush=True)
            audit_specimen(job, loaded.engine, specimen, Place(kind, 1))
        everything = ledger.read(run)
        report.write(run)
        show(everything, specimen.name if specimen else "base")
        if specimen:
            print(overall(everything, specimen.name).text)
        print(f"report: {run / 'report.html'}")
        return run


def _last(name: str) -> str:
    """The last part of a path, hub id or address, for the name of a directory."""
    return re.sub(r"[^\w.]+", "_", re.split("[/#]", name.rstrip("/"))[-1])[:60]


def notes(base: models.Base, adapter: adapters.Adapter | None) -> list[str]:
    """What a reader of the numbers should know of the weights."""
    found = [f"base {base.name}: {base.note}"] if base.note else []
    if adapter:
        found.append(f"adapter {adapter.name}: {adapter.told}")
        found += [warning] if (warning := adapter.warning(base)) else []
    return found
