"""The engine is chosen by name or by what is there, a curve never mixes two, and an adapter that is not served is refused."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from audit import readings as ledger
from organisms import models
from organisms.engines import load
from organisms.engines.agreement import check_agreement
from organisms.engines.load import EnginePlan, chosen
from organisms.errors import UserError
from organisms.specimen import Specimen
from recipes.plan import describe, plan
from recipes.recipe import resolve
from recipes.run import execute

HAS_VLLM = importlib.util.find_spec("vllm") is not None


def test_without_a_gpu_auto_is_transformers():
    assert chosen(EnginePlan()) == ("vllm" if HAS_VLLM and models.default_device() == "cuda" else "hf")


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_vllm_by_name_names_the_extra_where_it_is_not_installed(tiny_recipe):
    with pytest.raises(UserError, match=r"\[vllm\]"):
        resolve(str(tiny_recipe), ["audit.engine.name=vllm"])
    planned = resolve(str(tiny_recipe), ["audit.engine.name=vllm"], planned=True)
    assert any(line.startswith("missing") and "[vllm]" in line for line in describe(planned, plan(planned)))


def test_settings_that_only_vllm_has_are_refused_elsewhere(tiny_recipe):
    with pytest.raises(UserError, match="tensor_parallel.*name: vllm"):
        resolve(str(tiny_recipe), ["audit.engine.tensor_parallel=2"])


def test_a_recipe_that_steers_stays_on_transformers(monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(models, "default_device", lambda: "cuda")
    assert chosen(EnginePlan()) == "vllm" and chosen(EnginePlan(), only_hf=True) == "hf"
    with pytest.raises(UserError, match="adds no steering vector"):
        resolve("flattery-steering", ["audit.engine.name=vllm"])


def test_another_engine_reads_the_whole_curve_again_and_trains_nothing(tiny_recipe, tmp_path, monkeypatch):
    from organisms.engines.hf import HFEngine

    resolved = resolve(str(tiny_recipe), ["audit.measures=[drift,webtext]", "audit.limit=6"])
    run = execute(resolved, tmp_path)
    before = {r.key: r.audit_digest for r in ledger.read(run)}
    weights = {path: path.stat().st_mtime_ns for path in run.glob("checkpoints/*/adapter_model.safetensors")}
    monkeypatch.setattr(load, "load", lambda plan, base, renderer, only_hf: HFEngine(base, renderer, max_rows=3))
    assert execute(resolved, tmp_path) == run
    after = {r.key: r.audit_digest for r in ledger.read(run)}
    assert {path: path.stat().st_mtime_ns for path in weights} == weights and weights
    assert after.keys() == before.keys()
    assert not [key for key, digest in after.items() if digest == before[key]]
    assert json.loads((run / "manifest.json").read_text())["engine"]["max_rows"] == 3


class Altered:
    """An engine that serves another adapter or scale than it was asked for, as vLLM does where it drops a part."""

    def __init__(self, engine, **change):
        self.engine, self.change, self.identity = engine, change, {"engine": "altered"}

    def logprobs(self, specimen, requests):
        changed = dataclasses.replace(specimen, **self.change) if specimen.adapter else specimen
        return self.engine.logprobs(changed, requests)


def test_an_adapter_that_is_not_served_as_transformers_does_is_refused(engine, renderer, adapters):
    random, zero = (Specimen(name, adapter=adapters[name]) for name in ("random", "zero"))
    assert check_agreement(engine, engine, random, renderer) == 0
    assert check_agreement(Altered(engine, adapter=None), engine, zero, renderer) == 0  # nothing to serve
    with pytest.raises(UserError, match="reads the bare base"):
        check_agreement(Altered(engine, adapter=None), engine, random, renderer)
    with pytest.raises(UserError, match="does not serve"):
        check_agreement(Altered(engine, scale=0.8), engine, random, renderer)


def test_the_process_of_an_engine_dies_with_its_parent():
    code = (
        "import time; from organisms.engines.vllm_process import Worker\n"
        "worker = Worker({}, {}); print(worker.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    assert ends(pid)


def ends(pid: int, seconds: float = 30) -> bool:
    """Whether a process that is no child of ours is gone within that time."""
    for _ in range(int(seconds * 10)):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False
