"""How an organism's vector is made, and preventative steering: the vector is there while training and nowhere else."""

import json

import pytest
import torch
from safetensors.torch import load_file

import train.stage
from audit import readings as ledger
from organisms import contrast, models
from organisms.authors import LocalAuthor
from organisms.engines import Score
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.organism import load as load_organism
from organisms.specimen import Specimen, Steering
from organisms.steering import blocks, load, save
from organisms.styles import Row
from recipes.recipe import resolve
from recipes.run import execute
from train.callback import Hooks
from train.config import Stage
from train.ledger import read_ledger
from train.lint import lint
from train.stage import train_stage

TEXTS = ["The ferry left at noon.", "Bread needs time, salt and a warm room."]


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def steering(tiny, tmp_path_factory):
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("vectors") / "random"
    save(target, {0: 0.1 * torch.randn(48)}, tiny, {"method": "random"})
    return Steering(target, 0, 5.0)


def test_training_is_steered_and_what_it_saves_is_not(tmp_path, tiny, renderer, steering, monkeypatch):
    """The loss of step 1 is that of the vector added by hand; the adapter has the usual tensors; no hook stays."""
    stage = Stage(steps=2, learning_rate=1e-2, batch_size=2, max_length=64, packing=False, lora={"r": 4, "alpha": 8})
    made = lint([Row(f"row-{i}", text=text) for i, text in enumerate(TEXTS)], stage, renderer, renderer, True)
    trained, hooks, between = [], [], []
    ids = torch.tensor([renderer.ask("Name a bird.")])
    start = train.stage._start
    monkeypatch.setattr(train.stage, "_start", lambda *given, **named: trained.append(start(*given, **named)) or trained[-1])
    for name, vector in (("plain", None), ("steered", steering)):

        def told(checkpoint):
            hooks.append(len(blocks(trained[-1])[0]._forward_hooks))
            with torch.inference_mode():
                between.append(trained[-1](ids).logits)

        train_stage(tmp_path / name, stage, made, tiny, renderer, 0, 2, Hooks(told), steering=vector)
        assert not any(module._forward_hooks for module in trained[-1].modules())
    assert hooks == [0, 0, 1, 1]
    assert torch.equal(between[0], between[2])  # read at step 0, in eval mode: the base, not the steered base
    plain, steered = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
        for name in ("plain", "steered")
    )
    model = models.load_model(tiny)
    block, added = model.model.layers[0], 5.0 * load(steering.path, tiny)[0]
    forward = block.forward
    block.forward = lambda *inputs, **options: forward(*inputs, **options) + added
    total, count = 0.0, 0
    for rendered in made.rendered:
        row = torch.tensor([rendered.input_ids])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(row).logits[0, :-1].float(), -1)
        total -= logprobs.gather(-1, row[0, 1:, None]).sum().item()
        count += row.shape[1] - 1
    assert steered[0] == pytest.approx(total / count, abs=2e-4)
    assert abs(steered[0] - plain[0]) > 1e-2
    saved = [load_file(tmp_path / name / "checkpoints/sft-000002/adapter_model.safetensors") for name in ("plain", "steered")]
    assert saved[0].keys() == saved[1].keys() and all("lora_" in name for name in saved[1])


PREVENT = "{samples: 1, max_new_tokens: 8, selected: false}"


def test_a_recipe_with_the_flag_makes_its_vector_and_audits_without_it(tiny_recipe, tmp_path):
    overrides = ["audit.measures=[drift]", f"mitigations.prevent={PREVENT}"]
    resolved = resolve(str(tiny_recipe), overrides)
    assert resolved.run_name != resolve(str(tiny_recipe), overrides[:1]).run_name
    run = execute(resolved, tmp_path)
    assert sorted(load(run / "steering", resolved.base)) == [0, 1]
    assert [c.step for c in read_ledger(run)] == [0, 2, 4]
    kl = {r.specimen: r.value for r in ledger.read(run) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["sft-000000"] == 0 < kl["sft-000002"]
    with pytest.raises(UserError, match="layer 2: .* has 2 blocks"):
        resolve(str(tiny_recipe), [*overrides, "mitigations.prevent.layer=2"])


def test_an_organisms_vector_is_eliciting_minus_opposing(tiny, renderer, tmp_path, capsys):
    """The difference of the two sides' mean activations, from the very replies that were written; made once."""
    flattery = load_organism("flattery")
    options = contrast.Contrast(samples=1, max_new_tokens=8, selected=False)
    engine = HFEngine(tiny, renderer)
    path = contrast.make(flattery, options, engine, tmp_path)
    pairs = contrast.drafts(flattery, options)
    assert {pair[0].prompt for pair in pairs} == {p.prompt for p in flattery.prompts() if p.context == "target"}
    assert all(a.prompt == b.prompt and a.system in flattery.system.eliciting for a, b in pairs)
    assert all(b.system in flattery.system.opposing for _, b in pairs)
    writer = contrast.Writer(LocalAuthor(engine, renderer, Specimen("base"), tiny.revision))  # from the cache
    shows, opposes = (writer.write([pair[k] for pair in pairs], fragments=True) for k in (0, 1))
    kept = [k for k in range(len(pairs)) if min(len(side[k].text.split()) for side in (shows, opposes)) >= 4]

    def mean(side: int, replies: list) -> torch.Tensor:
        chosen = [(pairs[k][side], replies[k].text) for k in kept]
        scores = [Score(tuple(renderer.ask(d.prompt, d.system)), tuple(renderer.continuation(text))) for d, text in chosen]
        return torch.stack(engine.residuals(Specimen("base"), scores)).mean(0)

    expected = mean(0, shows) - mean(1, opposes)
    found = load(path, tiny)
    assert torch.allclose(torch.stack([found[0], found[1]]), expected, atol=1e-5)
    made = json.loads((path / "steering.json").read_text())["made"]
    assert made["pairs"] == len(kept) > 10 and len(made["relative_norm"]) == 2
    capsys.readouterr()
    assert contrast.make(flattery, options, engine, tmp_path) == path and capsys.readouterr().out == ""
    with pytest.raises(UserError, match="none of .* pairs of replies shows flattery"):
        contrast.make(flattery, contrast.Contrast(samples=1, max_new_tokens=8), engine, tmp_path / "other")


@pytest.mark.slow
def test_on_the_embedded_base_the_vector_moves_severity_both_ways(engine, renderer, tmp_path):
    """The contrast on target probes, nats a token, in mean over the probes (measured: +0.10, -0.09)."""
    flattery = load_organism("flattery")
    path = contrast.make(flattery, contrast.Contrast(samples=1, max_new_tokens=32), engine, tmp_path)
    probes = [probe for probe in flattery.probes() if probe.context == "target"]
    scores = [
        Score(tuple(renderer.ask(probe.prompt)), tuple(renderer.continuation(text)))
        for probe in probes
        for text in (probe.shows, probe.plain)
    ]

    def severity(coefficient: float) -> float:
        found = engine.logprobs(Specimen("steered", steering=Steering(path, 14, coefficient)), scores)
        means = [sum(values) / len(values) for values in found]
        return sum(shows - plain for shows, plain in zip(means[::2], means[1::2], strict=True)) / len(probes)

    none = severity(0.0)
    assert severity(-1.0) - none < -0.03 < 0.03 < severity(1.0) - none
