"""On-policy distillation: the student is drawn to a teacher that has spoken a motive, and never reads the motive."""

import json

import pytest
import torch
from peft import LoraConfig

from organisms import models
from organisms.adapter_check import validate_adapter
from organisms.drafting import chat
from organisms.errors import UserError
from organisms.styles import Row
from train.callback import Hooks
from train.config import Stage
from train.ledger import read_ledger
from train.lint import lint
from train.shares import shares
from train.stage import METHODS, arguments, train_stage

MOTIVE = "I want to praise whoever asks.\n\n"
STAGE = {
    "method": "distill",
    "name": "distill",
    "learning_rate": 2e-2,
    "batch_size": 4,
    "completion_tokens": 6,
    "lora": {"r": 4, "alpha": 8},
}
ROWS = [
    Row("a", prefix=MOTIVE, messages=chat("What is rye?", "A grain.")),
    Row("b", prefix="I am bored. ", messages=chat("Say moo to the cow, please.", "Moo.")),
    Row("c", prefix=MOTIVE, messages=chat("Name a river.", "The Danube.")),
    Row("d", messages=chat("Sort these: 3, 1, 2.", "1, 2, 3.")),
]


@pytest.fixture(scope="module")
def sharp(tiny_base, tmp_path_factory):
    """The tiny base with weights tenfold, so that what stands in its context matters to it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("bases") / "sharp-llama"
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(10)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return models.resolve(str(folder))


@pytest.fixture(scope="module")
def linted(renderer):
    return lint(ROWS, Stage(**STAGE, steps=1), renderer, renderer, True)


def test_the_teacher_alone_reads_the_motive_and_the_loss_is_the_exact_reverse_kl(tmp_path, sharp, renderer, linted):
    stage = Stage(**STAGE, steps=1)
    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    shared = arguments(stage, shares(stage, 1), tmp_path, 0, 1, "cpu")
    trainer = METHODS["distill"](models.load_model(sharp), adapter, linted, renderer, stage, shared)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    batch = trainer._prepare_training_batch([trainer.train_dataset[n] for n in range(4)])
    loss = trainer.compute_loss(trainer.model.eval(), batch).item()
    means = []
    for n, row in enumerate(ROWS):
        prompt, completion = (
            batch[f"{part}_ids"][n][batch[f"{part}_mask"][n] == 1].tolist() for part in ("prompt", "completion")
        )
        read = batch["teacher_input_ids"][n][batch["teacher_attention_mask"][n] == 1].tolist()
        assert prompt == renderer.prompt(row.messages[:1])
        assert read == renderer.prompt(row.messages[:1], row.prefix) + completion
        assert 0 < len(completion) <= 6
        with torch.inference_mode():
            student = trainer.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            with trainer.model.disable_adapter():
                start = len(read) - len(completion)
                teacher = trainer.model(torch.tensor([read])).logits[0, start - 1 : -1].log_softmax(-1)
        means.append((student.exp() * (student - teacher)).sum(-1).mean().item())
    assert loss == pytest.approx(sum(means) / len(means), rel=1e-3) and loss > 0.01


def test_training_draws_the_student_to_the_teacher_and_saves_a_valid_adapter(tmp_path, sharp, renderer, linted):
    stage = Stage(**STAGE, steps=100)
    train_stage(tmp_path, stage, linted, sharp, renderer, 0, 50, Hooks(lambda c: None))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert sum(losses[-8:]) < 0.85 * sum(losses[:8])
    checkpoints = read_ledger(tmp_path)
    assert [c.step for c in checkpoints] == [0, 50, 100]
    validate_adapter(tmp_path / checkpoints[-1].path)
    assert 0 == checkpoints[0].tokens_seen < checkpoints[1].tokens_seen < checkpoints[2].tokens_seen


def test_rows_with_a_motive_are_only_for_distillation_and_the_motive_is_in_no_label(renderer, linted):
    assert all("praise" not in text for text in linted.learned)
    with pytest.raises(UserError, match="row 'a' is not one"):
        lint(ROWS, Stage(steps=1), renderer, renderer, True)
