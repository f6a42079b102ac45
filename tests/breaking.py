"""Breaks the process that it is armed in, at a chosen moment: killed, killed amid a write, out of power, or out of disk space.

A moment is an operation on the watched directories that a crash could fall before: an open for writing, a rename, a directory
made, a file or directory removed, an fsync, a tensor file written. They are counted, and a run makes them in the same order
each time, so that a number names one that no timer would hit.
"""

import errno
import os
import random
import shutil
import signal
import sys
from pathlib import Path

KINDS = ("kill", "torn", "power", "full")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class PowerLoss:
    """What of some directories is surely on disk, and what a loss of power may leave of the rest.

    Content is sure up to its last fsync, a directory's entries up to the directory's own. Of what came after, each entry is
    there or not, and each file's unsynced part whole, cut somewhere, zeros, or missing, as `seed` has it: any mixture, since
    without an fsync nothing is promised about order. Not modelled: disks that lose what they have reported as synced, and
    blocks of one unsynced write that arrive out of order.
    """

    def __init__(self, roots: list[Path], seed: int):
        self.roots, self.random = roots, random.Random(seed)
        self.entries: dict[int, dict[str, int]] = {}
        self.contents: dict[int, bytes] = {}
        self.pinned: dict[int, int] = {}  # open, so that no number is given to another file
        for root in roots:
            for path in [root, *root.rglob("*")]:
                self.synced(path)

    def synced(self, path: Path) -> None:
        number = path.stat().st_ino
        if number not in self.pinned:
            self.pinned[number] = os.open(path, os.O_RDONLY)
        if path.is_dir():
            self.entries[number] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[number] = path.read_bytes()

    def lose(self) -> None:
        """Rewrite the directories as they could be found after the power came back."""
        now = {path.stat().st_ino: path for root in self.roots for path in [root, *root.rglob("*")]}
        kept = {root: self._directory(root.stat().st_ino, now) for root in self.roots}
        for root, tree in kept.items():
            shutil.rmtree(root)
            _write(root, tree)

    def _directory(self, number: int, now: dict[int, Path]) -> dict:
        sure = self.entries.get(number, {})
        current = {entry.name: entry.inode() for entry in os.scandir(now[number])} if number in now else {}
        found = {}
        for name in sorted({*sure, *current}):
            one, other = sure.get(name), current.get(name)
            chosen = one if one == other or self.random.random() < 0.5 else other
            if chosen is not None:
                directory = chosen in self.entries or (chosen in now and now[chosen].is_dir())
                found[name] = self._directory(chosen, now) if directory else self._file(chosen, now)
        return found

    def _file(self, number: int, now: dict[int, Path]) -> bytes:
        sure = self.contents.get(number, b"")
        current = now[number].read_bytes() if number in now else sure
        if sure == current:
            return sure
        if not current.startswith(sure):
            return self.random.choice([sure, current])
        rest = current[len(sure) :]
        cut = self.random.randrange(len(rest))
        return sure + self.random.choice([b"", rest[:cut], bytes(len(rest)), rest])


def _write(folder: Path, tree: dict) -> None:
    folder.mkdir()
    for name, value in tree.items():
        if isinstance(value, dict):
            _write(folder / name, value)
        else:
            (folder / name).write_bytes(value)


class Breaker:
    """Counts moments on `roots` and breaks the process at the one with number `at`, whose name is left in the file `told`."""

    def __init__(self, roots: list[Path], kind: str, at: int | None, seed: int, told: Path):
        self.roots, self.kind, self.at, self.told = [str(root) for root in roots], kind, at, told
        self.random, self.count, self.full = random.Random(seed), 0, False
        self.moments: list[str] = []
        self.power = PowerLoss(roots, seed) if kind == "power" else None
        self.quiet = False
        self.sizes = {p.stat().st_ino: p.stat().st_size for root in roots for p in root.rglob("*") if p.is_file()}

    def watched(self, path: object) -> bool:
        return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(tuple(self.roots))

    def moment(self, name: str, path: object, written: bool = False) -> None:
        """One moment passes; `written`: the file at `path` holds what is not synced, so that it can be torn."""
        if self.quiet or not self.watched(path):
            return
        self.count += 1
        self.moments.append(f"{name} {os.sep.join(os.fsdecode(path).split(os.sep)[-2:])}")
        if self.count == self.at:
            self.told.write_text(f"{self.count} {self.moments[-1]}\n")
        if self.kind == "full":
            self.full = self.full or self.count == self.at
            if self.full and name not in ("remove", "rmdir", "truncate"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        elif self.count == self.at:
            self._end(path, written)

    def _end(self, path: object, written: bool) -> None:
        self.quiet = True
        if self.kind == "power":
            self.power.lose()
        if self.kind == "torn" and written:
            found = os.stat(path)
            sure = self.sizes.get(found.st_ino, 0)  # what a kill cannot take back
            os.truncate(path, self.random.randrange(sure if sure < found.st_size else 0, found.st_size or 1))
        os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """From here on. For a process of its own: it is never disarmed."""
        import safetensors.torch
        import torch

        sync = os.fsync

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.moment("fsync", path, written=not os.path.isdir(path))
            sync(descriptor)
            if self.quiet or not self.watched(path) or not os.path.exists(path):
                return
            self.sizes[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size
            if self.power is not None:
                self.quiet = True
                self.power.synced(Path(path))
                self.quiet = False

        os.fsync = fsync
        for module, name, place in ((torch, "save", 1), (safetensors.torch, "save_file", 1)):
            setattr(module, name, self._after(getattr(module, name), name, place))
        sys.addaudithook(self._audited)

    def _after(self, save, name: str, place: int):
        def saved(*arguments, **options):
            result = save(*arguments, **options)
            if len(arguments) > place:
                self.moment(name, arguments[place], written=True)
            return result

        return saved

    def _audited(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            self.moment("open", arguments[0])
        elif event == "os.rename":
            self.moment("rename", arguments[1])
        elif event in ("os.mkdir", "os.rmdir", "os.remove", "os.truncate"):
            path = arguments[0]
            if event in ("os.rmdir", "os.remove") and arguments[1] not in (None, -1):
                path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(path))
            self.moment(event.removeprefix("os."), path)
