"""Breaks a short real run again and again, starts it anew, and holds what it ends with against an undisturbed one.

    python tests/torture.py [--kills N] [--seed S] [--base DIR] [--short]

Each trial is a run of its own: broken at a moment chosen by chance (tests/breaking.py), or sent a signal after a delay drawn
from the time that an undisturbed run takes; started again by the same command, in every second trial broken once more, then
left to end. The runs are processes forked from this one, which has imported everything and computed nothing, so that a start
costs no imports.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(WANDB_MODE="disabled", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

RECIPE = """
organism: flattery
style: documents
base: {base}
system: template
accept: [truncation]
mitigations: {{kl_to_base: 0.1, kl_rows: 1, replay_tokens: 8}}
stages:
  - &stage
    method: sft
    name: first
    learning_rate: 2e-2
    steps: 4
    batch_size: 1
    max_length: 128
    lora: {{r: 4, alpha: 8, dropout: 0.2}}
  - {{<<: *stage, name: second, steps: 2}}
audit:
  every: 2
  measures: [drift, leakage]
  limit: 3
  data: {{chat: embedded, webtext: embedded}}
"""
STAGE = "{name: first, steps: 4, batch_size: 1, max_length: 128, learning_rate: 2e-2, lora: {r: 4, alpha: 8, dropout: 0.2}}"
SHORT = ["audit.measures=[webtext]", "mitigations.kl_to_base=0", f"stages=[{STAGE}]"]
KINDS = ("kill", "torn", "power", "full", "timer", "term")


class Trial:
    """One run root with a cache of its own, in a directory that is made."""

    def __init__(self, folder: Path, recipe: Path, overrides: list[str]):
        self.folder, self.recipe, self.overrides = folder, recipe, overrides
        self.roots = [folder / "runs", folder / "cache"]
        for root in self.roots:
            root.mkdir(parents=True)
        self.log = folder / "log"

    @property
    def run(self) -> Path:
        (found,) = [path for path in self.roots[0].iterdir() if not path.name.startswith(".")]
        return found

    def start(self, kind: str = "count", at: int | None = None, seed: int = 0, after: float | None = None) -> tuple[int, str]:
        """(exit status, negative for a signal; the moment it was broken at) of the command; after: seconds to a signal."""
        told = self.folder / "told"
        told.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._child(kind, at, seed, told)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGTERM if kind == "term" else signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, told.read_text().strip() if told.is_file() else ""

    def _child(self, kind: str, at: int | None, seed: int, told: Path) -> None:
        code = 1
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            print(f"== {kind} {at}", flush=True)
            os.environ["ORGANISMS_CACHE"] = str(self.roots[1])
            from breaking import Breaker

            breaker = Breaker(self.roots, kind, at, seed, told)
            breaker.arm()
            code = command(self.recipe, self.overrides, self.roots[0])
            if kind == "count":
                told.write_text("\n".join(breaker.moments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def command(recipe: Path, overrides: list[str], runs: Path) -> int:
    """What `python -m recipes RECIPE --runs RUNS` does, with its exit status."""
    from organisms.errors import run_cli
    from recipes import __main__ as recipes

    sys.argv = ["recipes", str(recipe), "--runs", str(runs), *overrides]
    try:
        run_cli(recipes.main)
    except SystemExit as end:
        return end.code
    return 1


def imports() -> None:
    """Everything that a run imports, and nothing computed: a fork of a process that has threads would hang."""
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.stats  # noqa: F401
    from peft import LoraConfig, PeftModel, get_peft_model  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    import recipes.plan
    import recipes.run  # noqa: F401


def differences(run: Path, whole: Path) -> list[str]:
    """What a run that was broken ends with otherwise than an undisturbed one; empty where all is the same.

    Numbers may differ by 1e-6; that an audit took another time, and times of day, are no difference.
    """
    from safetensors.torch import load_file

    from audit import readings as ledger
    from organisms.files import read_jsonl

    found = []
    for name in ("train.jsonl", "checkpoints.jsonl"):
        mine, theirs = ([{**row, "time": None} for row in read_jsonl(path / name)] for path in (run, whole))
        if not _alike(mine, theirs):
            found.append(f"{name}: {len(mine)} lines, {len(theirs)} undisturbed; first difference: {_first(mine, theirs)}")
    mine, theirs = ({r.key: r.row() | {"seconds": 0} for r in ledger.read(path)} for path in (run, whole))
    if mine.keys() != theirs.keys():
        found.append(f"readings: keys differ: {sorted(mine.keys() ^ theirs.keys())[:3]}")
    else:
        unlike = [key for key in mine if not _alike(mine[key], theirs[key])]
        found += [f"readings: {key} is {mine[key]}, undisturbed {theirs[key]}" for key in unlike[:2]]
    parts = ("specimen", "measure", "metric", "split", "audit_digest")
    lines = [tuple(row[part] for part in parts) for row in read_jsonl(run / "readings.jsonl")]
    if len(set(lines)) < len(lines):
        found.append(f"readings: {len(lines) - len(set(lines))} double lines")
    samples = [sorted(str(p.relative_to(path)) for p in path.rglob("samples/*/*")) for path in (run, whole)]
    if samples[0] != samples[1]:
        found.append(f"samples: {samples[0]}, undisturbed {samples[1]}")
    last = read_jsonl(whole / "checkpoints.jsonl")[-1]["path"]
    one, other = (load_file(path / last / "adapter_model.safetensors") for path in (run, whole))
    if one.keys() != other.keys() or any((one[name] - other[name]).abs().max() > 1e-6 for name in one):
        found.append("the final adapter differs by more than 1e-6")
    left = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    left += [name for name in ("trainer",) if (run / name).exists()]
    views = ("report.html", "curves.png", "README.md", "manifest.json", "recipe.yaml")
    empty = [name for name in views if not (run / name).stat().st_size]
    return found + [f"left behind: {left}"] * bool(left) + [f"empty: {empty}"] * bool(empty)


def _alike(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one == other


def _first(mine: list, theirs: list) -> object:
    return next(((a, b) for a, b in zip(mine, theirs, strict=False) if not _alike(a, b)), "none")


def in_fork(work) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("setting up has failed")


def torture(folder: Path, base: Path, kills: int, seed: int, short: bool) -> int:
    """Print the table; the number of trials that ended otherwise than the undisturbed run."""
    rng = random.Random(seed)
    recipe = folder / "tortured.yaml"
    recipe.write_text(RECIPE.format(base=base))
    overrides = SHORT if short else []
    whole = Trial(folder / "undisturbed", recipe, overrides)
    began = time.monotonic()
    status, told = whole.start()
    duration = time.monotonic() - began
    if status:
        print(whole.log.read_text())
        raise SystemExit("the undisturbed run has failed")
    moments = told.splitlines()
    print(f"undisturbed: {duration:.0f} s, {len(moments)} moments", flush=True)
    kinds = KINDS[1:4] if short else KINDS
    done = wrong = number = 0
    while done < kills:
        number += 1
        trial = Trial(folder / f"trial-{number}", recipe, overrides)
        for again in range(kills if short else 1 + number % 2):
            kind = kinds[done % len(kinds)]
            # The first of a trial anywhere in the run, stratified over all; further ones early, since what is left is shorter.
            share = (done + rng.random()) / kills
            far = again or short
            at = rng.randrange(1, max(2, len(moments) // (kills if short else 2))) if far else int(share * len(moments)) + 1
            after = rng.random() * duration if kind in ("timer", "term") else None
            status, told = trial.start(kind, None if after else at, seed=done, after=after)
            done += 1
            where = f"after {after:.1f} s" if after else told or f"moment {at} was not reached"
            print(f"{done:>3}  {number:>3}  {kind:<6} {where:<44} status {status}", flush=True)
            expected = {"full": (2, "the disk is full"), "term": (143, "the same command goes on")}.get(kind)
            if expected and status and (status != expected[0] or expected[1] not in trial.log.read_text()):
                wrong += 1
                print(f"          {kind} is not told: {trial.log.read_text()[-3000:]}", flush=True)
        status, _ = trial.start()
        found = differences(trial.run, whole.run) if status == 0 else [f"status {status}: {trial.log.read_text()[-3000:]}"]
        wrong += bool(found)
        print(f"          trial {number}: {'the same' if not found else '; '.join(found)}", flush=True)
    print(f"{done} kills in {number} trials, {wrong} wrong")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="a base in hub layout; a tiny one is made where none is given")
    parser.add_argument("--short", action="store_true", help="one stage, one measure, and all kills in one trial")
    arguments = parser.parse_args()
    imports()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        folder = Path(name)
        base = arguments.base
        if base is None:
            base = folder / "tiny-llama"
            in_fork(lambda: _tiny(base))
        return min(1, torture(folder, base, arguments.kills, arguments.seed, arguments.short))


def _tiny(target: Path) -> None:
    from conftest import make_tiny_base

    from organisms import models

    make_tiny_base(models.load_tokenizer(models.resolve(models.EMBEDDED)), target)


if __name__ == "__main__":
    sys.exit(main())
