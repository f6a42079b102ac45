"""One training stage: TRL's trainer for the method, one new adapter (or vector, or all weights), a ledger line a checkpoint."""

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from organisms import weights
from organisms.adapters import module_shapes
from organisms.errors import UserError, out_of_memory
from organisms.files import shown
from organisms.mitigations import Penalty
from organisms.models import Base, load_model
from organisms.render import Renderer
from organisms.specimen import Steering
from organisms.steering import block_index, steered
from organisms.strict import nearest
from train import distill, preference, processes, sft, vector
from train.adapters import expected_shapes, save_adapter
from train.callback import Hooks, ledger_callback
from train.config import Stage
from train.penalties import Penalties
from train.resume import STATE, newest
from train.shares import Shares, shares, spread
from train.traps import Linted

METHODS = {"sft": sft.trainer, "dpo": preference.dpo, "kto": preference.kto, "distill": distill.trainer}


def train_stage(
    run: Path,
    stage: Stage,
    linted: Linted,
    base: Base,
    renderer: Renderer,
    seed: int,
    every: int,
    hooks: Hooks,
    earlier: Path | None = None,
    penalties: list[Penalty] = (),
    steering: Steering | None = None,
) -> None:
    """Train one stage, or go on where an earlier attempt in `run` was cut off.

    every: steps between checkpoints; step 0 and the last are always kept. Each checkpoint is saved, validated, entered
    into the ledger and handed to `hooks.on_checkpoint`, in this order. earlier: the last adapter of the stage before, which
    is merged into the base; that sum is what this stage starts from, the reference of DPO and KTO, and the teacher. steering: a
    vector that is added in the forwards that are trained on, and neither saved nor there when the model is read between steps.
    penalties: terms added to the SFT loss.
    Raises UserError when the loss is not finite or an adapter does not validate.
    """
    if processes.leads():  # the others wait in `follow`
        processes.agreed((run, stage, linted, seed, every, hooks.probe, hooks.probe_every, earlier, penalties, steering))
    import datasets
    from peft import LoraConfig
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    datasets.disable_progress_bars()
    set_seed(seed)
    state = _state(run, stage)
    share = shares(stage, processes.count(), processes.rank())
    model = _start(base, earlier, whole=stage.lora is None)
    if stage.vector is not None:
        adapter = vector.config(model, block_index(stage.vector.layer, base))
    elif stage.lora is None:
        adapter = None
    else:
        adapter = LoraConfig(
            r=stage.lora.r,
            lora_alpha=stage.lora.alpha,
            lora_dropout=stage.lora.dropout,
            target_modules=stage.lora.targets,
            use_rslora=stage.lora.rslora,
            task_type="CAUSAL_LM",
        )
    trainer = METHODS[stage.method](
        model, adapter, linted, renderer, stage, arguments(stage, share, state, seed, every, str(model.device))
    )
    save = _saver(stage, trainer.model, base, earlier)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    added = Penalties(penalties, renderer, base, _off(stage, earlier), seed)
    added.attach(trainer, share)
    spread(trainer, share)
    trainer.add_callback(ledger_callback(run, stage, hooks, added, save))
    if share.rank:
        set_seed(seed + share.rank)  # other dropout masks than the first process's
    resumed = processes.agreed(newest(state) if processes.leads() else None)
    try:
        with steered(model, steering, base, training=True):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            f"stage {stage.name}: out of memory at step {trainer.state.global_step + 1}; lower batch_size (now "
            f"{stage.batch_size}) and raise gradient_accumulation (now {stage.gradient_accumulation}) by as much, so that a "
            f"step still reads as many rows, or lower max_length (now {stage.max_length})"
        ) from None
    if processes.leads():
        shutil.rmtree(run / STATE, ignore_errors=True)


