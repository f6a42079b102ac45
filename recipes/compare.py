"""python -m recipes.compare: styles of one organism side by side, at matched severity; runs/compare-<organism>-<digest8>/."""

import argparse
import re
from pathlib import Path

from organisms.errors import UserError, run_cli
from organisms.files import digest
from organisms.strict import nearest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.compare", description=__doc__)
    parser.add_argument("directories", nargs="*", type=Path, help="run directories; or --organism")
    parser.add_argument("--organism", help="the newest run of each recipe and seed under --runs")
    parser.add_argument("--runs", default="runs", type=Path, help="where run directories are kept (default: runs)")
    parser.add_argument("--axis", choices=("steps", "scale"), default="steps", help="dose along checkpoints or adapter scale")
    parser.add_argument("--severity", choices=("contrast", "rate", "rate_judged"), default="contrast", help="which strength")
    parser.add_argument("--without", nargs="*", default=[], help="measures to leave out")
    parser.add_argument(
        "--at", nargs="*", type=float, help="severities to compare at; without: half and all of the common range"
    )
    arguments = parser.parse_args()
    if bool(arguments.directories) == bool(arguments.organism):
        raise UserError('say what to compare: organism=NAME or runs="A B"')

    from audit import compare_report
    from audit.compare import compare
    from audit.compare_runs import load, newest, refuse
    from audit.config import MEASURES

    for name in arguments.without:
        if name not in MEASURES:
            raise UserError(f"without={name}: there is no such measure{nearest(name, list(MEASURES))}")
    if arguments.at and min(arguments.at) <= 0:
        raise UserError(f"at={min(arguments.at):g}: a severity to compare at lies above 0, the base's own")
    if arguments.organism:
        runs, left_out = newest(arguments.runs, arguments.organism)
    else:
        runs, left_out = [load(path) for path in arguments.directories], []
    refuse(runs, arguments.severity, arguments.without)
    found = compare(runs, arguments.axis, arguments.severity, arguments.without, arguments.at)
    asked = [sorted(r.path.name for r in runs), arguments.axis, arguments.severity, arguments.without, arguments.at]
    target = arguments.runs / f"compare-{re.sub(r'[^a-z0-9-]+', '_', runs[0].organism)}-{digest(asked, 8)}"
    compare_report.write(found, target, left_out)
    compare_report.show(found)
    print(f"comparison: {target / 'compare.html'}")


if __name__ == "__main__":
    run_cli(main)
