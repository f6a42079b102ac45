"""What a stage goes on from where it was cut off: the trainer's own checkpoint, sealed once it is whole on disk.

The trainer writes its directory file by file, and a killed process leaves some of them, torn or missing. So only a directory
with a seal is gone on from, and the one before is dropped only after that.
"""

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from organisms.files import file_sha256, write_json
from organisms.folders import sync_tree

STATE = "trainer"  # under the run directory, one directory a stage; gone when the run is done
SEAL = "whole.json"


def seal(state: Path, step: int) -> None:
    """Say of the checkpoint that the trainer has saved at a step that it is whole; drop all others."""
    folder = _folder(state, step)
    sync_tree(state)
    write_json(folder / SEAL, {name: file_sha256(folder / name) for name in _files(folder)})
    for other in state.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other)


def newest(state: Path) -> Path | None:
    """The newest checkpoint whose files are all there and as they were when it was sealed; None where there is none."""
    found = sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    return next((folder for folder in found if _whole(folder)), None)


def _folder(state: Path, step: int) -> Path:
    return state / f"checkpoint-{step}"


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != SEAL)


def _whole(folder: Path) -> bool:
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return all((folder / name).is_file() and file_sha256(folder / name) == sha256 for name, sha256 in sealed.items())


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the random generators as they were, so that reading the model between two steps decides nothing after it.

    A resumed stage reads nothing again and would draw other dropout masks and replies than an undisturbed one.
    """
    import numpy as np
    import torch

    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
