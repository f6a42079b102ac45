"""python -m bench [ROW ...]: prints one table, ours beside a peer; docs/bench.md says what the rows are."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from bench import choices, generation, growth, knowledge, limits, machine, training, whole_run
from bench.rows import Row, Skipped, Unequal, markdown
from bench.setup import Setup
from organisms import models
from organisms.errors import UserError, run_cli
from organisms.files import write_json
from organisms.strict import nearest

ROWS: dict[str, tuple[Callable[[Setup], list[Row]], ...]] = {
    "mmlu": (knowledge.zero_shot, knowledge.five_shot),
    "preferences": (choices.by_labels, choices.by_content),
    "fit": (choices.fit,),
    "generation": (generation.naive,),
    "vllm": (generation.vllm,),
    "limits": (limits.scoring, limits.generating),
    "training": (training.stage,),
    "growth": (growth.items, growth.checkpoints, growth.documents, growth.outcomes),
    "recipe": (whole_run.recipe,),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("only", nargs="*", help=f"rows to measure, none named: all of {' '.join(ROWS)}")
    parser.add_argument("--size", choices=("small", "normal", "full"), default="normal", help="small: only shows that it works")
    parser.add_argument("--base", default=models.EMBEDDED, help="another base: directory or hub id")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    given = parser.parse_args()
    for name in given.only:
        if name not in ROWS:
            raise UserError(f"bench has no row {name!r}{nearest(name, list(ROWS))}; its rows are {' '.join(ROWS)}")
    rows = measure(Setup(given.base, given.size), given.only or list(ROWS), given.out)
    failed = [row.name for row in rows if row.state == "failed"]
    if failed:
        print(f"\nFAILED, the results differ: {'; '.join(failed)}")
    return 1 if failed else 0


def measure(setup: Setup, only: list[str], out: Path | None = None) -> list[Row]:
    """The rows of these names, each printed as it is made, and the table at the end; written to `out` after each row."""
    about = {**machine.described(), "base": setup.base.name, "size": setup.size}  # found before a row has a cache of its own
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    rows: list[Row] = []
    for name in only:
        for function in ROWS[name]:
            load, started = machine.load(), time.perf_counter()
            found = _measured(name, function, setup)
            took = time.perf_counter() - started
            disturbed = load > about["cores"]
            for row in found:
                rows.append(row)
                print("  ".join(cell for cell in row.cells() if cell), flush=True)
                row.numbers.update(group=name, load=load, took=round(took, 1))
            if disturbed:
                print(f"  disturbed: a load of {load} on {about['cores']} cores before it began", flush=True)
            if out:
                write_json(out, {**about, "rows": [row.plain() for row in rows]})
    loads = [row.numbers["load"] for row in rows]
    print(f"\n{markdown(rows)}\n")
    print(f"load before the rows: {min(loads)} to {max(loads)} on {about['cores']} cores", end="")
    print("; others were in the way, so these times are not to be believed" if max(loads) > about["cores"] else "")
    return rows


def _measured(name: str, function: Callable[[Setup], list[Row]], setup: Setup) -> list[Row]:
    label = f"{name}: {function.__name__.replace('_', '-')}"
    try:
        return function(setup)
    except Skipped as reason:
        return [Row(label, "", "", f"skipped: {reason}", state="skipped")]
    except Unequal as reason:
        return [Row(label, "", "", f"FAILED: {reason}", state="failed")]


if __name__ == "__main__":
    run_cli(main)
