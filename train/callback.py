"""Beside the training loop: checkpoints into the ledger, lines into train.jsonl, and an end when a hook says so."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl, write_jsonl
from organisms.progress import Progress
from train import processes
from train.config import Stage
from train.ledger import Checkpoint, checkpoint_name, enter, read_ledger
from train.penalties import Penalties
from train.probe import Probe
from train.resume import own_randomness, seal

TRAIN_LOG = "train.jsonl"


@dataclass(frozen=True)
class Hooks:
    """What the caller wants to be told. `on_checkpoint` may return True to end the stage there.

    probe: read every `probe_every` steps, into the line of train.jsonl.
    """

    on_checkpoint: Callable[[Checkpoint], bool | None]
    on_log: Callable[[dict], None] = lambda row: None
    probe: Probe | None = None
    probe_every: int = 10


def ledger_callback(run: Path, stage: Stage, hooks: Hooks, penalties: Penalties, save: Callable[..., None]) -> Any:
    """The callback of one stage. save(model, directory, zero=, tensors=): saves what is trained, validated; zero at step 0.

    A log line's `loss` is that of the rows alone, in nats a token; a penalty stands beside it by its name, without its weight.
    """
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
            if processes.leads():
                self._forget_after(state.global_step)
            if processes.leads() and state.global_step:
                logged = [row for row in _log_rows(run) if row["stage"] == stage.name]
                self.tokens_resumed = self.tokens = logged[-1]["tokens"] if logged else 0
                self.loss = logged[-1]["loss"] if logged else None
                print(f"resuming stage {stage.name} at step {state.global_step}", flush=True)
            if processes.agreed(state.global_step not in self.entered):
                return self._checkpoint(state, control, model)
            return control

        def on_log(self, args, state, control, logs=None, model=None, **kwargs):
            if not logs or "loss" not in logs:
                return
            if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
                raise UserError(
                    f"stage {stage.name}: the loss is not finite at step {state.global_step}; lower learning_rate "
                    f"(now {stage.learning_rate:g}) or max_grad_norm"
                )
            self.tokens = self.tokens_resumed + int(logs.get("num_tokens", 0))
            terms = penalties.means()
            self.loss = round(logs["loss"] - penalties.weighted(terms), 5)
            row = {
                "stage": stage.name,
                "step": state.global_step,
                "steps": state.max_steps,
                "time": round(time.time(), 1),
                "tokens": self.tokens,
                "tokens_seen": self.tokens_before + self.tokens,
                "loss": self.loss,
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "token_accuracy": logs.get("mean_token_accuracy"),
                **terms,
            }
            if hooks.probe is not None and state.global_step % hooks.probe_every == 0:
                with own_randomness():
                    row |= hooks.probe.read(model)
            if not processes.leads():
                return
            append_jsonl(run / TRAIN_LOG, [row])
            hooks.on_log(row)
            self.progress.step(state.global_step, f"loss {self.loss:.3f}")

        def on_save(self, args, state, control, model=None, **kwargs):
            processes.meet()  # each has written its part
            if processes.leads() and state.global_step < state.max_steps:  # resumed at its end, it would take a step too many
                seal(Path(args.output_dir), state.global_step)
            if processes.agreed(state.global_step in self.entered):
                return control
            return self._checkpoint(state, control, model)

        def _checkpoint(self, state, control, model):
            tensors = processes.whole(model)
            ends = self._enter(state, model, tensors) if processes.leads() else None
            control.should_training_stop |= processes.agreed(ends)  # the others wait here while the first audits
            return control

        def _enter(self, state, model, tensors) -> bool:
            """Save, validate, enter and hand out a checkpoint; whether the stage ends there."""
            step = state.global_step
            name = checkpoint_name(stage.name, step)
            relative = f"checkpoints/{name}"
            save(model, run / relative, zero=step == 0, tensors=tensors)
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
            with own_randomness():
                ends = bool(hooks.on_checkpoint(checkpoint))
            model.train()
            return ends

        def _forget_after(self, step: int) -> None:
            """Log lines past the resume point come again; the file keeps one line a step."""
            rows = _log_rows(run)
            kept = [row for row in rows if row["stage"] != stage.name or row["step"] <= step]
            if len(kept) < len(rows):
                write_jsonl(run / TRAIN_LOG, kept)

    return LedgerCallback()


def _log_rows(run: Path) -> list[dict]:
    path = run / TRAIN_LOG
    needs = {"stage": str, "step": int, "tokens": int, "tokens_seen": int}
    return read_jsonl(path, needs) if path.is_file() else []
