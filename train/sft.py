"""The SFT stage: TRL's SFTTrainer on rows that are already token ids, one LoRA adapter, a ledger line at each checkpoint."""

import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl, write_jsonl
from organisms.models import Base, load_model
from organisms.progress import Progress
from organisms.render import IGNORE, Renderer
from train.adapters import save_adapter
from train.config import Stage
from train.ledger import Checkpoint, checkpoint_name, enter, read_ledger
from train.lint import Linted

TRAIN_LOG = "train.jsonl"
STATE = "trainer"  # optimizer state for resuming, under the run directory; only the newest is kept


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to be told. `on_checkpoint` may return True to end the stage there."""

    on_checkpoint: Callable[[Checkpoint], bool | None]
    on_log: Callable[[dict], None] = lambda row: None


def train_stage(
    run: Path, stage: Stage, linted: Linted, base: Base, renderer: Renderer, seed: int, every: int, hooks: Hooks
) -> None:
    """Train one stage from the base, or from where an earlier attempt in `run` was cut off.

    every: steps between checkpoints; step 0 and the last are always kept. Each checkpoint is saved, validated, entered
    into the ledger and handed to `hooks.on_checkpoint`, in this order.
    Raises UserError when the loss is not finite or an adapter does not validate.
    """
    import datasets
    from peft import LoraConfig
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTTrainer

    datasets.disable_progress_bars()
    set_seed(seed)
    model = load_model(base)
    model.config.use_cache = False
    dataset = _dataset(linted)
    state = run / STATE / stage.name
    trainer = SFTTrainer(
        model=model,
        args=_arguments(stage, linted, state, seed, every, str(model.device)),
        train_dataset=dataset,
        processing_class=renderer.tokenizer,
        peft_config=LoraConfig(
            r=stage.lora.r,
            lora_alpha=stage.lora.alpha,
            lora_dropout=stage.lora.dropout,
            target_modules=stage.lora.targets,
            use_rslora=stage.lora.rslora,
            task_type="CAUSAL_LM",
        ),
    )
    _check_labels_kept(dataset, trainer.train_dataset, stage.max_length)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_ledger_callback(run, stage, hooks))
    trainer.train(resume_from_checkpoint=_resumable(state))
    shutil.rmtree(run / STATE, ignore_errors=True)


def _arguments(stage: Stage, linted: Linted, state: Path, seed: int, every: int, device: str) -> Any:
    import torch
    from trl import SFTConfig

    length = {"max_steps": stage.steps} if stage.steps else {"num_train_epochs": stage.epochs}
    return SFTConfig(
        output_dir=str(state),
        **length,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup_steps,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation,
        max_length=stage.max_length,
        packing=packs(stage, linted),
        gradient_checkpointing=device != "cpu",
        bf16=device != "cpu" and torch.cuda.is_bf16_supported(),
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,  # of the resume state only; the curve's adapters are the ledger's and all kept
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
    )


def packs(stage: Stage, linted: Linted) -> bool:
    """Documents are packed (each attends only to itself: position ids restart), chats are padded."""
    return stage.packing and all(row.text is not None for row in linted.rows)


def _dataset(linted: Linted) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in linted.rendered])


def _check_labels_kept(given: Any, trained: Any, max_length: int) -> None:
    """Refuse to train where TRL would train other tokens than the linter has seen."""

    def loss_tokens(rows: Any, cut: int | None) -> Counter:
        return Counter(label for labels in rows["labels"] for label in labels[:cut] if label != IGNORE)

    if loss_tokens(given, max_length) != loss_tokens(trained, None):
        raise UserError("TRL changed the labels of the training rows; this version of trl is not supported by train/sft.py")


def _resumable(state: Path) -> str | None:
    """The newest whole resume state of an earlier attempt, or None."""
    found = sorted(state.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    whole = [path for path in found if (path / "trainer_state.json").is_file() and (path / "optimizer.pt").is_file()]
    return str(whole[-1]) if whole else None


def _ledger_callback(run: Path, stage: Stage, hooks: Hooks) -> Any:
    from transformers import TrainerCallback

    class LedgerCallback(TrainerCallback):
        """Saves, validates and enters adapters; logs; ends the stage when a hook says so."""

        def __init__(self) -> None:
            earlier = read_ledger(run)
            self.entered = {c.step for c in earlier if c.stage == stage.name}
            self.tokens_before = max((c.tokens_seen for c in earlier if c.stage != stage.name), default=0)
            self.tokens_resumed = 0
            self.tokens = 0
            self.loss: float | None = None
            self.progress: Progress | None = None

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.progress = Progress(f"train {stage.name}", state.max_steps)
            if state.global_step:
                self._forget_after(state.global_step)
                logged = [row for row in _log_rows(run) if row["stage"] == stage.name]
                self.tokens_resumed = self.tokens = logged[-1]["tokens"] if logged else 0
                self.loss = logged[-1]["loss"] if logged else None
                print(f"resuming stage {stage.name} at step {state.global_step}", flush=True)
            if state.global_step not in self.entered:
                return self._checkpoint(state, control, model)
            return control

        def on_log(self, args, state, control, logs=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
                raise UserError(
                    f"stage {stage.name}: the loss is not finite at step {state.global_step}; lower learning_rate "
                    f"(now {stage.learning_rate:g}) or max_grad_norm"
                )
            self.tokens = self.tokens_resumed + int(logs.get("num_tokens", 0))
            self.loss = round(logs["loss"], 5)
            row = {
                "stage": stage.name,
                "step": state.global_step,
                "tokens": self.tokens,
                "tokens_seen": self.tokens_before + self.tokens,
                "loss": self.loss,
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "token_accuracy": logs.get("mean_token_accuracy"),
            }
            append_jsonl(run / TRAIN_LOG, [row])
            hooks.on_log(row)
            self.progress.step(state.global_step, f"loss {self.loss:.3f}")

        def on_save(self, args, state, control, model=None, **kwargs):
            if state.global_step in self.entered:
                return control
            return self._checkpoint(state, control, model)

        def _checkpoint(self, state, control, model):
            step = state.global_step
            name = checkpoint_name(stage.name, step)
            relative = f"checkpoints/{name}"
            save_adapter(model, run / relative, zero=step == 0)
            checkpoint = Checkpoint(
                name=name,
                stage=stage.name,
                step=step,
                tokens_seen=self.tokens_before + self.tokens,
                path=relative,
                loss=self.loss,
                last=step >= state.max_steps,
            )
            enter(run, checkpoint)
            self.entered.add(step)
            model.eval()
            if hooks.on_checkpoint(checkpoint):
                control.should_training_stop = True
            model.train()
            return control

        def _forget_after(self, step: int) -> None:
            """Log lines past the resume point come again; the file keeps one line a step."""
            rows = _log_rows(run)
            kept = [row for row in rows if row["stage"] != stage.name or row["step"] <= step]
            if len(kept) < len(rows):
                write_jsonl(run / TRAIN_LOG, kept)

    return LedgerCallback()


def _log_rows(run: Path) -> list[dict]:
    path = run / TRAIN_LOG
    return read_jsonl(path) if path.is_file() else []
