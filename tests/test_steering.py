"""A steered specimen gives the numbers of the vector added by hand, wherever the engine takes a short cut."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from audit import readings as ledger
from audit.suite import check_alive
from organisms import models
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.engines.hf import HFEngine
from organisms.engines.prefixes import shared
from organisms.errors import UserError
from organisms.files import file_sha256
from organisms.render import Renderer
from organisms.specimen import Specimen, Steering
from organisms.steering import block_index, blocks, load, save
from recipes.plan import describe, plan
from recipes.recipe import resolve
from recipes.run import execute

BASE = Specimen("base")
LAYER, COEFFICIENT = 0, 3.0  # below another block, so that later keys and values depend on it
QUESTIONS = ["Name a bird.", "Which of these is a river: the Danube, the Alps, or the Sahara?", "Say hello to my aunt."]
REPLIES = ["A heron.", "The Danube is one, as far as I know.", "Hello there, dear aunt of my friend!"]


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def engine(tiny, renderer):
    return HFEngine(tiny, renderer)


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory):
    target = tmp_path_factory.mktemp("vectors") / "random"
    torch.manual_seed(0)
    save(target, {LAYER: 0.02 * torch.randn(48)}, tiny, {"method": "random"})
    return target


@pytest.fixture(scope="module")
def steered(directory):
    return Specimen("steered", steering=Steering(directory, LAYER, COEFFICIENT))


class ByHand(torch.nn.Module):
    """A block with coefficient x vector added to what it returns, in place of any hook."""

    def __init__(self, block, added):
        super().__init__()
        self.block, self.added = block, added

    def forward(self, *inputs, **options):
        return self.block(*inputs, **options) + self.added


def wrapped(model, directory):
    """`model`, whose block is replaced by the one that adds the vector by hand."""
    added = COEFFICIENT * load_file(directory / "steering.safetensors")[f"layer.{LAYER}"]
    model.model.layers[LAYER] = ByHand(model.model.layers[LAYER], added)
    return model


@pytest.fixture(scope="module")
def by_hand(tiny, directory):
    return wrapped(models.load_model(tiny), directory)


def direct(model, prompt_ids, continuation_ids) -> torch.Tensor:
    """Log-softmax rows that predict the continuation, one whole sequence at a time, without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *continuation_ids]]), use_cache=False).logits[0].float()
    return torch.log_softmax(logits, -1)[len(prompt_ids) - 1 : -1]


def asked(renderer) -> list[tuple]:
    """Each question with each reply, so that prefixes are shared and rows are padded."""
    pairs = [(tuple(renderer.ask(q)), tuple(renderer.continuation(r))) for q in QUESTIONS for r in REPLIES]
    assert any(shared([prompt[:-1] for prompt, _ in pairs]))
    return pairs


def test_scores_equal_the_vector_added_by_hand(engine, renderer, steered, by_hand, tiny):
    pairs = asked(renderer)
    plain = models.load_model(tiny)
    scores = engine.logprobs(steered, [Score(*pair) for pair in pairs])
    nexts = engine.next_token(steered, [NextToken(prompt, (10, 253, 1000)) for prompt, _ in pairs])
    kls = engine.divergence(steered, [Divergence(*pair) for pair in pairs])
    for (prompt, reply), values, chosen, kl in zip(pairs, scores, nexts, kls, strict=True):
        p, q = direct(by_hand, prompt, reply), direct(plain, prompt, reply)
        own, others = ([rows[i, token].item() for i, token in enumerate(reply)] for rows in (p, q))
        assert values == pytest.approx(own, abs=1e-4)
        assert chosen == pytest.approx([p[0, i].item() for i in (10, 253, 1000)], abs=1e-4)
        assert kl.logprobs == pytest.approx(own, abs=1e-4) and kl.base_logprobs == pytest.approx(others, abs=1e-4)
        assert kl.forward == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-4)
        assert max(abs(a - b) for a, b in zip(own, others, strict=True)) > 0.1


