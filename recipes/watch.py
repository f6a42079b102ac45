"""python -m recipes.watch RUN: audits a run beside its trainer, and shows it as it goes."""

import argparse
from pathlib import Path

from organisms.errors import UserError, run_cli
from organisms.strict import read_yaml


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.watch", description=__doc__)
    parser.add_argument("run", type=Path, help="the run directory, which the trainer's machine may share")
    parser.add_argument("--show", action="store_true", help="only show, audit nothing")
    arguments = parser.parse_args()
    path = Path(arguments.run).resolve()
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{arguments.run} holds no recipe.yaml; name the directory of a run that has begun: run=runs/<name>")
    mode = (read_yaml(path / "recipe.yaml").get("audit") or {}).get("mode", "inline")

    from audit import live

    note = ""
    if mode == "inline" and not arguments.show:
        note = "audit.mode is inline: the trainer audits this run; it is only shown here"
    if note or arguments.show:
        return live.show(path, note)
    if live.terminal():
        return live.show(path, note, worker=["-m", "recipes.watch", str(path)])
    watch(path)
    return 0


def watch(path: Path) -> None:
    """Audit the run to its end, which may be far; then its card, report and table."""
    from audit.claims import FOLDER, Shared
    from audit.publish import Publisher
    from organisms import locks
    from recipes import auditing, follow, record

    resolved = record.resolved(path)
    record.same_engine(path, resolved)
    claims = Shared(path)
    run = auditing.Run(resolved, path.parent, claims)
    with Publisher(path, mine=lambda: claims.keep("publish")) as publisher:
        follow.stages(run, publisher)
        with locks.held(path / FOLDER / "finish.duty"):
            auditing.finish(run, publisher)


if __name__ == "__main__":
    run_cli(main)
