"""Directories that are whole or absent, held by one process, and swept of what a killed one left."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from organisms import locks
from organisms.errors import UserError
from organisms.files import make_folder, sync

DAY = 24 * 3600
LOCK = ".lock"  # of a run directory, held by its trainer
WATCHED = "claims/watch.duty"  # held, shared, by those who audit beside it


@contextlib.contextmanager
def staged(target: Path, replace: bool = True) -> Iterator[Path]:
    """A new directory to fill. It becomes `target` where the block ends well, whole on disk before it has that name.

    replace: what stands at `target` goes; otherwise it stays, made by a process that was first.
    """
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        if left.stat().st_mtime < time.time() - DAY:  # of a process that was killed; in a cache no lock says so
            shutil.rmtree(left, ignore_errors=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        yield staging
        sync_tree(staging)
        if replace:
            shutil.rmtree(target, ignore_errors=True)
        try:
            staging.rename(target)
        except OSError:
            if replace or not target.is_dir():
                raise
        sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """`sync` everything in a directory, and it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half-made. For directories that this process has `locked`, and nobody watches."""
    watched = folder / WATCHED
    with contextlib.ExitStack() as held:
        if watched.is_file():
            file = locks.attempt(watched)
            if file is None:
                return
            held.enter_context(file)
        _sweep(folder)


def _sweep(folder: Path) -> None:
    for left in list(folder.rglob(".*.tmp")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run directory, made where it is not there; a second process is refused. The lock dies with its process.

    Raises UserError where another process holds it, or where the file system has no locks.
    """
    make_folder(folder)
    for _ in range(3):  # whoever only looks who has it holds it for an instant
        file = locks.attempt(folder / LOCK)
        if file is not None:
            break
        time.sleep(0.2)
    else:
        holder = locks.holder(folder / LOCK) or "unknown"
        raise UserError(f"{folder} is in use by process {holder}; wait for it or stop it")
    with file:
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        tidy(folder)
        yield


def check_writable(folder: Path) -> None:
    """Raise the OSError of a read-only or full disk now, not after hours of work."""
    make_folder(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
