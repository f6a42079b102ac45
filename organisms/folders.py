"""Directories that are whole or absent, held by one process, and swept of what a killed one left."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from organisms import locks
from organisms.errors import UserError
from organisms.files import NODE, make_folder, sync, unfinished

DAY = 24 * 3600
LOCK = ".lock"  # of a run directory, held by its trainer


@contextlib.contextmanager
def staged(target: Path, replace: bool = True) -> Iterator[Path]:
    """A new directory to fill. It becomes `target` where the block ends well, whole on disk before it has that name.

    replace: what stands at `target` goes; otherwise it stays, made by a process that was first.
    """
    _sweep(target.parent.glob(f".{target.name}.*.tmp"))
    staging = unfinished(target)
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


def _sweep(unfinished: Iterable[Path]) -> None:
    """Remove what killed processes left half-made; of other machines, whose processes cannot be seen, after a day."""
    for left in list(unfinished):
        if not _alive(left) and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif not _alive(left):
            left.unlink(missing_ok=True)


def _alive(unfinished: Path) -> bool:
    """Whether the process that its name tells may still be at it."""
    node, _, number = unfinished.name.split(".")[-2].rpartition("-")
    if node != NODE or not number.isdigit():
        return unfinished.exists() and unfinished.stat().st_mtime > time.time() - DAY
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


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
        _sweep(folder.rglob(".*.tmp"))
        yield


def check_writable(folder: Path) -> None:
    """Raise the OSError of a read-only or full disk now, not after hours of work."""
    make_folder(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
