"""Audits a base or an adapter that exists already, into runs/audit-<base>[-<adapter>]-<digest8>."""

import re
from pathlib import Path

from audit import judge, profiles, report
from audit import readings as ledger
from audit.config import AuditPlan
from audit.suite import Job, Place, audit_base, audit_prompted, audit_specimen
from audit.table import show
from audit.verdicts import overall
from organisms import models
from organisms import organism as organisms
from organisms.errors import UserError
from organisms.files import digest
from organisms.render import Renderer
from organisms.specimen import Specimen


def audit_existing(base: str, adapter: str | None, organism: str | None, plan: AuditPlan, root: Path) -> Path:
    """Audit and report; the training corpus is not known, so leakage is not applicable.

    Raises UserError where base, adapter or organism is not found or the adapter changes nothing.
    """
    found = models.resolve(base)
    spec = organisms.load(organism) if organism else None
    directory = Path(adapter).expanduser() if adapter else None
    if directory is not None and not (directory / "adapter_config.json").is_file():
        raise UserError(f"adapter {adapter}: no adapter_config.json there; name the directory of a PEFT adapter")
    renderer = Renderer(models.load_tokenizer(found), name=f"base {base}")
    short = "-".join(re.sub(r"[^\w.]+", "_", Path(part).name) for part in (base, adapter) if part)
    name = (
        f"audit-{short}-{digest([found.revision, str(directory and directory.resolve()), organism, plan.suite, plan.limit], 8)}"
    )
    run = root / name
    run.mkdir(parents=True, exist_ok=True)
    labels = {"run": name, "recipe": "audit", "organism": organism or "", "style": "", "base": base}
    margins = profiles.margins(plan.purpose or (spec.purpose if spec else "natural"), plan.measures)
    parameters = models.parameter_count(found)
    job = Job(run, labels, found.revision, plan, renderer, spec, None, margins, parameters, judge.load(plan.judge))

    from organisms.engines.hf import HFEngine

    engine = HFEngine(found, renderer)
    print("audit base", flush=True)
    audit_base(job, engine)
    if directory is not None:
        audit_prompted(job, engine)
    specimen = "base"
    if directory is not None:
        specimen = "adapter-000001"
        print(f"audit {adapter}", flush=True)
        audit_specimen(job, engine, Specimen(specimen, adapter=directory), Place("adapter", 1))
    everything = ledger.read(run)
    report.write(run)
    show(everything, specimen)
    if directory is not None:
        print(overall(everything, specimen).text)
    print(f"report: {run / 'report.html'}")
    return run
