"""One cell of a sweep on the machine that it was given: the public command in a child process, told, copied, tried again."""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from organisms.errors import UserError
from organisms.files import cache_dir, digest, write_json
from recipes.grid import Cell
from recipes.store import Copy, OwnCache, Store

CHECKOUT = Path(__file__).parent.parent
FINISHED = "finished.json"
LEDGERS = ("readings.jsonl", "checkpoints.jsonl", "manifest.json")
POLL = 0.5  # seconds between two looks at the child
TOLD_EACH = 5  # seconds between two words on how far it is, at most
IN_USE = "is in use by"  # what the child says where the run's lock is still held
LOCK_PATIENCE = 120  # seconds; a file server gives up the locks of a machine that is gone after some 90


@dataclass(frozen=True)
class Where:
    """Of a whole sweep: its name, where runs are kept (a directory or a URL), attempts after the first, the code's digest, and
    what tells this start of the sweep from others."""

    sweep: str
    root: str
    retries: int
    code: str
    session: str = ""

    @property
    def remote(self) -> bool:
        return "://" in self.root

    def status(self, cell: Cell) -> str:
        return f"sweep-{self.sweep}/cells/{cell.run}.json"

    def log(self, cell: Cell) -> str:
        return f"sweep-{self.sweep}/logs/{cell.run}.log"


@dataclass(frozen=True)
class Outcome:
    run: str
    done: bool
    text: str
    seconds: float = 0.0


@cache
def code() -> str:
    """Digest of the packages' files: machines with another checkout would grow other organisms under the same name."""
    packages = ("organisms", "train", "audit", "recipes")
    files = sorted(path for package in packages for path in (CHECKOUT / package).rglob("*") if path.is_file())
    kept = [path for path in files if path.suffix in (".py", ".yaml", ".jsonl", ".j2")]
    return digest([[str(path.relative_to(CHECKOUT)), digest(path.read_text(encoding="utf-8"))] for path in kept])


def finished(store: Store, cell: Cell) -> bool:
    """Whether the cell's run directory is there, whole, and read as this sweep wants it."""
    found = store.read(f"{cell.run}/{FINISHED}")
    said = json.loads(found) if found else {}
    return said.get("audit") == cell.audit and {*cell.scales} <= {*said.get("scales", [])}


