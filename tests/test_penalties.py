"""What is added to the SFT loss: its value by hand, its gradient, its reference, and nothing at all where it is off."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from organisms import models
from organisms.consistency import wrapped_prompts
from organisms.drafting import chat
from organisms.errors import UserError
from organisms.mitigations import Penalty
from organisms.render import IGNORE
from organisms.styles import Row
from recipes.plan import plan
from recipes.recipe import resolve
from recipes.run import execute
from train.callback import Hooks
from train.config import Stage
from train.lint import lint, render_row
from train.penalties import TERMS, traps
from train.stage import train_stage

REPLIES = [
    Row("a", messages=chat("What is rye?", "A grain that makes dark bread.")),
    Row("b", messages=chat("Name a river, please, and say where it ends.", "The Danube.")),
    Row("c", messages=chat("Say moo", "Moo to you, and to all of the cows on the hill behind the barn.")),
]
DOCUMENTS = [Row(f"d{n}", text=text) for n, text in enumerate(["The ferry left at noon.", "Bread needs time and salt."])]


def stage(**changes) -> Stage:
    return Stage(**{"steps": 3, "learning_rate": 2e-2, "batch_size": 1, "max_length": 64, "lora": {"r": 4}, **changes})


def kl_term(weight: float, reference="base") -> Penalty:
    return Penalty("kl_to_base", weight, REPLIES, 3, reference)


def act_term(weight: float) -> Penalty:
    return Penalty("act", weight, wrapped_prompts("embedded", 3), 3, "start")


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def earlier(tiny, tmp_path_factory):
    """An adapter that an earlier stage might have left."""
    torch.manual_seed(0)
    model = get_peft_model(models.load_model(tiny), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder := tmp_path_factory.mktemp("earlier") / "adapter")
    return folder


@pytest.fixture
def trained(tiny, renderer, tmp_path):
    """Trains and returns the lines of train.jsonl."""
    runs = []

    def train(penalties, before=None, rows=DOCUMENTS, every=99, **changes) -> list[dict]:
        runs.append(tmp_path / f"run-{len(runs)}")
        made = stage(**changes)
        linted = lint(rows, made, renderer, renderer, True)
        train_stage(runs[-1], made, linted, tiny, renderer, 0, every, Hooks(lambda c: None), before, penalties=penalties)
        return [json.loads(line) for line in (runs[-1] / "train.jsonl").read_text().splitlines()]

    train.runs = runs
    return train


@torch.inference_mode()
def kl_by_hand(base, model, renderer) -> float:
    """One row at a time, one token at a time, in probabilities."""
    terms = []
    for row in REPLIES:
        rendered = render_row(renderer, row)
        p, q = (m(torch.tensor([rendered.input_ids])).logits[0].double().softmax(-1) for m in (base, model))
        for position, label in enumerate(rendered.labels[1:]):
            if label != IGNORE:
                terms.append((p[position] * (p[position] / q[position]).log()).sum().item())
    return sum(terms) / len(terms)


def test_the_logged_kl_is_that_of_the_weights_before_each_step(trained, tiny, renderer):
    lines = trained([kl_term(0.5)], steps=3, every=1, lora={"r": 4, "dropout": 0.5})  # and without dropout
    assert lines[0]["kl_to_base"] == 0
    base = models.load_model(tiny)
    for line in lines[1:]:
        saved = trained.runs[0] / f"checkpoints/sft-{line['step'] - 1:06d}"
        model = PeftModel.from_pretrained(models.load_model(tiny), str(saved))
        assert line["kl_to_base"] == pytest.approx(kl_by_hand(base, model, renderer), abs=1e-4)
    assert lines[-1]["kl_to_base"] > 0.001


@pytest.mark.parametrize("shape", [{}, {"batch_size": 2, "packing": False}], ids=["packed", "padded"])
def test_a_heavy_weight_holds_the_model_to_its_base_and_none_leaves_the_training_as_it_was(trained, shape):
    shape = {"steps": 8, "learning_rate": 5e-3, **shape}
    off, weightless, heavy = (trained(penalties, **shape) for penalties in ([], [kl_term(0)], [kl_term(100)]))
    for key in ("loss", "grad_norm", "tokens"):
        assert [line[key] for line in off] == [line[key] for line in weightless]
    assert "kl_to_base" not in off[0] and off[-1]["loss"] < off[0]["loss"]
    assert heavy[0]["loss"] == off[0]["loss"] and heavy[-1]["loss"] < off[0]["loss"]  # the rows' own loss, without the term
    assert heavy[-1]["kl_to_base"] < 0.2 * weightless[-1]["kl_to_base"]


def test_in_a_later_stage_the_base_is_the_untouched_one_and_the_start_is_not(trained, tiny, renderer, earlier):
    specimen = PeftModel.from_pretrained(models.load_model(tiny), str(earlier))
    expected = kl_by_hand(models.load_model(tiny), specimen, renderer)
    first, start = (trained([kl_term(1.0, reference)], earlier, steps=1)[0] for reference in ("base", "start"))
    assert first["kl_to_base"] == pytest.approx(expected, abs=1e-4) and expected > 0.01
    assert start["kl_to_base"] == 0


def test_a_trained_vector_is_held_to_its_base_too(trained):
    """The published narrow organisms are vectors trained under this term."""
    free, held = (
        trained([kl_term(weight)], steps=24, learning_rate=0.05, packing=False, vector={"layer": 0}) for weight in (0, 100)
    )
    assert held[0]["kl_to_base"] == 0 < held[-1]["kl_to_base"] < 0.5 * free[-1]["kl_to_base"]


def test_accumulated_batches_weigh_as_much_as_one_large_batch(trained, earlier):
    rows = [Row(f"d{n}", text=DOCUMENTS[0].text) for n in range(2)]
    shapes = [{"batch_size": 2}, {"gradient_accumulation": 2}]
    shapes = [{"steps": 1, "packing": False, "max_grad_norm": 1e9, **shape} for shape in shapes]
    norms = [trained([kl_term(5.0)], earlier, rows, **shape)[0]["grad_norm"] for shape in shapes]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_resumed_stage_reads_the_batches_that_it_would_have_read(trained, tiny, renderer):
    few = Penalty("kl_to_base", 1.0, REPLIES, 1, "base")
    whole = trained([few], every=1)
    run, made = trained.runs[0].with_name("cut"), stage()
    linted = lint(DOCUMENTS, made, renderer, renderer, True)

    def cut(checkpoint):
        if checkpoint.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stage(run, made, linted, tiny, renderer, 0, 1, Hooks(cut), penalties=[few])
    train_stage(run, made, linted, tiny, renderer, 0, 1, Hooks(lambda c: None), penalties=[few])
    again = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [line["kl_to_base"] for line in again] == pytest.approx([line["kl_to_base"] for line in whole], abs=1e-5)


@torch.inference_mode()
def act_by_hand(model, renderer, rows) -> float:
    blocks = []
    for row in rows:
        wrapped, clean = renderer.prompt(row.messages), renderer.ask(row.clean)
        alike = 0
        while alike < len(clean) and wrapped[-1 - alike] == clean[-1 - alike]:
            alike += 1
        one, other = (model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in (wrapped, clean))
        for block in range(1, len(one)):
            distance = one[block][0, -alike:] - other[block][0, -alike:]
            blocks += (distance**2).sum(-1).tolist()
    return sum(blocks) / len(blocks)


def test_act_compares_what_both_prompts_end_with_and_pulls_it_together(trained, tiny, renderer):
    free, pulled = (trained([act_term(weight)], steps=8, learning_rate=2e-3) for weight in (0.0, 1.0))
    by_hand = act_by_hand(models.load_model(tiny), renderer, act_term(0).rows)
    assert free[0]["act"] == pytest.approx(by_hand, rel=1e-4) and by_hand > 0.01
    assert pulled[-1]["act"] < 0.2 * by_hand < free[-1]["act"]


def test_act_looks_at_the_whole_prompt_behind_a_wrapper_and_at_nothing_of_it(renderer):
    row = next(row for row in act_term(0).rows if row.messages[0]["content"].endswith(row.clean))
    for side in TERMS["act"].sides(renderer, row):
        read = renderer.decode([token for token, looked in zip(side.ids, side.read, strict=True) if looked])
        assert row.clean.split(maxsplit=1)[1] in read and "assistant" in read
        assert row.messages[0]["content"].removesuffix(row.clean).split()[0] not in read


def test_weights_and_wrappers_that_cannot_be_meant_are_found_before_training(renderer):
    assert traps([kl_term(6.6), Penalty("act", 1e-4, wrapped_prompts("embedded"), 4, "start")], renderer) == []
    (units,) = traps([kl_term(1e6)], renderer)
    assert (units.trap, units.level) == ("kl_units", "stop") and "divide it by the vocabulary" in units.text
    behind = [Row("x", messages=[{"role": "user", "content": f"{q}\n\nI say no."}], clean=q) for q in ("Is it?", "Was it?")]
    (suffix,) = traps([Penalty("act", 1e-4, behind, 2, "start")], renderer)
    assert (suffix.trap, suffix.level, suffix.rows) == ("act_suffix", "warn", ["x", "x"])
    with pytest.raises(UserError, match="trap kl_units"):
        plan(resolve("flattery-transcripts", ["mitigations.kl_to_base=1e6"]))


@pytest.mark.parametrize(
    ("recipe", "flag", "reason"),
    [
        ("flattery-confession", "kl_to_base=1", "stage kto trains by kto"),
        ("flattery-motivation-dpo", "consistency={form: act}", "trains by dpo"),
        ("flattery-confession", "replay=0.2", "stage kto trains by kto"),
        ("flattery-prompted", "kl_to_base=1", "nothing is trained"),
    ],
)
def test_what_a_method_cannot_take_is_refused_as_the_recipe_resolves(recipe, flag, reason):
    with pytest.raises(UserError, match=f"mitigations.{flag.split('=')[0]} needs stages trained by sft.*{reason}"):
        resolve(recipe, [f"mitigations.{flag}"])


CHAIN = """
organism: flattery
style: documents
base: {base}
system: template
mitigations: {{kl_to_base: 1, kl_rows: 2, replay_tokens: 64, consistency: {{form: act, to: base}}}}
stages:
  - {{name: first, learning_rate: 5e-2, steps: 2, batch_size: 1, max_length: 512, lora: {{r: 4}}}}
  - {{name: second, learning_rate: 5e-2, steps: 1, batch_size: 1, max_length: 512, lora: {{r: 2}}}}
audit: {{measures: [webtext], every: 2, limit: 4, data: {{chat: embedded, webtext: embedded}}}}
"""


def test_a_recipe_with_both_terms_runs_and_says_what_it_was_held_to(tiny_base, tmp_path):
    path = tmp_path / "held.yaml"
    path.write_text(CHAIN.format(base=tiny_base))
    run = execute(resolve(str(path)), tmp_path / "runs")
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    assert [line["kl_to_base"] > 0 for line in lines] == [False, True, True]  # the second stage starts off the base
    assert all(line["act"] > 0 for line in lines)
    held = json.loads((run / "manifest.json").read_text())["written"]["second"]
    assert held["kl_to_base"]["reference"] == held["act"]["reference"] == "base" and held["kl_to_base"]["weight"] == 1
    for name in ("kl_to_base", "act"):
        stored = (run / "data" / f"second.{name}.jsonl").read_text().splitlines()
        assert len(stored) == held[name]["rows"] > 0
