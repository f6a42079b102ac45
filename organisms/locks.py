"""Locks between processes, on one machine or on several that share a directory. A lock ends with its holder, however that ends.

flock(2) on a file: NFS carries it between machines (Linux 2.6.12 and newer), Lustre where it is mounted with `flock`. What the
file holds says who has the lock.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from organisms.errors import UserError


def me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def attempt(path: Path, shared: bool = False, wait: bool = False) -> TextIO | None:
    """The open file whose lock is held until it is closed; None where another process holds it. wait: until it is free.

    Raises UserError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            take(file, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
            file.seek(0)
            # The last holder may have removed the file between our opening and locking it.
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass  # removed between the two questions
        except BaseException:
            file.close()
            raise
        file.close()


def take(file, path: Path, kind: int = fcntl.LOCK_EX, wait: bool = True) -> None:
    """flock an open file. Raises BlockingIOError where another holds it, UserError where the file system has no locks."""
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} cannot be locked ({error.strerror}); keep runs and caches on a file system with flock: runs=DIR"
        ) from None


@contextlib.contextmanager
def held(path: Path, shared: bool = False) -> Iterator[None]:
    """Wait for the lock and hold it."""
    with attempt(path, shared, wait=True):
        yield


def sign(file: TextIO) -> None:
    """Write into a locked file who holds it."""
    file.seek(0)
    file.truncate()
    file.write(me())
    file.flush()


def holder(path: Path) -> str | None:
    """Who holds the lock; None where nobody does. Looking takes the lock for an instant, shared."""
    try:
        file = open(path, encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None
