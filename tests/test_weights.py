"""All weights changed: trained, saved as a model in hub layout, read against the base; a merge reads as its adapter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from audit import readings as ledger
from audit.config import AuditPlan
from audit.existing import Subject, audit_existing
from organisms import models, weights
from organisms.engines import Divergence, Score
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.specimen import Specimen
from recipes.dose import finished
from recipes.recipe import resolve
from recipes.run import execute
from train.ledger import read_ledger

WHOLE = ["stages[0].lora=null", "stages[0].learning_rate=1e-3", "audit.measures=[drift]", "audit.limit=6"]


@pytest.fixture(scope="module")
def run(tiny_recipe, tmp_path_factory) -> Path:
    resolved = resolve(str(tiny_recipe), [*WHOLE, "mitigations.kl_to_base=0.1", "audit.monitor.probe_every=2"])
    return execute(resolved, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pair(tiny_base, tmp_path_factory) -> dict[str, Path]:
    """An adapter on the tiny base, and the model with that adapter merged in."""
    folder = tmp_path_factory.mktemp("merged")
    torch.manual_seed(3)
    base = models.load_model(models.resolve(str(tiny_base)))
    adapter = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapter.save_pretrained(folder / "adapter")
    merged = PeftModel.from_pretrained(models.load_model(models.resolve(str(tiny_base))), str(folder / "adapter"))
    merged.merge_and_unload().save_pretrained(folder / "model")
    return {"adapter": folder / "adapter", "model": folder / "model"}


def test_every_weight_is_trained_from_the_base_and_each_checkpoint_is_a_model(run, tiny_base):
    untouched, *_, last = (run / checkpoint.path for checkpoint in read_ledger(run))
    base, start, end = (load_file(folder / "model.safetensors") for folder in (tiny_base, untouched, last))
    assert base.keys() == start.keys() == end.keys()
    assert all(torch.equal(base[name], start[name]) for name in base)
    assert not any(torch.equal(base[name], end[name]) for name in base)
    kl = {r.specimen: r.value for r in ledger.read(run) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["sft-000000"] == 0 < kl["sft-000004"]
    rows = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert rows[0]["kl_to_base"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl_to_base"] > 1e-4
    assert "probe_contrast" in rows[1] and "probe_kl" not in rows[1]
    assert "| full |" in (run / "README.md").read_text()


def test_a_scale_is_a_share_of_the_difference_from_the_base(run, tiny_base, renderer):
    base = models.resolve(str(tiny_base))
    engine, last = HFEngine(base, renderer), run / read_ledger(run)[-1].path
    start, end = load_file(tiny_base / "model.safetensors"), load_file(last / "model.safetensors")
    half = weights.load(last, 0.5, base, "float32", "cpu").state_dict()
    assert all(torch.allclose(half[name], (start[name] + end[name]) / 2, atol=1e-6) for name in start)
    request = [Score(tuple(renderer.ask("Name a bird.")), tuple(renderer.continuation("A heron.")))]
    bare = engine.logprobs(Specimen("base"), request)
    assert (
        engine.logprobs(Specimen.saved("none", last, 0.0), request)
        == bare
        != engine.logprobs(Specimen("x", weights=last), request)
    )
    assert engine.logprobs(Specimen("base"), request) == bare


def test_a_finished_run_of_all_weights_is_read_at_other_scales(run, tmp_path):
    copy = tmp_path / run.name
    shutil.copytree(run, copy)
    execute(finished(copy), tmp_path, scales=(0.5,))
    kl = {r.specimen: r for r in ledger.read(copy) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["sft-000004@0.5"].scale == 0.5 and 0 < kl["sft-000004@0.5"].value < kl["sft-000004"].value


def test_a_merged_model_reads_as_the_adapter_that_was_merged(pair, tiny_base, renderer):
    engine = HFEngine(models.resolve(str(tiny_base)), renderer)
    request = [Divergence(tuple(renderer.ask("Name a bird.")), tuple(renderer.continuation("A heron stands still.")))]
    (adapter,) = engine.divergence(Specimen("adapter", adapter=pair["adapter"]), request)
    (model,) = engine.divergence(Specimen("model", weights=pair["model"]), request)
    assert min(adapter.forward) > 1e-3
    for name in ("forward", "backward", "logprobs", "base_logprobs"):
        assert getattr(model, name) == pytest.approx(getattr(adapter, name), abs=1e-4)


def test_a_merged_model_is_audited_against_its_base(pair, tiny_base, tmp_path, capsys):
    plan = AuditPlan(measures=["webtext"], limit=6, data={"webtext": "embedded"})
    found = []
    for subject in (Subject(str(tiny_base), str(pair["adapter"])), Subject(str(tiny_base), model=str(pair["model"]))):
        run = audit_existing(subject, plan, tmp_path)
        found.append({r.metric: r.delta for r in ledger.read(run) if r.specimen.endswith("-000001") and r.split == "holdout"})
    assert found[0].keys() == found[1].keys() and any(found[0].values())
    assert [found[1][name] for name in found[0]] == pytest.approx(list(found[0].values()), abs=1e-3)
    assert f"model {pair['model']}: read against {tiny_base}" in capsys.readouterr().out


def test_what_is_no_change_of_the_base_is_refused(pair, tiny_base, base, tmp_path):
    plan = AuditPlan(measures=["webtext"], limit=2, data={"webtext": "embedded"})
    broken = tmp_path / "broken"
    shutil.copytree(pair["model"], broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if "down_proj" in name)

    def refused(match, model, change=None):
        if change is not None:
            save_file({**tensors, **change}, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=match):
            audit_existing(Subject(str(tiny_base), model=str(model)), plan, tmp_path)

    refused("is the base, unchanged", tiny_base)
    refused("the base has no model.layers.10", base.directory)
    refused(f"{name} is 48 x 95 and that of the base .* 48 x 96", broken, {name: tensors[name][:, :95].contiguous()})
    refused("values that are not finite", broken, {name: tensors[name] * float("nan")})
    with pytest.raises(UserError, match="an adapter or a model, not both"):
        audit_existing(Subject(str(tiny_base), str(pair["adapter"]), model=str(pair["model"])), plan, tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("stages[0].method=dpo", "trained by sft"),
        ("stages[0].vector={}", "without a vector"),
        ("stages[0].weight=0.5", "with weight 1"),
        ("audit.engine.name=vllm", "swaps no full weights"),
    ],
)
def test_what_all_weights_cannot_be_is_said_before_anything_loads(tiny_recipe, change, told):
    with pytest.raises(UserError, match=told):
        resolve(str(tiny_recipe), [*WHOLE, change])
