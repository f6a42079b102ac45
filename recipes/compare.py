"""python -m recipes.compare: styles of one organism side by side, at matched severity; runs/compare-<organism>-<digest8>/."""

import argparse
import glob
import re
import shlex
from pathlib import Path

from organisms.errors import UserError, run_cli
from organisms.files import digest
from organisms.strict import nearest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.compare", description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path, help="run directories; or --organism")
    parser.add_argument("--organism", help="the newest run of each recipe and seed under --runs")
    parser.add_argument("--named", default="", help="run directories in one text, as `make compare runs=` has them")
    parser.add_argument("--runs", type=Path, help="where run directories are kept (default: runs, or beside those named)")
    parser.add_argument("--axis", choices=("steps", "scale"), default="steps", help="dose along checkpoints or adapter scale")
    parser.add_argument("--severity", choices=("contrast", "rate", "rate_judged"), default="contrast", help="which strength")
    parser.add_argument("--without", nargs="*", default=[], help="measures to leave out")
    parser.add_argument(
        "--at", nargs="*", type=float, help="severities to compare at; without: half and all of the common range"
    )
    arguments = parser.parse_args()
    directories = arguments.directories + named(arguments.named)
    if bool(directories) == bool(arguments.organism):
        raise UserError('say what to compare: organism=NAME or runs="A B"')

    from audit import compare_report, publish_views
    from audit.compare import compare
    from audit.compare_runs import load, newest, refuse
    from audit.config import MEASURES

    for name in arguments.without:
        if name not in MEASURES:
            raise UserError(f"without={name}: there is no such measure{nearest(name, list(MEASURES))}")
    if arguments.at and min(arguments.at) <= 0:
        raise UserError(f"at={min(arguments.at):g}: a severity to compare at lies above 0, the base's own")
    root = arguments.runs or (directories[0].resolve().parent if directories else Path("runs"))
    if arguments.organism:
        runs, left_out = newest(root, arguments.organism)
    else:
        runs, left_out = [load(path) for path in directories], []
    refuse(runs, arguments.severity, arguments.without)
    found = compare(runs, arguments.axis, arguments.severity, arguments.without, arguments.at)
    asked = [sorted(r.path.name for r in runs), arguments.axis, arguments.severity, arguments.without, arguments.at]
    target = root / f"compare-{re.sub(r'[^a-z0-9-]+', '_', runs[0].organism)}-{digest(asked, 8)}"
    compare_report.write(found, target, left_out)
    compare_report.show(found)
    publish_views.compared(target)
    print(f"comparison: {target / 'compare.html'}")


def named(text: str) -> list[Path]:
    """Directories in one text: divided by spaces, quoted as in a shell where they hold spaces, `*` and `?` spelled out.

    A text that is a directory as it stands is that directory.
    """
    if not text.strip() or Path(text).is_dir():
        return [Path(text)] if text.strip() else []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"runs={text}: {error}; quote a directory with spaces, runs=\"'my runs/A' 'my runs/B'\"") from None
    found = []
    for word in words:
        matches = [word] if Path(word).is_dir() else sorted(path for path in glob.glob(word) if Path(path).is_dir())
        if not matches:
            raise UserError(f"runs={text}: there is no directory {word}; quote one with spaces, runs=\"'my runs/A' B\"")
        found += [Path(path) for path in matches]
    return found


if __name__ == "__main__":
    run_cli(main)
