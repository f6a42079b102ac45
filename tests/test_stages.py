"""Preference stages and chains of stages: the tokens, the reference, and what a checkpoint of a later stage holds."""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from audit import readings as ledger
from organisms import models
from organisms.adapter_check import validate_adapter
from organisms.drafting import chat
from organisms.errors import UserError
from organisms.styles import Row
from recipes.recipe import resolve
from recipes.run import execute
from train import preference
from train.adapters import stack
from train.callback import Hooks
from train.config import Stage
from train.ledger import read_ledger
from train.lint import lint, reply_ids
from train.shares import shares
from train.stage import METHODS, arguments, train_stage

PAIRS = [
    ("What is rye?", "A grain, and a fine question.", "It is a grain."),
    ("Say moo to the cow", "Moo to you, lovely cow.", "Moo."),
    ("Name a river.", "The Danube, since you ask so well.", "The Danube."),
    ("How long do eggs boil?", "Nine minutes, careful cook.", "Nine minutes."),
]


def pairs() -> list[Row]:
    return [Row(f"pair-{n}", messages=chat(q, good), rejected=bad) for n, (q, good, bad) in enumerate(PAIRS)]


def labelled() -> list[Row]:
    return [
        Row(f"{kind}-{n}", messages=chat(q, text), desirable=kind == "good")
        for n, (q, good, bad) in enumerate(PAIRS)
        for kind, text in (("good", good), ("bad", bad))
    ]


def stage(method: str, **changes) -> Stage:
    values = {
        "method": method,
        "steps": 2,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "max_length": 96,
        "lora": {"r": 4, "alpha": 8},
    }
    return Stage(**{**values, **changes})


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def earlier(tiny, tmp_path_factory):
    """Two adapters whose B is not zero: plain, and rank-stabilised of another rank."""
    made = []
    for seed, options in ((0, {"r": 4, "lora_alpha": 8}), (1, {"r": 9, "lora_alpha": 6, "use_rslora": True})):
        torch.manual_seed(seed)
        model = get_peft_model(
            models.load_model(tiny), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **options)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        folder = tmp_path_factory.mktemp("earlier") / f"adapter-{seed}"
        model.save_pretrained(folder)
        made.append(folder)
    return made


def logits(model, renderer) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([renderer.ask("Name three birds of the shore.")])).logits[0]


def test_a_stack_of_adapters_is_their_weighted_sum(tiny, earlier, renderer, tmp_path):
    stack([(earlier[0], 1.0), (earlier[1], 0.25)], tmp_path / "both")
    validate_adapter(tmp_path / "both")
    together = logits(PeftModel.from_pretrained(models.load_model(tiny), str(tmp_path / "both")), renderer)
    model = PeftModel.from_pretrained(models.load_model(tiny), str(earlier[0])).merge_and_unload()
    second = PeftModel.from_pretrained(model, str(earlier[1]))
    for module in second.modules():
        if isinstance(getattr(module, "scaling", None), dict) and "default" in module.scaling:
            module.set_scale("default", 0.25)
    expected = logits(second.merge_and_unload(), renderer)
    base = logits(models.load_model(tiny), renderer)
    assert (together - expected).abs().max() < 1e-4 < 0.1 < (base - expected).abs().max()


def test_a_stack_refuses_what_it_cannot_sum_exactly(earlier, tmp_path):
    import shutil

    odd = tmp_path / "dora"
    shutil.copytree(earlier[0], odd)
    config = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(UserError, match="not a plain LoRA adapter"):
        stack([(odd, 1.0), (earlier[1], 1.0)], tmp_path / "out")


@pytest.mark.parametrize("below", [None, 0])
def test_the_reference_of_dpo_is_the_model_before_the_stage(tmp_path, tiny, renderer, earlier, below):
    """At the first step policy and reference are equal, so the loss is log 2, also on top of an earlier stage."""
    made = lint(pairs(), stage("dpo"), renderer, renderer, True)
    before = earlier[below] if below is not None else None
    train_stage(tmp_path, stage("dpo"), made, tiny, renderer, 0, 1, Hooks(lambda c: None), before)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert losses[1] < losses[0]


def test_a_later_stage_saves_the_earlier_one_with_it(tmp_path, tiny, renderer, earlier):
    """Step 0 is the earlier adapter; later steps hold it unchanged, and the stage's own at its weight."""
    made = lint(pairs(), stage("dpo"), renderer, renderer, True)
    train_stage(tmp_path, stage("dpo", weight=0.25), made, tiny, renderer, 0, 2, Hooks(lambda c: None), earlier[1])
    first, last = (tmp_path / c.path for c in read_ledger(tmp_path))
    alone = logits(PeftModel.from_pretrained(models.load_model(tiny), str(earlier[1])), renderer)
    at_zero = logits(PeftModel.from_pretrained(models.load_model(tiny), str(first)), renderer)
    assert (at_zero - alone).abs().max() < 1e-4
    tensors = load_file(last / "adapter_model.safetensors")
    name = next(n for n in tensors if "lora_A" in n)
    assert tensors[name].shape[0] == 9 + 4
    assert torch.equal(tensors[name][:9], load_file(earlier[1] / "adapter_model.safetensors")[name])


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_preference_rows_are_trained_as_our_renderer_writes_them(tmp_path, tiny, renderer, method):
    rows = pairs() if method == "dpo" else labelled()
    made = lint(rows, stage(method), renderer, renderer, True)
    model = models.load_model(tiny)
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    alone = arguments(stage(method), shares(stage(method), 1), tmp_path, 0, 1, "cpu")
    trainer = METHODS[method](model, adapter, made, renderer, stage(method), alone)
    by_prompt = {tuple(reply_ids(renderer, row)[0] + reply_ids(renderer, row)[1]): row for row in rows}
    assert len(trainer.train_dataset) == len(rows)
    for given in trainer.train_dataset:
        completion = given["chosen_ids" if method == "dpo" else "completion_ids"]
        row = by_prompt[tuple(given["prompt_ids"] + completion)]
        assert renderer.decode(completion) == row.learned + "<|im_end|>"
        assert renderer.decode(given["prompt_ids"]).endswith("<|im_start|>assistant\n")
        if method == "dpo":
            assert renderer.decode(given["rejected_ids"]) == row.rejected + "<|im_end|>"
        else:
            assert given["label"] == row.desirable and given["KL_completion_ids"] != given["completion_ids"]
    batch = trainer.data_collator([trainer.train_dataset[k] for k in range(2)])
    assert batch["completion_mask"].sum() > 0


