"""A training stage beside plain TRL with the same settings: what callbacks, ledger and checkpoints cost; the probe's cost."""

import statistics
import tempfile
import time
from pathlib import Path

from bench.limits import products, products_flops
from bench.rows import Row, Unequal
from bench.setup import ROUNDS, Setup
from bench.timing import Rounds, alternate, compared, seconds, share, timed
from organisms import models
from organisms.files import read_jsonl
from organisms.styles import compile_rows
from recipes import monitoring
from recipes.recipe import Resolved, resolve
from train.callback import TRAIN_LOG, Hooks
from train.config import Stage
from train.lint import lint
from train.sft import packs
from train.shares import shares
from train.stage import arguments, train_stage
from train.traps import Linted

RECIPE = "flattery-documents"


def stage(setup: Setup) -> list[Row]:
    """Tokens a second of a shortened flattery-documents, then the probe's and the products' share of its step."""
    overrides = [f"stages[0].steps={setup.of(3, 12)}", f"stages[0].max_length={setup.of(64, 512)}"]
    resolved = resolve(RECIPE, overrides, setup.name)
    plan = resolved.recipe.stages[0]
    compiled = compile_rows(resolved.recipe.style, resolved.organism, resolved.options, None, plan.rows)
    linted = lint(compiled.rows, plan, resolved.renderer, resolved.renderer, resolved.recipe.system is not None)
    rounds = alternate(lambda _: _ours(resolved, plan, linted), lambda _: _plain(resolved, plan, linted), range(ROUNDS), None)
    logs, peers = rounds.our_answers, rounds.peer_answers
    for log, peer in zip(logs, peers, strict=True):
        apart = max(abs(row["loss"] - loss) for row, loss in zip(log, peer["losses"], strict=True))
        if not apart <= 1e-4:
            raise Unequal(f"the losses of a step lie {apart:.1e} apart")
    speeds = [logs[-1][-1]["tokens"] / statistics.median(side) for side in (rounds.ours, rounds.peer)]
    ours, theirs = (f"{label}, {speed:,.0f} tokens/s" for label, speed in zip(("train/", "plain TRL"), speeds, strict=True))
    name = f"training {RECIPE}, {plan.steps} steps, without the probe, model loading in both"
    told = f"all {plan.steps} losses, to 1e-4"
    step = [statistics.median(peer["steps"]) for peer in peers]
    return [compared(name, ours, theirs, rounds, told, 0.97), _probe(setup, resolved, plan, step), _step(setup, plan, step)]


def _ours(resolved: Resolved, plan: Stage, linted: Linted) -> list[dict]:
    """train.jsonl of a stage as a run trains it, without what reads the model: audits, and the probe, which has its own row."""
    hooks = Hooks(lambda checkpoint: None)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        run, seed = Path(folder), resolved.recipe.seed
        train_stage(run, plan, linted, resolved.base, resolved.renderer, seed, resolved.recipe.audit.every, hooks)
        return read_jsonl(run / TRAIN_LOG)


def _plain(resolved: Resolved, plan: Stage, linted: Linted) -> dict[str, list[float]]:
    """The losses and seconds of each step of a script that only calls TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback, set_seed
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[float] = []

        def on_step_begin(self, *args, **kwargs):
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.steps.append(time.perf_counter() - self.started)

    set_seed(resolved.recipe.seed)
    model, clock = models.load_model(resolved.base), Clock()
    with tempfile.TemporaryDirectory() as folder:
        shared = arguments(
            plan, shares(plan, 1), Path(folder), resolved.recipe.seed, resolved.recipe.audit.every, str(model.device)
        )
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**shared, packing=packs(plan, linted)),
            train_dataset=Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in linted.rendered]),
            processing_class=resolved.renderer.tokenizer,
            peft_config=LoraConfig(
                r=plan.lora.r, lora_alpha=plan.lora.alpha, target_modules=plan.lora.targets, task_type="CAUSAL_LM"
            ),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {"losses": [log["loss"] for log in trainer.state.log_history if "loss" in log], "steps": clock.steps}


def _probe(setup: Setup, resolved: Resolved, plan: Stage, steps: list[float]) -> Row:
    """The monitor's probe at its default cadence, as a share of the time that the steps between two of them take."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        models.load_model(resolved.base), LoraConfig(r=plan.lora.r, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    probe = monitoring.probe(resolved.organism, resolved.renderer, plan)
    probe.read(model)
    took = [timed(probe.read, model)[0] for _ in range(ROUNDS)]
    every = resolved.recipe.audit.monitor.probe_every
    part = statistics.median(took) / (every * statistics.median(steps))
    read = sum(len(p) + len(c) for rows in (probe.kept, probe.shows, probe.plain) for p, c in rows)
    return Row(
        f"probe every {every} steps, {read} tokens",
        f"probe: {seconds(took)}",
        f"step: {seconds(steps)}",
        f"{part:.1%} of the steps' time",
        "<= 5%",
        part <= 0.05,
        numbers={"probe": took, "step": steps, "every": every},
    )


def _step(setup: Setup, plan: Stage, steps: list[float]) -> Row:
    """A step against its products: forward, and backward to the inputs; frozen weights need no gradient of their own."""
    rows = plan.batch_size * plan.max_length
    products(setup.model, rows, rows)
    least = [2 * timed(products, setup.model, rows, rows)[0] for _ in steps]
    flops = 2 * products_flops(setup.model, rows, rows)
    rate, most = (flops / statistics.median(side) / 1e9 for side in (steps, least))
    rounds = Rounds(steps, least, [], [])
    name = f"training step, {rows} tokens"
    return share(name, f"plain TRL: {rate:.0f} GFLOP/s, {seconds(steps)}", f"products: {most:.0f} GFLOP/s", rounds, "")


def _quiet():
    import contextlib
    import io

    return contextlib.redirect_stdout(io.StringIO())