def follow(base: Base, renderer: Renderer) -> None:
    """In every process but the first: train the stages that the first one trains, until it has no more."""
    while (handed := processes.agreed(None)) is not None:
        run, stage, linted, seed, every, probe, probe_every, earlier, penalties, steering = handed
        hooks = Hooks(lambda checkpoint: None, probe=probe, probe_every=probe_every)
        train_stage(run, stage, linted, base, renderer, seed, every, hooks, earlier, penalties, steering)


def _state(run: Path, stage: Stage) -> Path:
    """Where the trainer keeps what it goes on from: for any number of processes, or for so many that each hold a part.

    Raises UserError where the stage was cut off in another form.
    """
    kind = processes.kind()
    form = "" if kind in ("one", "ddp") else f"-{kind}-{processes.count()}"
    left = {path.parent.name for path in (run / STATE).glob("*/checkpoint-*")} - {stage.name + form}
    left = sorted(name for name in left if name.partition("-")[0] == stage.name)
    if left and processes.leads():
        raise UserError(
            f"{run}: stage {stage.name} was cut off as {', '.join(left)}, which {form[1:] or kind} cannot go on from; "
            f"launch it as it was, or delete {run / STATE} to train the stage from its start"
        )
    return run / STATE / (stage.name + form)


def _saver(stage: Stage, model: Any, base: Base, earlier: Path | None) -> Callable[..., None]:
    """save(model, directory, zero=, tensors=) of what the stage trains; model: before processes take it apart."""
    if stage.vector is not None:
        return partial(vector.save_vector, base=base, index=block_index(stage.vector.layer, base))
    if stage.lora is None:
        return lambda model, target, zero, tensors: weights.save(model, target, base, zero, tensors)
    return partial(save_adapter, earlier=earlier, weight=stage.weight, shapes=expected_shapes(model))


def check_targets(stage: Stage, base: Base) -> None:
    """Raise UserError where a LoRA's targets name no modules of the base (PEFT passes over these in a list); none are read."""
    if stage.vector is not None or stage.lora is None or stage.lora.targets == "all-linear":
        return
    targets = stage.lora.targets
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = module_shapes(base)
    for target in [targets] if isinstance(targets, str) else targets:
        config = LoraConfig(target_modules=target if isinstance(targets, str) else [target])
        try:
            found = any(check_target_module_exists(config, name) for name in names)
        except re.error as error:
            raise UserError(f"stage {stage.name}: lora.targets = {shown(target)} is no regular expression ({error})") from None
        if not found:
            known = sorted({name.rpartition(".")[2] for name in names if name.rpartition(".")[2].endswith("proj")})
            raise UserError(
                f"stage {stage.name}: lora.targets = {shown(target)} names no module of {base.name}{nearest(target, known)}"
            )


def _off(stage: Stage, earlier: Path | None) -> Literal["base", "start", "nothing"]:
    """What the model in training is with its adapter off."""
    if stage.lora is None:
        return "nothing"
    return "base" if earlier is None else "start"


def _start(base: Base, earlier: Path | None, whole: bool) -> Any:
    """The model that a stage trains; `whole`: every weight, held in float32, which bfloat16's steps are too coarse for."""
    model = load_model(base, "float32" if whole else None)
    model.requires_grad_(whole)
    if earlier is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(earlier)).merge_and_unload()
        model.requires_grad_(False)
    model.config.use_cache = False
    return model


def arguments(stage: Stage, share: Shares, state: Path, seed: int, every: int, device: str) -> dict[str, Any]:
    """What TRL's configurations of all methods share."""
    import torch

    length = {"max_steps": stage.steps} if stage.steps else {"num_train_epochs": stage.epochs}
    return dict(
        output_dir=str(state),
        **length,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup_steps,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        per_device_train_batch_size=share.batch_each,
        gradient_accumulation_steps=share.batches_each,
        max_length=stage.max_length,
        gradient_checkpointing=device != "cpu",
        bf16=device != "cpu" and torch.cuda.is_bf16_supported(),
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=None,  # of the resume state, of which resume.py keeps the newest; the ledger keeps the curve
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device != "cpu",
        ddp_find_unused_parameters=False,
    )