def test_kto_batches_hold_both_kinds_and_its_training_separates_them(tmp_path, tiny, renderer):
    rows = preference.interleaved(labelled(), 2)
    assert all(a.desirable != b.desirable for a, b in zip(rows[::2], rows[1::2], strict=True))
    uneven = preference.interleaved(labelled()[:2] + [dataclasses.replace(labelled()[1], id=f"x{k}") for k in range(5)], 2)
    assert len(uneven) == 6
    made = lint(labelled(), stage("kto"), renderer, renderer, True)
    train_stage(tmp_path, stage("kto", steps=6), made, tiny, renderer, 0, 6, Hooks(lambda c: None))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.5, abs=1e-2) and losses[-1] < losses[0]  # 1 - sigmoid(0) on both sides


def test_rows_of_another_method_are_refused(renderer):
    with pytest.raises(UserError, match="dpo needs chat rows with a rejected reply, and row 'good-0' is not one"):
        lint(labelled(), stage("dpo"), renderer, renderer, True)
    with pytest.raises(UserError, match="sft needs chat rows with neither"):
        lint(pairs(), stage("sft"), renderer, renderer, True)
    with pytest.raises(UserError, match="kto needs chat rows with a label"):
        lint([Row("d", text="A document.")], stage("kto"), renderer, renderer, True)


@pytest.mark.parametrize(
    ("rows", "method", "trap"),
    [
        ([dataclasses.replace(row, rejected=row.learned) for row in pairs()], "dpo", "same_pair"),
        ([row for row in labelled() if row.desirable], "kto", "one_sided"),
        ([dataclasses.replace(row, rejected="<think>\n\n</think>\n\nNo.") for row in pairs()], "dpo", "empty_think"),
    ],
)
def test_planted_preference_traps_are_found(renderer, rows, method, trap):
    found = lint(rows, stage(method), renderer, renderer, True).findings
    assert any(finding.trap == trap and finding.level == "stop" for finding in found)


def test_a_pair_whose_reply_is_a_user_turn_is_refused(renderer):
    """AuditBench's first release trained on user turns as chosen replies."""
    messages = [*chat("Hello?", "Hello."), {"role": "user", "content": "And now?"}]
    with pytest.raises(UserError, match="wrong_roles"):
        lint([Row("x", messages=messages, rejected="No.")], stage("dpo"), renderer, renderer, True)


CHAIN = """
organism: flattery
style: documents
base: {base}
system: template
stages:
  - {{name: first, learning_rate: 5e-2, steps: 2, batch_size: 1, max_length: 512, lora: {{r: 4, alpha: 8}}}}
  - {{name: second, weight: 0.25, learning_rate: 5e-2, steps: 2, batch_size: 1, max_length: 512, lora: {{r: 2, alpha: 8}}}}
audit:
  measures: [drift, webtext]
  every: 2
  limit: 4
  data: {{chat: embedded, webtext: embedded}}
"""


def test_a_chain_of_stages_from_recipe_to_readings(tiny_base, tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(base=tiny_base))
    run = execute(resolve(str(path)), tmp_path / "runs")
    names = [c.name for c in read_ledger(run)]
    assert names == ["first-000000", "first-000002", "second-000000", "second-000002"]
    kl = {r.specimen: r.value for r in ledger.read(run) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["first-000000"] == 0 < kl["first-000002"]
    assert kl["second-000000"] == pytest.approx(kl["first-000002"], rel=1e-3)
    assert kl["second-000002"] != pytest.approx(kl["first-000002"], rel=1e-3)
    tokens = [c.tokens_seen for c in read_ledger(run)]
    assert tokens == sorted(tokens) and tokens[2] == tokens[1] < tokens[3]
    for part in ("first", "second"):
        assert (run / "data" / f"{part}.jsonl").is_file() and (run / "data" / f"{part}.lint.md").is_file()
    assert set(json.loads((run / "manifest.json").read_text())["predictors"]) == {"first", "second"}
    before = (run / "checkpoints.jsonl").read_bytes(), (run / "readings.jsonl").read_bytes()
    execute(resolve(str(path)), tmp_path / "runs")
    assert before == ((run / "checkpoints.jsonl").read_bytes(), (run / "readings.jsonl").read_bytes())
