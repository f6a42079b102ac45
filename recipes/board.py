"""How far a sweep is: a table that renews itself on a terminal, a line for each change otherwise."""

import sys
import time
from collections import Counter

from recipes.cell import Outcome

EACH_MINUTE = 60
STATES = ("running", "queued", "waiting", "done", "there", "failed")


class Board:
    """States of the cells. `waiting` for another cell, `queued` for a machine, `there` already when the sweep began."""

    def __init__(self, names: list[str]):
        self.states = dict.fromkeys(names, "waiting")
        self.told = dict.fromkeys(names, "")
        self.terminal = sys.stdout.isatty()
        self._live = None
        self._summed = time.monotonic()

    def __enter__(self) -> "Board":
        if self.terminal:
            from rich.live import Live

            self._live = Live(self._table(), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def change(self, name: str, state: str, told: str = "") -> None:
        if (state, told) == (self.states[name], self.told[name]):
            return
        new = state != self.states[name]
        self.states[name], self.told[name] = state, told
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif new and state != "queued":
            place = list(self.states).index(name) + 1
            print(f"[{place}/{len(self.states)}] {name} {state}{f': {told}' if told else ''}", flush=True)
        elif time.monotonic() - self._summed > EACH_MINUTE:
            self._summed = time.monotonic()
            print(f"{self.summary()}; {name}: {told}", flush=True)

    def settle(self, outcome: Outcome) -> None:
        minutes = f"in {outcome.seconds / 60:.1f} min"
        self.change(outcome.run, "done" if outcome.done else "failed", minutes if outcome.done else outcome.text)

    def summary(self) -> str:
        counts = Counter(self.states.values())
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def _table(self):
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left", box=None)
        for column in ("run", "state", "last word"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for name, state in self.states.items():
            if state in ("running", "failed"):  # what waits and what is done is counted
                table.add_row(name, state, self.told[name])
        return table
