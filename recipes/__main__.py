"""python -m recipes NAME [key=value ...]: check, train, audit every checkpoint, publish, report."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from organisms.errors import UserError, run_cli

if TYPE_CHECKING:
    from recipes.recipe import Resolved


def main() -> int | None:
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="name of a recipe in recipes/, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", help="a.b=c, e.g. stages[0].learning_rate=1e-4 audit.suite=full")
    parser.add_argument("--base", help="another base: embedded name, directory or hub id")
    parser.add_argument("--check", action="store_true", help="resolve everything, load no weights, train nothing")
    parser.add_argument("--runs", default="runs", type=Path, help="where run directories are kept (default: runs)")
    parser.add_argument("--processes", type=int, help="train in so many processes (default: those of --accelerate, or 1)")
    parser.add_argument("--accelerate", help="how: ddp, fsdp, zero2, zero3, or the path of an accelerate configuration")
    arguments = parser.parse_intermixed_args()

    from recipes.plan import describe, plan
    from recipes.recipe import resolve, shipped
    from train import launcher, processes

    if arguments.recipe is None:
        raise UserError(
            "name a recipe; `python -m recipes NAME --check` (`make check recipe=NAME`) says what it will do and cost"
            f"\nrecipes: {' '.join(shipped())}"
        )
    several = arguments.accelerate or (arguments.processes or 1) > 1
    if several and not arguments.check and not processes.launched():
        return launcher.launch("recipes", sys.argv[1:], arguments.processes, arguments.accelerate)
    resolved = resolve(arguments.recipe, arguments.overrides, arguments.base, planned=arguments.check)
    if not processes.leads():
        return _follow(resolved)
    launch = launcher.planned(arguments.processes, arguments.accelerate) if several and arguments.check else launcher.current()
    found = plan(resolved, launch)
    print("\n".join(describe(resolved, found, launch)), flush=True)
    if not arguments.check:
        from recipes.run import execute

        with processes.together():
            execute(resolved, arguments.runs)
    return None


def _follow(resolved: "Resolved") -> None:
    """Every process but the first only trains."""
    from train import processes
    from train.stage import follow

    with processes.together():
        follow(resolved.base, resolved.renderer)


if __name__ == "__main__":
    run_cli(main)
