"""python -m recipes.dose RUN SCALE...: audits the adapter that a run ends with at other scales, a dose that needs no training.

Severity and damage against scale are a second dose axis for `make compare axis=scale`. A scale multiplies the adapter's own
scaling: 0 is the base, 1 the checkpoint as trained. What has changed in the audit since is read again first.
"""

import argparse
from pathlib import Path

from organisms.errors import UserError, run_cli
from organisms.manifest import read_manifest
from recipes import record
from recipes.recipe import Resolved


def dose(path: Path, scales: list[float]) -> Path:
    """Append readings at these scales to a finished run, by the suite and the engine that it was read with."""
    from recipes.run import execute

    for scale in scales:
        if not 0 < scale <= 3 or scale == 1:
            raise UserError(
                f"scales={scale:g}: name scales above 0 and up to 3, without 1; 0 is the base and 1 is read already"
            )
    return execute(finished(path), path.parent, tuple(sorted(scales)))


def finished(path: Path) -> Resolved:
    """The recipe of a run that is whole and that this checkout, with these versions and this device, would go on with."""
    if not (path / "manifest.json").is_file():
        raise UserError(f"{path} holds no manifest.json; name the directory of a finished run, e.g. run=runs/<name>")
    manifest = read_manifest(path)
    found = record.resolved(path)
    if not found.recipe.stages:
        raise UserError(f"{path}: the style {found.recipe.style} trains no adapter, so there is none to scale")
    if "final" not in manifest:
        raise UserError(f"{path} is not finished; go on with `make recipe={found.name}`")
    record.same_engine(path, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.dose", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("scales", nargs="*", type=float, default=[0.25, 0.5, 0.75, 1.25, 1.5])
    arguments = parser.parse_args()
    dose(arguments.run, arguments.scales)


if __name__ == "__main__":
    run_cli(main)