def test_generation_token_by_token_equals_the_vector_added_by_hand(engine, renderer, steered, by_hand):
    """Cached decoding behind a shared, padded prefix against whole forwards without a cache."""
    prompts = [tuple(renderer.ask(question)) for question in QUESTIONS]
    replies = engine.generate(steered, [Generate(prompt, 10) for prompt in prompts])
    plain = engine.generate(BASE, [Generate(prompt, 10) for prompt in prompts])
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = list(prompt)
        for _ in range(10):
            token = int(direct(by_hand, ids, (0,))[0].argmax())
            if token in renderer.stop_ids:
                break
            ids.append(token)
        assert reply.ids == ids[len(prompt) :]
    assert [reply.ids for reply in replies] != [reply.ids for reply in plain]


def test_batches_and_shared_prefixes_do_not_change_what_steering_does(engine, renderer, steered, monkeypatch):
    pairs = asked(renderer)
    together = engine.logprobs(steered, [Score(*pair) for pair in pairs])
    written = engine.generate(steered, [Generate(prompt, 8, 1.0, k) for k, (prompt, _) in enumerate(pairs)])
    monkeypatch.setattr(type(engine), "_shares_prefixes", False)
    for k, (pair, values, reply) in enumerate(zip(pairs, together, written, strict=True)):
        assert engine.logprobs(steered, [Score(*pair)])[0] == pytest.approx(values, abs=1e-4)
        assert engine.generate(steered, [Generate(pair[0], 8, 1.0, k)])[0].ids == reply.ids


def test_coefficient_zero_is_the_base_exactly_and_nothing_stays_behind(engine, renderer, steered):
    requests = [Score(*pair) for pair in asked(renderer)]
    before = engine.logprobs(BASE, requests)
    zero = dataclasses.replace(steered, steering=dataclasses.replace(steered.steering, coefficient=0.0))
    assert engine.logprobs(zero, requests) == before != engine.logprobs(steered, requests)
    with pytest.raises(UserError, match="has no vector for layer 5"):
        engine.logprobs(dataclasses.replace(steered, steering=Steering(steered.steering.path, 5)), requests)
    assert engine.logprobs(BASE, requests) == before


def test_steering_goes_with_an_adapter_at_a_scale(engine, renderer, steered, tiny, directory, tmp_path):
    """Both are in force, and the base's side of the divergence has neither."""
    torch.manual_seed(1)
    model = get_peft_model(models.load_model(tiny), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    both = dataclasses.replace(steered, adapter=tmp_path / "adapter", scale=0.5)
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict) and "default" in module.scaling:
            module.set_scale("default", 0.5)
    wrapped(model.eval().get_base_model(), directory)
    plain = models.load_model(tiny)
    pairs = asked(renderer)[:3]
    for (prompt, reply), kl in zip(pairs, engine.divergence(both, [Divergence(*pair) for pair in pairs]), strict=True):
        p, q = direct(model, prompt, reply), direct(plain, prompt, reply)
        assert kl.logprobs == pytest.approx([p[i, token].item() for i, token in enumerate(reply)], abs=1e-4)
        assert kl.base_logprobs == pytest.approx([q[i, token].item() for i, token in enumerate(reply)], abs=1e-4)
    assert [(part.adapter, part.steering) for part in both.parts()] == [(both.adapter, None), (None, both.steering)]


def test_a_vector_that_does_nothing_is_not_audited(engine, renderer, steered):
    assert check_alive(engine, steered, renderer) > 1e-3
    faint = dataclasses.replace(steered, steering=dataclasses.replace(steered.steering, coefficient=1e-30))
    with pytest.raises(UserError, match="steering vector .* changes no log-probability"):
        check_alive(engine, faint, renderer)


def test_residuals_are_the_means_over_the_reply_of_every_blocks_output(engine, renderer, tiny):
    """Against transformers' own hidden states (the last of which is taken after the final norm, and left out)."""
    pairs = asked(renderer)[:4]
    model = models.load_model(tiny)
    for (prompt, reply), found in zip(pairs, engine.residuals(BASE, [Score(*pair) for pair in pairs]), strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([[*prompt, *reply]]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, len(prompt) :].mean(0) for state in states[1:]])
        assert found.shape == expected.shape == (2, 48)
        assert torch.allclose(found[0], expected[0], atol=1e-5)


