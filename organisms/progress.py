"""One bar a phase on a terminal, one line each tenth of the way otherwise."""

import sys
import time


class Progress:
    """Counts up to `total`; `step(done, note)` may be called as often as one likes."""

    def __init__(self, label: str, total: int):
        self.label, self.total = label, total
        self.terminal = sys.stdout.isatty()
        self.started = time.monotonic()
        self._tenth = -1

    def step(self, done: int, note: str = "") -> None:
        tenth = 10 * done // max(self.total, 1)
        if self.terminal:
            filled = 24 * done // max(self.total, 1)
            end = "\n" if done >= self.total else ""
            print(f"\r{self.label} [{'#' * filled:<24}] {done}/{self.total} {note:<40}", end=end, flush=True)
        elif tenth > self._tenth or done >= self.total:
            elapsed = time.monotonic() - self.started
            print(f"{self.label} {done}/{self.total} {note} ({elapsed:.0f} s)", flush=True)
        self._tenth = max(tenth, self._tenth)
