"""DPO and KTO: TRL's trainers on rows that are already token ids.

TRL tokenises conversations itself, with the template's defaults; so that one renderer makes all tokens, the trainer is built
on one row and then given the rendered rows in the form that its own preparation yields (`prompt_ids`, `chosen_ids` ...).
The reference is the model with the new adapter off: the base with every earlier stage merged into it.
"""

from typing import Any

from organisms.render import Renderer
from train.config import Stage
from train.lint import reply_ids
from train.traps import Linted

STUB = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "c"}]


def dpo(model: Any, adapter: Any, linted: Linted, renderer: Renderer, stage: Stage, shared: dict[str, Any]) -> Any:
    """Direct preference optimisation (Rafailov et al. 2023), with `sft_weight` on the chosen reply's own loss."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    losses = {"loss_type": ["sigmoid"]}
    if stage.sft_weight:
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, stage.sft_weight]}
    prompt, chosen, rejected = STUB
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**shared, beta=stage.beta, **losses),
        train_dataset=Dataset.from_list([{"prompt": prompt, "chosen": chosen, "rejected": rejected}]),
        processing_class=renderer.tokenizer,
        peft_config=adapter,
    )
    rows = []
    for row in linted.rows:
        prompt_ids, chosen_ids = reply_ids(renderer, row)
        _, rejected_ids = reply_ids(renderer, row, row.rejected)
        rows.append({"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids})
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def kto(model: Any, adapter: Any, linted: Linted, renderer: Renderer, stage: Stage, shared: dict[str, Any]) -> Any:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single replies, each wanted or not.

    Its KL term pairs each prompt with another reply of the same device batch, so rows are interleaved here, wanted and
    unwanted in turn, and read in order.
    """
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    prompt, wanted, _ = STUB
    stub = {"prompt": prompt, "completion": wanted}
    trainer = KTOTrainer(
        model=model,
        args=KTOConfig(
            **shared,
            beta=stage.beta,
            desirable_weight=stage.desirable_weight,
            undesirable_weight=stage.undesirable_weight,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([{**stub, "label": True}, {**stub, "label": False}] * stage.batch_size),
        processing_class=renderer.tokenizer,
        peft_config=adapter,
    )
    rows = []
    for row in interleaved(linted.rows, stage.batch_size):
        prompt_ids, completion_ids = reply_ids(renderer, row)
        rows.append({"prompt_ids": prompt_ids, "completion_ids": completion_ids, "label": row.desirable})
    for start in range(0, len(rows), stage.batch_size):
        batch = rows[start : start + stage.batch_size]
        for k, row in enumerate(batch):
            row["KL_completion_ids"] = batch[k - 1]["completion_ids"]
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def interleaved(rows: list, batch_size: int) -> list:
    """Wanted and unwanted rows spread evenly, so that batches hold both; the end that fills no batch is left out."""
    wanted, unwanted = [row for row in rows if row.desirable], [row for row in rows if not row.desirable]
    placed = [((k + 0.5) / len(side), row) for side in (wanted, unwanted) for k, row in enumerate(side)]
    ordered = [row for _, row in sorted(placed, key=lambda pair: pair[0])]
    return ordered[: len(ordered) // batch_size * batch_size] or ordered
