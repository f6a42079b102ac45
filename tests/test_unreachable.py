"""A hub, an endpoint or W&B that fails or hangs: an error after a while, or a run that goes on without it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audit import publish
from organisms.endpoint import Endpoint
from organisms.errors import UserError
from organisms.files import append_jsonl

ROOT = Path(__file__).parent.parent


@pytest.fixture
def silent():
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


def test_a_hub_that_never_answers_is_out_of_reach_after_a_while(silent):
    code = (
        "from organisms import hub, models\nfrom organisms.errors import Missing\nhub.SECONDS = 0.2\n"
        "try: hub.snapshot('owner/model', None, ['*.json'])\nexcept Missing as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{silent}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "the hub cannot be reached" in done.stdout


def test_an_endpoint_that_never_answers_is_an_error_after_a_while(silent):
    endpoint = Endpoint("writer", "writer", f"http://127.0.0.1:{silent}/v1", "m", "NO_KEY", 1, timeout=0.3)
    endpoint.client.max_retries = 1
    began = time.monotonic()
    with pytest.raises(UserError, match="the writer endpoint:m failed: APITimeoutError"):
        endpoint.ask([{"role": "user", "content": "a"}], 2, max_tokens=1)
    assert time.monotonic() - began < 30


def test_a_run_goes_on_without_a_wandb_that_is_out_of_reach_and_keeps_its_name_there(tmp_path, monkeypatch, silent, capsys):
    import wandb

    run = tmp_path / "run"
    run.mkdir()
    append_jsonl(run / "train.jsonl", [{"stage": "sft", "step": 1, "tokens_seen": 5, "loss": 1.0}])
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = []

    def refused(**given):
        names.append(given["id"])
        raise wandb.errors.CommError("Timed out\nlong")

    monkeypatch.setattr(wandb, "init", refused)
    with publish.Publisher(run) as publisher:
        publisher.send()
        publisher.send(final=True)
        publisher.alert("a", "b")
    assert capsys.readouterr().out.count("W&B cannot be reached (CommError: Timed out); what is missing there is sent by") == 1
    with pytest.raises(UserError, match="W&B cannot be reached"):
        publish.publish(run)
    assert len(names) == 2 and names[0] == names[1]  # what was killed after its first contact goes on in the same W&B run
    assert json.loads((run / "wandb.json").read_text()).keys() == {"id"}  # nothing was sent


def test_a_wandb_process_that_vanishes_does_not_take_the_run_with_it(tmp_path):
    code = """
import sys
from pathlib import Path
import psutil
from audit.publish import Publisher
from organisms.files import append_jsonl, write_json
run = Path(sys.argv[1])
with Publisher(run) as publisher:
    append_jsonl(run / "train.jsonl", [{"stage": "sft", "step": 1, "tokens_seen": 5, "loss": 1.0}])
    publisher.send()
    below = psutil.Process().children(recursive=True)
    service = [process for process in below if "wandb-core" in process.name()]
    assert service, below
    for process in service:
        process.kill()
        process.wait()  # until it is gone
    for step in range(2, 6):
        append_jsonl(run / "train.jsonl", [{"stage": "sft", "step": step, "tokens_seen": 5 * step, "loss": 1.0}])
        publisher.send()
print("done")
"""
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done", done.stderr
    assert done.stdout.count("W&B cannot be reached") == 1
    assert "Traceback" not in done.stderr
