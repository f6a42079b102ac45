"""The matched control's own drift as the margin of drift: as much training on benign text says how much is harmless."""

from pathlib import Path

from audit import readings as ledger
from audit.config import AuditPlan
from audit.measures import metrics
from organisms.errors import UserError
from organisms.manifest import read_manifest
from organisms.strict import read_yaml

# What a control must share with a run to be its matched control.
SAME_MANIFEST = ("base_revision", "template_hash", "stages")


def margins(run: Path, plan: AuditPlan) -> dict[str, tuple[float | None, str]]:
    """`drift.*` -> (upper bound of the control's own drift at its last checkpoint, the control's name).

    An empty dict where there is no matched control; the readings then say so. The control itself gets none.
    """
    found = _find(run, plan)
    if found is None:
        return {}
    readings = [
        r
        for r in ledger.read(found)
        if r.measure == "drift" and r.split == "holdout" and r.on_curve and r.delta_high is not None
    ]
    last = max(((r.tokens_seen, r.step) for r in readings), default=None)  # each stage counts its steps anew
    names = {name for name, metric in metrics("drift").items() if metric.worse}
    return {
        f"drift.{r.metric}": (max(r.delta_high, 1e-6), f"control {found.name}")
        for r in readings
        if (r.tokens_seen, r.step) == last and r.metric in names and r.suite == plan.suite
    }


def _find(run: Path, plan: AuditPlan) -> Path | None:
    if plan.control is not None:
        path = Path(plan.control)
        if not (path / ledger.READINGS).is_file():
            raise UserError(f"audit.control: {path} holds no readings.jsonl; name the run directory of a control")
        return path
    mine = _facts(run)
    if mine is None or mine["style"] == "control":
        return None
    candidates = [
        other
        for other in run.parent.glob("*")
        if other != run and (other / ledger.READINGS).is_file() and (facts := _facts(other)) and facts["style"] == "control"
        if all(facts[key] == mine[key] for key in SAME_MANIFEST)
    ]
    return max(candidates, key=lambda path: (path / ledger.READINGS).stat().st_mtime, default=None)


def _facts(run: Path) -> dict | None:
    """Style from recipe.yaml and what must match from manifest.json; None where they are not there or damaged."""
    try:
        manifest, recipe = read_manifest(run), read_yaml(run / "recipe.yaml")
    except UserError:
        return None
    return {"style": recipe.get("style"), **{key: manifest.get(key) for key in SAME_MANIFEST}}