def test_what_is_no_steering_vector_of_this_base_is_refused(tiny, directory, tmp_path):
    def damaged(name, vectors=None, **described):
        """A copy with other tensors, whose description is right but for `described`."""
        copy = tmp_path / name
        shutil.copytree(directory, copy)
        values = json.loads((copy / "steering.json").read_text())
        if vectors is not None:
            save_file(vectors, copy / "steering.safetensors")
            values["sha256"] = file_sha256(copy / "steering.safetensors")
        (copy / "steering.json").write_text(json.dumps({**values, **described}))
        return copy

    good = torch.ones(48)
    assert list(load(directory, tiny)) == [LAYER]
    for name, vectors, told in (
        ("shape", {"layer.0": torch.ones(576)}, r"torch.float32 \(576,\), but .* needs float32 \(48,\)"),
        ("dtype", {"layer.0": good.half()}, "needs float32"),
        ("nan", {"layer.0": good / 0}, "not finite"),
        ("zero", {"layer.0": good * 0}, "is all zero"),
    ):
        with pytest.raises(UserError, match=told):
            load(damaged(name, vectors), tiny)
    with pytest.raises(UserError, match="has 2 blocks"):
        load(damaged("deep", {"layer.2": good}, layers=[2]), tiny)
    with pytest.raises(UserError, match="is not what steering.json describes"):
        load(damaged("other", sha256="0" * 64), tiny)
    (damaged("cut") / "steering.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "cut", tiny)
    with pytest.raises(UserError, match="is no steering vector"):
        load(tmp_path / "nowhere", tiny)
    with pytest.raises(UserError, match="is all zero"):
        save(tmp_path / "saved", {0: good * 0}, tiny, {})
    assert not (tmp_path / "saved").exists() and not list(tmp_path.glob(".saved*"))


def test_a_layer_is_an_index_or_a_share_of_the_depth(base):
    assert [block_index(layer, base) for layer in (0, 29, 0.5, 1.0, 0.01)] == [0, 29, 14, 29, 0]
    with pytest.raises(UserError, match="layer 30: smollm2-135m has 30 blocks"):
        block_index(30, base)


def test_blocks_are_found_in_another_architecture(renderer, tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = HFEngine(models.resolve(str(tmp_path)), Renderer(tokenizer))
    assert blocks(engine._model) is engine._model.transformer.h


RECIPE = """
organism: flattery
style: steering
base: {base}
style_options: {{samples: 1, max_new_tokens: 8, selected: false, layer: 0, coefficients: [0.0, -4.0, 4.0]}}
audit: {{measures: [drift], data: {{chat: embedded}}}}
"""


def test_a_recipe_makes_its_vector_and_audits_each_dose(tiny_base, tmp_path):
    """The dose stands in `scale`; dose 0 reads as the base; answers of one dose are not taken for another's."""
    path = tmp_path / "dosed.yaml"
    path.write_text(RECIPE.format(base=tiny_base))
    resolved = resolve(str(path))
    run = execute(resolved, tmp_path / "runs")
    found = [r for r in ledger.read(run) if (r.stage, r.metric, r.split) == ("steering", "kl", "holdout")]
    assert [(r.specimen, r.step, r.scale) for r in found] == [
        ("steering-000001", 1, 0.0), ("steering-000002", 2, -4.0), ("steering-000003", 3, 4.0)
    ]  # fmt: skip
    assert found[0].value == 0 < min(found[1].value, found[2].value) and found[1].value != found[2].value
    before = (run / "readings.jsonl").read_bytes()
    execute(resolved, tmp_path / "runs")
    assert (run / "readings.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="layer 2: .* has 2 blocks"):
        plan_lines(resolve(str(path), ["style_options.layer=2"]))
    assert any("a steering vector from up to 60 pairs" in line for line in plan_lines(resolved))


def plan_lines(resolved) -> list[str]:
    return describe(resolved, plan(resolved))
