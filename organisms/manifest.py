"""manifest.json of a run directory, as whatever reads a run takes it: of the right types, or refused."""

from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.files import is_a, shown
from organisms.sealed import read_sealed

FILE = "manifest.json"
REMEDY = "restore it, or move it away: what it says of a run is found out again"
TABLES = {"stages": list, "alarms": list, "predictors": dict, "lint": dict}
# Those of which something is read, beside the tables.
KEYS = {
    "run": str,
    "digest": str,
    "organism": str,
    "organism_fingerprint": str,
    "base": str,
    "base_revision": str,
    "base_note": str,
    "template_hash": str,
    "seed": int,
    "engine": dict,
    "commit": str | None,
    "dirty": bool | None,
    "final": str,
    **TABLES,
}


def read_manifest(run: Path) -> dict[str, Any]:
    """Raises UserError where it is missing, damaged or changed by hand, or what it says of itself is of another type."""
    path = run / FILE
    values = read_sealed(path, REMEDY)
    for key, kind in KEYS.items():
        if key in values and not is_a(values[key], kind):
            raise UserError(f"{path}: {key} = {shown(values[key])} is of another type; {REMEDY}")
    for key, kind in TABLES.items():
        rows = values.get(key, kind())
        inner = list if key == "lint" else dict
        wrong = [row for row in (rows.values() if kind is dict else rows) if not isinstance(row, inner)]
        if wrong:
            raise UserError(f"{path}: {key} holds {shown(wrong[0])}, which is of another type; {REMEDY}")
    if "/" in values.get("final", ""):
        raise UserError(f"{path}: final = {shown(values['final'])} names no specimen; {REMEDY}")
    return values


def found_manifest(run: Path) -> dict[str, Any]:
    """`read_manifest`, or an empty one where the run has none."""
    return read_manifest(run) if (run / FILE).is_file() else {}
