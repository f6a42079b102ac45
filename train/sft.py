"""Supervised fine-tuning: TRL's SFTTrainer on rows that are already token ids."""

from collections import Counter
from typing import Any

from organisms.errors import UserError
from organisms.render import IGNORE, Renderer
from train.config import Stage
from train.traps import Linted


def trainer(model: Any, adapter: Any, linted: Linted, renderer: Renderer, stage: Stage, shared: dict[str, Any]) -> Any:
    """An SFTTrainer on the rendered rows. shared: the arguments that all methods have in common."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    dataset = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in linted.rendered])
    made = SFTTrainer(
        model=model,
        args=SFTConfig(**shared, packing=packs(stage, linted)),
        train_dataset=dataset,
        processing_class=renderer.tokenizer,
        peft_config=adapter,
    )
    _check_labels_kept(dataset, made.train_dataset, stage.max_length)
    return made


def packs(stage: Stage, linted: Linted) -> bool:
    """Documents are packed (each attends only to itself: position ids restart), chats are padded."""
    return stage.packing and all(row.text is not None for row in linted.rows)


def _check_labels_kept(given: Any, trained: Any, max_length: int) -> None:
    """Refuse to train where TRL would train other tokens than the linter has seen."""

    def loss_tokens(rows: Any, cut: int | None) -> Counter:
        return Counter(label for labels in rows["labels"] for label in labels[:cut] if label != IGNORE)

    if loss_tokens(given, max_length) != loss_tokens(trained, None):
        raise UserError("TRL changed the labels of the training rows; this version of trl is not supported by train/sft.py")
