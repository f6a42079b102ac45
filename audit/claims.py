"""Who audits what, where several processes share a run directory: a claim is a locked file for one measure of one specimen."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from organisms import locks

FOLDER = "claims"
POLL = 2.0  # seconds between looks at what other processes do


class Alone:
    """No other process audits this run: every claim is granted."""

    def claim(self, specimen: str, name: str) -> contextlib.AbstractContextManager[bool]:
        return contextlib.nullcontext(True)

    def completely(self, action: Callable[[], None], wait: bool = True) -> bool:
        action()
        return True

    def keep(self, what: str) -> bool:
        return True


class Shared:
    """Claims of one process among several. A claim dies with its process; what a dead one has left is taken over."""

    def __init__(self, run: Path):
        self.folder = run / FOLDER
        self.refused: list[str] = []
        self._kept: dict[str, TextIO] = {}

    @contextlib.contextmanager
    def claim(self, specimen: str, name: str) -> Iterator[bool]:
        """Whether the measure of this specimen is this process's to read, until the context ends.

        Whoever is granted one must look again at what has been read since: the last holder may have done it.
        """
        path = self.folder / f"{specimen}.{name}"
        file = locks.attempt(path)
        if file is None:
            self.refused.append(f"{specimen} {name}")
            yield False
            return
        with file:
            left = file.read()
            if left:
                print(
                    f"{specimen} {name} was left unfinished by {left} and is taken over (should that still run, the file "
                    "system does not carry locks between machines: stop one of the two)",
                    flush=True,
                )
            locks.sign(file)
            yield True
            path.unlink(missing_ok=True)

    def completely(self, action: Callable[[], None], wait: bool = True) -> bool:
        """Do it until no claim is refused; `wait` False: once. Whether nothing is left that another process is at."""
        while True:
            self.refused.clear()
            action()
            if not self.refused or not wait:
                return not self.refused
            time.sleep(POLL)

    def keep(self, what: str) -> bool:
        """Whether this process alone has a duty, from the first yes to its end."""
        if what not in self._kept:
            file = locks.attempt(self.folder / f"{what}.duty")
            if file is not None:
                locks.sign(file)
                self._kept[what] = file
        return what in self._kept


def being_read(run: Path) -> dict[str, str]:
    """`specimen measure` -> who is at it now."""
    found = {}
    for path in sorted((run / FOLDER).glob("*")):
        who = locks.holder(path)
        specimen, _, name = path.name.rpartition(".")
        if who and name != "duty":
            found[f"{specimen} {name}"] = who
    return found
