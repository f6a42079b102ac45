"""A recipe from the command to the report, in a process of its own: where its wall time goes.

`python -m bench.whole_run RECIPE RUNS [key=value ...]` runs it and prints one JSON line, the last.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.rows import Row
from bench.setup import Setup, own_cache
from organisms.files import read_jsonl

RECIPE = "flattery-documents"
SHORT = ["stages[0].steps=12", "audit.every=6", "audit.limit=6"]
SMALL = ["stages[0].steps=2", "audit.every=2", "audit.limit=2", "audit.measures=[severity]"]


class Clock:
    """Seconds by name; what is entered inside something else counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.names: list[str] = []
        self.since = time.perf_counter()

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        self._turn()
        self.names.append(name)
        try:
            yield
        finally:
            self._turn()
            self.names.pop()

    def around(self, name: str, module: Any, *functions: str) -> None:
        """From now on, what runs in these functions of a module counts for `name`."""
        for function in functions:
            setattr(module, function, self._timed(name, getattr(module, function)))

    def _timed(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def wrapped(*given: Any, **named: Any) -> Any:
            with self.of(name):
                return function(*given, **named)

        return wrapped

    def _turn(self) -> None:
        now = time.perf_counter()
        if self.names:
            self.seconds[self.names[-1]] = self.seconds.get(self.names[-1], 0.0) + now - self.since
        self.since = now


def recipe(setup: Setup) -> list[Row]:
    """normal: 12 steps and 6 items a measure, with two checkpoints; full: the recipe as it stands."""
    overrides = {"small": SMALL, "normal": SHORT, "full": []}[setup.size]
    with tempfile.TemporaryDirectory() as folder, own_cache() as cache:
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench.whole_run", RECIPE, folder, f"base={setup.name}", *overrides]
        environment = {**os.environ, "ORGANISMS_CACHE": str(cache), "WANDB_MODE": os.environ.get("WANDB_MODE", "offline")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent)
        total = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        by_measure: dict[str, float] = {}
        for line in read_jsonl(Path(found.pop("run")) / "readings.jsonl"):
            by_measure[f"{line['specimen']}/{line['measure']}"] = line["seconds"]
    found["the rest"] = total - sum(found.values())
    dearest: dict[str, float] = {}
    for name, spent in by_measure.items():
        measure = name.partition("/")[2]
        dearest[measure] = dearest.get(measure, 0.0) + spent
    dearest = dict(sorted(dearest.items(), key=lambda pair: -pair[1])[:3])
    return [
        Row(
            f"{RECIPE}{', shortened: ' + ' '.join(overrides) if overrides else ''}",
            f"{total:.0f} s in all",
            f"dearest measures: {', '.join(f'{name} {spent:.0f} s' for name, spent in dearest.items())}",
            ", ".join(f"{name} {spent / total:.0%}" for name, spent in found.items()),
            numbers={"total": total, **found, "measures": by_measure},
        )
    ]


def main(name: str, runs: str, *overrides: str) -> None:
    clock = Clock()
    with clock.of("loading"):
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
        import trl  # noqa: F401

        from organisms import models
        from recipes import auditing, run
        from recipes.plan import plan
        from recipes.recipe import resolve
    clock.around("loading", models, "from_directory", "load_tokenizer")
    clock.around("auditing", auditing, "audit_base", "audit_prompted", "audit_specimen")
    clock.around("training", run, "train_stage")
    with clock.of("the rest"):
        resolved = resolve(name, list(overrides))
        plan(resolved)
        made = run.execute(resolved, Path(runs))
    seconds = {part: clock.seconds.get(part, 0.0) for part in ("training", "auditing", "loading")}
    print(json.dumps({"run": str(made), **seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
