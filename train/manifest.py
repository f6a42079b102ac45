"""manifest.json: what was run, with which versions, and what predicts frying."""

import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path

from train import processes
from train.config import Stage
from train.sft import packs
from train.traps import Linted

# Versions that can change trained weights; they are part of a run's digest.
TRAINING_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
OTHER_PACKAGES = ("datasets", "tokenizers", "safetensors", "scipy", "wandb", "if-verifiable")


def versions(packages: tuple[str, ...] = TRAINING_PACKAGES) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def commit() -> dict:
    """Commit of the checkout and whether it holds uncommitted changes; None where it is not a git checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def environment() -> dict:
    """What the run was begun on; it may go on elsewhere, and in more or fewer processes."""
    return {
        "python": platform.python_version(),
        "platform": platform.system().lower(),
        "cpus": os.cpu_count(),
        "processes": processes.count(),
        "processes_by": processes.kind(),
    }


def predictors(stage: Stage, linted: Linted, steps: int) -> dict:
    """Quantities known before training that go with frying.

    effective_scale x learning_rate x steps: how far the weights can move; distinct: share of rows whose text stands once;
    repeats: how often training sees each row.
    """
    counts = Counter(linted.learned)
    rows = steps * stage.batch_size * stage.gradient_accumulation
    passes = rows * stage.max_length / max(linted.tokens, 1) if packs(stage, linted) else rows / max(len(linted.rows), 1)
    return {
        "effective_scale": round(stage.scale, 4),
        "scale_x_lr": stage.scale * stage.learning_rate,
        "scale_x_lr_x_steps": stage.scale * stage.learning_rate * steps,
        "rows": len(linted.rows),
        "distinct_rows": len(counts),
        "tokens": linted.tokens,
        "loss_tokens": linted.loss_tokens,
        "passes_over_the_data_at_most": round(passes, 2),
    }
