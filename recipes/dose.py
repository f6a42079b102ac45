"""python -m recipes.dose RUN SCALE...: audits the adapter that a run ends with at other scales, a dose that needs no training.

Severity and damage against scale are a second dose axis for `make compare axis=scale`. A scale multiplies the adapter's own
scaling: 0 is the base, 1 the checkpoint as trained. What has changed in the audit since is read again first.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from organisms import models
from organisms.engines.load import chosen
from organisms.errors import UserError, run_cli
from organisms.manifest import read_manifest
from recipes.recipe import Resolved, resolve


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
    named = resolve(str(path / "recipe.yaml"))
    resolved = replace(named, name=path.name.removesuffix(f"-{named.digest}"))
    if resolved.run_name != path.name:
        raise UserError(
            f"{path}: its recipe now has the digest {named.digest}, so the organism's texts or a training package has changed "
            "since, or the directory was renamed; run the recipe again and name that run"
        )
    if not resolved.recipe.stages:
        raise UserError(f"{path}: the style {resolved.recipe.style} trains no adapter, so there is none to scale")
    if "final" not in manifest:
        raise UserError(f"{path} is not finished; go on with `make recipe={resolved.name}`")
    device = models.default_device()
    engine = chosen(resolved.recipe.audit.engine, resolved.recipe.only_hf)
    engine_then = manifest.get("engine", {})
    now = {"engine": engine, "device": device.split(":")[0], "dtype": models.default_dtype(device)}
    changed = [f"{key} {engine_then.get(key)}, here {value}" for key, value in now.items() if engine_then.get(key) != value]
    if changed:
        raise UserError(f"{path} was read by another engine ({'; '.join(changed)}); a curve stays on one engine")
    return resolved


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.dose", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("scales", nargs="*", type=float, default=[0.25, 0.5, 0.75, 1.25, 1.5])
    arguments = parser.parse_args()
    dose(arguments.run, arguments.scales)


if __name__ == "__main__":
    run_cli(main)
