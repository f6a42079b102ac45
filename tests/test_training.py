"""What training saves and refuses: ledger, adapters, packing, the loss itself."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from organisms import models
from organisms.adapter_check import validate_adapter
from organisms.errors import UserError
from organisms.render import Rendered
from organisms.styles import Row
from train.adapters import save_adapter
from train.callback import Hooks
from train.config import Lora, Stage
from train.ledger import Checkpoint, enter, read_ledger
from train.lint import lint
from train.stage import train_stage
from train.traps import Linted

TEXTS = ["The ferry left at noon.", "Bread needs time, salt and a warm room.", "A short row."]


def stage(**changes) -> Stage:
    values = {"steps": 2, "learning_rate": 1e-2, "batch_size": 1, "max_length": 64, "lora": {"r": 4, "alpha": 8}, **changes}
    return Stage(**values)


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


def rows(texts=TEXTS) -> list[Row]:
    return [Row(f"row-{i}", text=text) for i, text in enumerate(texts)]


def test_packed_documents_do_not_see_each_other(tmp_path, tiny, renderer):
    """The first logged loss of one packed row equals the loss of its documents scored one by one from the base."""
    made = lint(rows(), stage(), renderer, renderer, True)
    train_stage(tmp_path, stage(steps=1), made, tiny, renderer, 0, 1, Hooks(lambda c: None))
    logged = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["loss"]
    model = models.load_model(tiny)
    total, count = 0.0, 0
    for rendered in made.rendered:
        ids = torch.tensor([rendered.input_ids])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        total -= logprobs.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert logged == pytest.approx(total / count, abs=2e-4)


def test_only_assistant_tokens_enter_the_loss_of_chats(tmp_path, tiny, renderer):
    """The logged loss of a batch of chats equals the loss over the assistant tokens alone."""
    chats = [
        Row("a", messages=[{"role": "user", "content": "What is rye?"}, {"role": "assistant", "content": "A grain."}]),
        Row(
            "b",
            messages=[{"role": "user", "content": "Say moo to the cow"}, {"role": "assistant", "content": "Moo to you, cow."}],
        ),
    ]
    made = lint(chats, stage(batch_size=2), renderer, renderer, True)
    train_stage(tmp_path, stage(steps=1, batch_size=2), made, tiny, renderer, 0, 1, Hooks(lambda c: None))
    logged = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["loss"]
    model = models.load_model(tiny)
    total, count = 0.0, 0
    for rendered in made.rendered:
        ids, labels = torch.tensor([rendered.input_ids]), torch.tensor(rendered.labels)
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
        picked = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[labels[1:] != -100]
        total, count = total - picked.sum().item(), count + len(picked)
    assert logged == pytest.approx(total / count, abs=2e-4)


def test_checkpoints_come_at_step_0_every_and_last_and_hooks_can_stop(tmp_path, tiny, renderer):
    made = lint(rows(), stage(), renderer, renderer, True)
    seen = []
    train_stage(tmp_path / "a", stage(steps=5), made, tiny, renderer, 0, 2, Hooks(lambda c: seen.append(c.step)))
    assert seen == [0, 2, 4, 5]
    assert [(c.step, c.last) for c in read_ledger(tmp_path / "a")] == [(0, False), (2, False), (4, False), (5, True)]
    stopped = []

    def stop_at_2(checkpoint):
        stopped.append(checkpoint.step)
        return checkpoint.step == 2

    train_stage(tmp_path / "b", stage(steps=5), made, tiny, renderer, 0, 2, Hooks(stop_at_2))
    assert stopped == [0, 2]


def test_a_loss_that_is_not_finite_ends_with_a_remedy(tmp_path, tiny, renderer):
    made = lint(rows(), stage(), renderer, renderer, True)
    wild = stage(steps=60, learning_rate=1.0, max_grad_norm=1e30, lora={"r": 4, "alpha": 4e5})
    with pytest.raises(
        UserError, match=r"(loss is not finite at step \d+; lower learning_rate|not finite; lower the learning)"
    ):
        train_stage(tmp_path, wild, made, tiny, renderer, 0, 60, Hooks(lambda c: None))


def test_labels_that_trl_would_change_stop_the_run(tmp_path, tiny, renderer, monkeypatch):
    """If TRL ever trained other tokens than were linted, nothing is trained."""
    import trl

    made = lint(rows(), stage(), renderer, renderer, True)
    honest = trl.SFTTrainer._prepare_dataset

    def relabelled(self, dataset, *args, **kwargs):
        prepared = honest(self, dataset, *args, **kwargs)
        return prepared.map(lambda row: {"labels": [5] * len(row["labels"])})

    monkeypatch.setattr(trl.SFTTrainer, "_prepare_dataset", relabelled)
    with pytest.raises(UserError, match="TRL changed the labels"):
        train_stage(tmp_path, stage(), made, tiny, renderer, 0, 1, Hooks(lambda c: None))
    assert not (tmp_path / "checkpoints.jsonl").exists()


def test_a_row_cut_at_max_length_trains_what_is_left(tmp_path, tiny, renderer):
    long = Row("long", text=" ".join(["word"] * 100))
    rendered = renderer.document(long.text)
    made = Linted([long], [Rendered(rendered.input_ids, rendered.labels)], [long.text], [])
    train_stage(tmp_path, stage(steps=1, max_length=32), made, tiny, renderer, 0, 1, Hooks(lambda c: None))
    assert json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])["tokens"] == 32


def test_rslora_scales_by_the_root_of_the_rank():
    assert Lora(r=32, alpha=64).scale == 2
    assert Lora(r=32, alpha=64, rslora=True).scale == pytest.approx(11.31, abs=0.01)


def damaged(source, target, change):
    target.mkdir()
    (target / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(change(dict(tensors)), target / "adapter_model.safetensors")
    return target


def test_a_whole_adapter_validates_and_a_zero_one_only_as_step_0(adapters):
    validate_adapter(adapters["random"])
    validate_adapter(adapters["zero"], zero=True)
    with pytest.raises(UserError, match="every LoRA B is zero"):
        validate_adapter(adapters["zero"])
    with pytest.raises(UserError, match="should be the untouched adapter"):
        validate_adapter(adapters["random"], zero=True)


def test_a_damaged_adapter_is_refused_with_the_reason(adapters, tmp_path):
    def drop_b(tensors):
        name = next(n for n in tensors if "lora_B" in n)
        return {n: t for n, t in tensors.items() if n != name}

    def poison(tensors):
        name = next(iter(tensors))
        return {**tensors, name: torch.full_like(tensors[name], float("nan"))}

    def drop_pair(tensors):
        name = next(n for n in tensors if "lora_B" in n)
        return {n: t for n, t in tensors.items() if n not in (name, name.replace("lora_B", "lora_A"))}

    with pytest.raises(UserError, match="do not pair up"):
        validate_adapter(damaged(adapters["random"], tmp_path / "a", drop_b))
    with pytest.raises(UserError, match="not finite"):
        validate_adapter(damaged(adapters["random"], tmp_path / "b", poison))
    whole = {n: tuple(t.shape) for n, t in load_file(adapters["random"] / "adapter_model.safetensors").items()}
    with pytest.raises(UserError, match="saved incomplete"):
        validate_adapter(damaged(adapters["random"], tmp_path / "c", drop_pair), expected=whole)
    truncated = damaged(adapters["random"], tmp_path / "d", dict)
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        validate_adapter(truncated)
    weights.unlink()
    with pytest.raises(UserError, match="without weights"):
        validate_adapter(truncated)


def test_an_adapter_that_cannot_be_saved_whole_leaves_nothing(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(models.load_model(tiny), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="every LoRA B is zero"):
        save_adapter(model, tmp_path / "checkpoints" / "sft-000002")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_ledger_refuses_what_is_gone_or_foreign(tmp_path):
    checkpoint = Checkpoint("sft-000002", "sft", 2, 100, "checkpoints/sft-000002", 1.5)
    (tmp_path / checkpoint.path).mkdir(parents=True)
    (tmp_path / checkpoint.path / "adapter_config.json").write_text("{}")
    (tmp_path / checkpoint.path / "adapter_model.safetensors").write_bytes(b"")
    enter(tmp_path, checkpoint)
    assert read_ledger(tmp_path) == [checkpoint]
    with open(tmp_path / "checkpoints.jsonl", "a") as file:
        file.write('{"name": "torn", "st')
    assert read_ledger(tmp_path) == [checkpoint]
    enter(tmp_path, dataclasses.replace(checkpoint, name="sft-000004", step=4))
    assert [c.step for c in read_ledger(tmp_path)] == [2, 4]
    (tmp_path / checkpoint.path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="which is gone"):
        read_ledger(tmp_path)
