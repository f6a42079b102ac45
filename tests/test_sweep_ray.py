"""A sweep on Ray: two nodes on this machine, one of which is killed in the middle of a cell, and nothing is lost."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from audit import readings as ledger
from organisms.files import read_jsonl
from recipes import grid
from recipes.store import Copy, Store

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # and none that earlier uses of Ray left
# One thread, which a cell of one CPU has on Ray: the order of a sum, and so a figure's last digits, follow their number.
ALIKE = {**TOKEN, "OMP_NUM_THREADS": "1"}
ROOT = grid.FOLDER.parent.parent
SWEEP = """
about: two seeds of the tiny recipe
set: ["stages[0].steps=12", "audit.measures=[severity,webtext]", audit.limit=4]
grids: [{{recipes: [{recipe}], seeds: [0], doses: [0.5]}}, {{recipes: [{recipe}], seeds: [1]}}]
"""


def node(*arguments: str) -> subprocess.Popen:
    """A Ray node of one CPU. In a session of its own: Ray's reaper ends the process group that it was started from."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, "--num-cpus=1", "--block"]
    return subprocess.Popen(
        [*command, f"--object-store-memory={80 * 2**20}", "--disable-usage-stats"],
        env={**os.environ, **ALIKE},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lose(one: subprocess.Popen) -> None:
    """All processes of a node at once, as when a machine is switched off."""
    whole = [psutil.Process(one.pid), *psutil.Process(one.pid).children(recursive=True)] if one.poll() is None else []
    for process in whole:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    one.wait()


@pytest.fixture
def cluster():
    """A head, a second node, and the address."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    head = node("--head", f"--port={port}", "--include-dashboard=false")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.5)
    found = SimpleNamespace(address=f"127.0.0.1:{port}", second=node(f"--address=127.0.0.1:{port}"))
    yield found
    for one in (found.second, head):
        lose(one)


def started(path: Path, root: str, *arguments: str, cache: Path, folder: Path = ROOT) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.sweep", str(path), "--runs", root, *arguments],
        cwd=folder,
        env={**os.environ, "ORGANISMS_CACHE": str(cache), "PYTHONPATH": str(ROOT), **ALIKE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read(directory: Path) -> dict:
    """Every reading by its key, and how often it stands in the file."""
    rows = read_jsonl(directory / "readings.jsonl")
    keys = [(row["specimen"], row["measure"], row["metric"], row["split"]) for row in rows]
    values = {r.key: (r.value, r.delta, r.delta_low, r.n, r.verdict) for r in ledger.read(directory)}
    return {key: (values[key], keys.count(key)) for key in values}


def test_a_node_that_is_killed_in_the_middle_of_a_cell_loses_nothing(cluster, tiny_recipe, cache, tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(SWEEP.format(recipe=tiny_recipe))
    cells = [cell for cell, _ in grid.look_up(grid.expand(grid.load(str(path))[1]))]
    undisturbed = started(path, str(tmp_path / "undisturbed"), "--address", "none", cache=cache)
    printed, _ = undisturbed.communicate(timeout=1500)
    assert undisturbed.returncode == 0, printed

    store = Store(f"file://{tmp_path}/store")
    sweep = started(path, store.url, "--address", cluster.address, cache=cache)

    def status(cell) -> dict:
        return json.loads(store.read(f"sweep-two/cells/{cell.run}.json") or "{}")

    def half_way(cell) -> bool:
        """On the second node, past step 4, and not at the end."""
        found = status(cell).get("node")
        if found is None or not psutil.pid_exists(at := int(found.partition("(")[2].rstrip(")"))):
            return False
        if cluster.second.pid not in [process.pid for process in psutil.Process(at).parents()]:
            return False
        copy = Copy(store, tmp_path / "look" / cell.run)
        copy.pull()
        steps = (
            [row["step"] for row in read_jsonl(copy.run / "checkpoints.jsonl")] if any(copy.run.glob("check*.jsonl")) else []
        )
        return bool(steps) and 4 <= steps[-1] < 12

    deadline = time.monotonic() + 1500
    while not (found := [cell for cell in cells if half_way(cell)]) and time.monotonic() < deadline:
        assert sweep.poll() is None, sweep.stdout.read()
        if cluster.second.poll() is not None:  # Ray gives a node 30 s to start, which on a loaded machine may not do
            cluster.second = node(f"--address={cluster.address}")
        time.sleep(0.2)
    (lost,) = found
    before = status(lost)
    lose(cluster.second)
    printed, _ = sweep.communicate(timeout=1500)
    assert sweep.returncode == 0, printed
    assert "2 done" in printed and status(lost)["attempt"] != before["attempt"]
    log = store.read(f"sweep-two/logs/{lost.run}.log").decode()
    assert log.count("recipe      tiny") >= 2 and "resuming stage sft at step" in log  # the second attempt went on
    for cell in cells:
        mine, theirs = (tmp_path / part / cell.run for part in ("store", "undisturbed"))
        assert read(mine) == read(theirs) and {count for _, count in read(mine).values()} == {1}
        assert read_jsonl(mine / "checkpoints.jsonl") == read_jsonl(theirs / "checkpoints.jsonl")
        assert [row["step"] for row in read_jsonl(mine / "train.jsonl")] == list(range(1, 13))
        assert not store.names(f"{cell.run}/trainer")
    again = started(path, store.url, "--address", "none", cache=cache, folder=tmp_path)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "2 of them there already" in printed
    here = tmp_path / "runs" / "sweep-two"  # fetched from the store, without weights
    runs = [f"runs/sweep-two/runs/{cell.run}" for cell in cells]
    assert f'make compare runs="{" ".join(runs)}"' in printed
    assert not (here / "runs" / cells[0].run / "checkpoints").exists()
    table = (here / "results.md").read_text()
    assert "sft-000012@0.5" in table and table.count("| sft-000012 |") == 2


def test_without_an_address_ray_starts_on_this_machine(tiny_base, cache, tmp_path):
    (tmp_path / "prompted.yaml").write_text(
        f"organism: flattery\nstyle: prompted\nbase: {tiny_base}\nsystem: template\nstyle_options: {{prompts: 1}}\n"
        "audit: {measures: [severity], limit: 4}\n"
    )
    path = tmp_path / "one.yaml"
    path.write_text(f"about: one\ngrids: [{{recipes: [{tmp_path / 'prompted.yaml'}]}}]")
    sweep = started(path, str(tmp_path / "runs"), cache=cache)
    printed, _ = sweep.communicate(timeout=1500)
    assert sweep.returncode == 0 and "Ray on this machine: 1 nodes" in printed and "1 done" in printed, printed
