"""python -m recipes.sweep NAME: a grid of recipe runs, on Ray or one after the other; runs/sweep-NAME/results.md.

The same command again goes on: runs that are whole are recognised by their directories, the others continue where they stopped.
"""

import argparse
import json
import secrets
import time
from dataclasses import replace
from pathlib import Path

from organisms.errors import UserError, run_cli
from recipes import grid
from recipes.board import Board
from recipes.cell import Outcome, Where, code, finished
from recipes.grid import Cell, Sweep
from recipes.runners import OnRay, Runner, chosen
from recipes.store import Store

LOOK_EACH = 5.0  # seconds between two looks at what the running cells say


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("sweep", help="name of a sweep in recipes/sweeps/, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", help="a.b=c, on every cell")
    parser.add_argument("--check", action="store_true", help="resolve every cell and say what all cost; start nothing")
    parser.add_argument("--address", help="of a Ray cluster, `auto` for this machine's; `none`: child processes, without Ray")
    parser.add_argument("--runs", default="runs", help="directory that all machines share, or a URL that fsspec knows")
    arguments = parser.parse_intermixed_args()
    name, sweep = grid.load(arguments.sweep, arguments.overrides)
    cells = grid.expand(sweep)
    if arguments.check:
        from recipes.sweep_check import check

        print("\n".join(check(name, sweep, cells)))
        return
    from recipes import sweep_results

    cells = [cell for cell, _ in grid.look_up(cells)]
    failed = run(name, sweep, cells, arguments.runs, arguments.address)
    print("\n".join(sweep_results.write(name, sweep, cells, arguments.runs)))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed, and the same command tries them again; the first: {failed[0].run}: "
            f"{failed[0].text}"
        )


def run(name: str, sweep: Sweep, cells: list[Cell], root: str, address: str | None = None) -> list[Outcome]:
    """Run what is not done yet; returns what failed."""
    if root.startswith("memory:"):
        raise UserError(f"runs={root}: no other process sees this one's memory; name a directory or an object store")
    where = Where(name, root if "://" in root else str(Path(root).resolve()), sweep.retries, code(), secrets.token_hex(4))
    store = Store(where.root)
    board = Board([cell.run for cell in cells])
    ended = {cell.run: Outcome(cell.run, True, "") for cell in cells if finished(store, cell)}
    waiting = [cell for cell in cells if cell.run not in ended]
    print(f"sweep       {name}: {len(cells)} cells, {len(ended)} of them there already; runs in {where.root}", flush=True)
    for one in ended:
        board.states[one] = "there"
    if not waiting:
        return []
    look = _Look(store, where, board)
    runner = chosen(where, sweep, address, look)
    print(f"runner      {runner.told}", flush=True)
    _warn(runner, waiting)
    try:
        with board:
            while waiting or look.cells:
                for cell in [one for one in waiting if all(run in ended for run in one.after)]:
                    if runner.room():
                        waiting.remove(cell)
                        look.cells[cell.run] = cell
                        board.change(cell.run, "queued")
                        runner.start(cell)
                for outcome in runner.settled():
                    if outcome.done and not finished(store, look.cells[outcome.run]):
                        outcome = replace(outcome, done=False, text=f"its machine does not share {where.root}; name a URL")
                    ended[outcome.run] = outcome
                    del look.cells[outcome.run]
                    board.settle(outcome)
                look()
    finally:
        runner.close()
    print(board.summary(), flush=True)
    return [outcome for outcome in ended.values() if not outcome.done]


class _Look:
    """Reads now and then what the cells say of themselves, and puts it on the board."""

    def __init__(self, store: Store, where: Where, board: Board):
        self.store, self.where, self.board = store, where, board
        self.cells: dict[str, Cell] = {}
        self._last = 0.0

    def __call__(self) -> None:
        if time.monotonic() - self._last < LOOK_EACH:
            return
        self._last = time.monotonic()
        for cell in self.cells.values():
            found = self.store.read(self.where.status(cell))
            said = json.loads(found) if found else {}
            if said.get("session") == self.where.session:
                self.board.change(cell.run, "running", f"{said['node']}: {said['line']}" if said["line"] else said["node"])


def _warn(runner: Runner, cells: list[Cell]) -> None:
    """Ray waits for what no machine has: a cluster may grow."""
    if isinstance(runner, OnRay):
        for needs in dict.fromkeys(filter(None, map(runner.unplaced, cells))):
            print(f"warning     no machine of this cluster has {needs}; such cells wait until one joins", flush=True)


if __name__ == "__main__":
    run_cli(main)
