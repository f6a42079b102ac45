"""python -m recipes NAME [key=value ...]: check, train, audit every checkpoint, publish, report."""

import argparse
from pathlib import Path

from organisms.errors import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__)
    parser.add_argument("recipe", help="name of a recipe in recipes/, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", help="a.b=c, e.g. stages[0].learning_rate=1e-4 audit.suite=full")
    parser.add_argument("--base", help="another base: embedded name, directory or hub id")
    parser.add_argument("--check", action="store_true", help="resolve everything, load no weights, train nothing")
    parser.add_argument("--runs", default="runs", type=Path, help="where run directories are kept (default: runs)")
    arguments = parser.parse_intermixed_args()

    from recipes.plan import describe, plan
    from recipes.recipe import resolve

    resolved = resolve(arguments.recipe, arguments.overrides, arguments.base, planned=arguments.check)
    found = plan(resolved)
    print("\n".join(describe(resolved, found)), flush=True)
    if not arguments.check:
        from recipes.run import execute

        execute(resolved, arguments.runs)


if __name__ == "__main__":
    run_cli(main)