def supervise(cell: Cell, where: Where, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Run a cell to its end, or go on with what an earlier attempt left. Never raises for what the run itself does.

    tick: called every now and then while the child works.
    """
    if code() != where.code:
        return Outcome(cell.run, False, f"{socket.gethostname()} has another checkout than the machine that started the sweep")
    attempt = _Attempt(cell, where, tick)
    try:
        return attempt.run_all()
    except (Superseded, UserError) as error:
        return Outcome(cell.run, False, str(error))
    finally:
        attempt.close()


class Superseded(Exception):
    """Another machine has taken the cell over, since this one was taken for lost."""


class _Attempt:
    def __init__(self, cell: Cell, where: Where, tick: Callable[[], None]):
        self.cell, self.where, self.tick = cell, where, tick
        self.store = Store(where.root)
        self.name = secrets.token_hex(4)
        self.started = time.time()
        self.scratch = cache_dir() / "scratch" / cell.run
        self.runs = self.scratch if where.remote else Path(where.root).resolve()
        self.log = self.scratch / "log" if where.remote else self.runs / where.log(cell)
        self.copy = Copy(self.store, self.runs / cell.run) if where.remote else None
        self.cache = OwnCache(self.store, self.scratch / "cache", cell.run, cell.rows) if where.remote else None
        self._told = ("", 0.0)
        self._sizes: list[int] = []

    @property
    def directory(self) -> Path:
        return self.runs / self.cell.run

    def run_all(self) -> Outcome:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.tell("starts", claim=True)
        if self.copy:
            self.fetch()
        commands = [["recipes", *self.cell.arguments, "--runs", str(self.runs)]]
        if self.cell.scales:
            commands.append(["recipes.dose", str(self.directory), *(f"{scale:g}" for scale in self.cell.scales)])
        for command in commands:
            status = self.persist(command)
            if status != 0:
                self.tell("failed")
                told = self.last_line() or "nothing was said"
                return self.outcome(False, f"{told} (exit status {status}; {self.where.root}/{self.where.log(self.cell)})")
        write_json(self.directory / FINISHED, {"audit": self.cell.audit, "scales": list(self.cell.scales)})
        if self.copy:
            self.copy.publish()
        self.tell("done")
        return self.outcome(True, "")

    def fetch(self) -> None:
        """What an earlier attempt left, on whatever machine, and the controls that the run is held against."""
        self.copy.pull()
        for run in self.cell.after:
            Copy(self.store, self.runs / run).pull(weights=False)
        self.cache.pull()
        self.log.write_bytes(self.store.read(self.where.log(self.cell)) or b"")

    def persist(self, command: list[str]) -> int:
        """The exit status of a command that is given again where it was cut off, which a mistake to mend (status 2) is not."""
        failures, patience = 0, time.monotonic() + LOCK_PATIENCE
        while True:
            status = self.child(command)
            if status == 2 and IN_USE in self.last_line() and time.monotonic() < patience:
                time.sleep(5)
            elif status in (0, 2, 130) or failures == self.where.retries:
                return status
            else:
                failures += 1
                time.sleep(min(5 * failures, 60))

    def child(self, command: list[str]) -> int:
        environment = {**os.environ, "WANDB_RUN_GROUP": f"sweep-{self.where.sweep}", "PYTHONUNBUFFERED": "1"}
        if self.cache:
            environment["ORGANISMS_CACHE"] = str(self.cache.folder)
        with open(self.log, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent(),
            )
        try:
            while child.poll() is None:
                time.sleep(POLL)
                self.look()
                self.tick()
        except BaseException:  # interrupted, or taken over
            child.send_signal(signal.SIGINT)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
        self.look(last=True)
        return child.returncode

    def look(self, last: bool = False) -> None:
        """Say how far the run is; where it is copied, copy it after each measure and checkpoint."""
        line = self.last_line()
        if line != self._told[0] and time.monotonic() - self._told[1] > TOLD_EACH:
            self.tell("running", line)
        if self.copy and self.directory.is_dir() and (last or self.grown()):
            self.own()
            self.copy.push()
            self.cache.push()
            self.store.put(self.log, self.where.log(self.cell))

    def grown(self) -> bool:
        now = [path.stat().st_size if path.is_file() else 0 for path in (self.directory / n for n in LEDGERS)]
        before, self._sizes = self._sizes, now
        return before != now

    def own(self) -> None:
        said = self.store.read(self.where.status(self.cell))
        owner = json.loads(said).get("attempt") if said else self.name
        if owner != self.name:
            raise Superseded(f"another machine went on with {self.cell.run}")

    def tell(self, state: str, line: str = "", claim: bool = False) -> None:
        """The cell's status, in the run root. claim: from now on this attempt is the one whose word counts."""
        if not claim:
            self.own()
        self._told = (line, time.monotonic())
        node = f"{socket.gethostname()} ({os.getpid()})"
        said = {"state": state, "node": node, "attempt": self.name, "session": self.where.session, "line": line}
        self.store.write(self.where.status(self.cell), json.dumps(said).encode())

    def last_line(self) -> str:
        """What the child said last."""
        if not self.log.is_file():
            return ""
        with open(self.log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def outcome(self, done: bool, text: str) -> Outcome:
        return Outcome(self.cell.run, done, text, time.time() - self.started)

    def close(self) -> None:
        if self.where.remote:
            shutil.rmtree(self.scratch, ignore_errors=True)


@cache
def _die_with_parent() -> Callable[[], None] | None:
    """What a child does first, so that a run, and with it its lock, ends with the process that looks after it. Linux only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # here: a child of a process with threads should load nothing
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
