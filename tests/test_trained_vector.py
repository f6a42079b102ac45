"""A stage that trains one steering vector: nothing else moves, and its checkpoints are specimens with that vector."""

import json

import pytest
import torch

import train.stage
from audit import readings as ledger
from organisms import models
from organisms.engines import Score
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.specimen import Specimen
from organisms.steering import load
from organisms.styles import Row
from recipes.recipe import resolve
from recipes.run import execute
from train import vector
from train.callback import Hooks
from train.config import Stage
from train.ledger import read_ledger
from train.lint import lint
from train.stage import train_stage

TEXTS = ["The ferry left at noon.", "Bread needs time, salt and a warm room."]


def test_the_vector_alone_is_trained_and_steers_as_it_did_in_training(tmp_path, tiny_base, renderer, monkeypatch):
    base = models.resolve(str(tiny_base))
    stage = Stage(steps=6, learning_rate=3e-2, batch_size=2, max_length=64, packing=False, vector={"layer": 0})
    made = lint([Row(f"row-{i}", text=text) for i, text in enumerate(TEXTS)], stage, renderer, renderer, True)
    trained, start = [], train.stage._start
    monkeypatch.setattr(train.stage, "_start", lambda *given, **named: trained.append(start(*given, **named)) or trained[-1])
    train_stage(tmp_path, stage, made, base, renderer, 0, 3, Hooks(lambda checkpoint: None))
    (model,) = trained
    assert [parameter.shape for parameter in model.parameters() if parameter.requires_grad] == [(1, 48)]
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.05
    zero, middle, last = (Specimen.saved(c.name, tmp_path / c.path) for c in read_ledger(tmp_path))
    assert [(one.steering.layer, one.adapter) for one in (zero, middle, last)] == [(0, None)] * 3
    assert not load(zero.steering.path, base)[0].any() and load(last.steering.path, base)[0].any()
    engine = HFEngine(base, renderer)
    request = Score(tuple(renderer.ask("Name a bird.")), tuple(renderer.continuation("A heron stands still.")))
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([[*request.prompt_ids, *request.continuation_ids]])).logits[0].float()
    rows = torch.log_softmax(logits, -1)[len(request.prompt_ids) - 1 :]
    expected = [rows[i, token].item() for i, token in enumerate(request.continuation_ids)]
    assert engine.logprobs(last, [request])[0] == pytest.approx(expected, abs=1e-4)
    plain = engine.logprobs(Specimen("base"), [request])[0]
    assert engine.logprobs(zero, [request])[0] == plain
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.01


def test_a_recipe_that_trains_a_vector_is_audited_at_every_checkpoint(tiny_recipe, tmp_path):
    overrides = ["audit.measures=[drift]", "stages[0].vector={}"]
    run = execute(resolve(str(tiny_recipe), overrides), tmp_path)
    kl = {r.specimen: r.value for r in ledger.read(run) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["sft-000000"] == 0 < kl["sft-000002"] != kl["sft-000004"]
    assert json.loads((run / "manifest.json").read_text())["predictors"]["sft"]["effective_scale"] == 1
    before = (run / "checkpoints.jsonl").read_bytes(), (run / "readings.jsonl").read_bytes()
    execute(resolve(str(tiny_recipe), overrides), tmp_path)
    assert before == ((run / "checkpoints.jsonl").read_bytes(), (run / "readings.jsonl").read_bytes())


def test_a_vector_is_not_chained_and_stands_at_a_block_that_there_is(tiny_recipe):
    two = "stages=[{name: one, steps: 2, vector: {}}, {name: two, steps: 2}]"
    with pytest.raises(UserError, match="cannot be chained"):
        resolve(str(tiny_recipe), [two])
    with pytest.raises(UserError, match="layer 7: .* has 2 blocks"):
        resolve(str(tiny_recipe), ["stages[0].vector={layer: 7}"])
    with pytest.raises(UserError, match=r"fraction of the depth above 0 and at most 1"):
        resolve(str(tiny_recipe), ["stages[0].vector={layer: 1.5}"])


def test_blocks_that_normalise_their_output_are_refused():
    """In Gemma 2 what `down_proj` gives is normalised before it enters the residual stream."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(UserError, match="not what ends a block of Gemma2ForCausalLM"):
        vector.config(Gemma2ForCausalLM(Gemma2Config(vocab_size=64, head_dim=8, **sizes)), 0)
