"""What starts the cells of a sweep: child processes of this one, one after the other, or Ray."""

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

from organisms.errors import UserError
from recipes.cell import Outcome, Where, supervise
from recipes.grid import Cell, Sweep

WAIT = 1.0  # seconds that Ray is waited for between two looks


class Runner(Protocol):
    """`start` may return before the cell has ended; `settled` gives what has ended since."""

    told: str

    def room(self) -> bool: ...
    def start(self, cell: Cell) -> None: ...
    def settled(self) -> list[Outcome]: ...
    def close(self) -> None: ...


class Children:
    """One cell after the other, each in a child process. tick: called while one is at work."""

    def __init__(self, where: Where, tick: Callable[[], None], told: str):
        self.where, self.tick, self.told = where, tick, told
        self._outcomes: list[Outcome] = []

    def room(self) -> bool:
        return not self._outcomes

    def start(self, cell: Cell) -> None:
        self._outcomes.append(supervise(cell, self.where, self.tick))

    def settled(self) -> list[Outcome]:
        found, self._outcomes = self._outcomes, []
        return found

    def close(self) -> None:
        pass


class OnRay:
    """A Ray task a cell, placed by its resources; one whose machine is lost is started again on another.

    address: of a running cluster, `auto` for the one that this machine belongs to; None starts Ray on this machine.
    """

    def __init__(self, where: Where, sweep: Sweep, address: str | None):
        import ray

        self.ray, self.where, self.sweep = ray, where, sweep
        ours = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **ours)
        except ConnectionError as error:
            raise UserError(
                f"address={address}: no Ray cluster answers there ({str(error).splitlines()[0]}), or it wants a token: set "
                "RAY_AUTH_MODE=token as on its machines. `.venv/bin/ray start --head` begins one (docs/sweeps.md); or leave "
                "address out"
            ) from None
        nodes = [node for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        at = f"at {address}" if address else "on this machine"
        self.told = f"Ray {at}: {len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        self._nodes = [node["Resources"] for node in nodes]
        self._cells: dict[Any, Cell] = {}

    def unplaced(self, cell: Cell) -> str:
        """What no machine of the cluster has as much of as the cell takes; empty where one has."""
        needs = {"CPU": cell.resources.cpus, "GPU": cell.resources.gpus, **cell.resources.custom}
        if any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in self._nodes):
            return ""
        return ", ".join(f"{name} {amount:g}" for name, amount in needs.items() if amount)

    def room(self) -> bool:
        return True

    def start(self, cell: Cell) -> None:
        needs = cell.resources
        task = self.ray.remote(supervise).options(
            name=cell.run,
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=int(needs.memory_gb * 1e9) if needs.memory_gb else None,
            resources=dict(needs.custom) or None,
            max_retries=self.where.retries,
            scheduling_strategy="SPREAD" if self.sweep.placement == "spread" else "DEFAULT",
        )
        self._cells[task.remote(cell, self.where)] = cell

    def settled(self) -> list[Outcome]:
        ready, _ = self.ray.wait(list(self._cells), num_returns=1, timeout=WAIT) if self._cells else ([], [])
        found = []
        for one in ready:
            cell = self._cells.pop(one)
            try:
                found.append(self.ray.get(one))
            except self.ray.exceptions.RayError as error:  # the machine was lost more often than there are retries
                found.append(Outcome(cell.run, False, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
        return found

    def close(self) -> None:
        self.ray.shutdown()


def chosen(where: Where, sweep: Sweep, address: str | None, tick: Callable[[], None]) -> Runner:
    """Ray where it is installed, child processes where it is not or `address=none` says so."""
    if address == "none":
        return Children(where, tick, "one after the other, in child processes of this one (address=none)")
    if importlib.util.find_spec("ray") is not None:
        return OnRay(where, sweep, address)
    if address:
        raise UserError(f"address={address} needs Ray, which is not installed: .venv/bin/pip install -c constraints.txt ray")
    remedy = "Ray is not installed: .venv/bin/pip install -c constraints.txt -e '.[sweep]'"
    return Children(where, tick, f"one after the other, in child processes of this one ({remedy})")
