"""The processes that train together: the first runs the recipe, the others wait until it has a stage to train.

Started by `accelerate launch` (train/launcher.py), each in the environment that it gives: WORLD_SIZE, RANK, LOCAL_RANK. The
first process alone compiles rows, audits, and writes into the run directory. What they tell each other outside the training
step goes through a gloo group of its own, which waits without using a GPU and for as long as an audit takes; NCCL gives up
after minutes.
In a run of one process every function here returns what it was given.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

from organisms.errors import UserError

PATIENCE = timedelta(days=7)  # how long the others wait for the first: for all rows to be written, for an audit to end
GRACE = 20.0  # seconds in which the launcher ends those that are left
# What gloo and NCCL say of a process that is gone.
BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Socket closed")


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "LOCAL_RANK" in os.environ


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def leads() -> bool:
    """Whether this is the process that audits and writes."""
    return rank() == 0


def kind() -> str:
    """How they hold the weights: `ddp` (each has all), or sharded: `fsdp`, `zero1`, `zero2`, `zero3`; `one` process."""
    if not launched():
        return "one"
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '')}"
    return "ddp" if count() > 1 else "one"


def _start() -> None:
    """Meet the other processes, and take a GPU of one's own; nothing where there is one process."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
        _waiting()


@cache
def _waiting() -> Any:
    import torch.distributed

    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def agreed(value: Any) -> Any:
    """The first process's value, in all of them; the others wait for it."""
    if count() == 1:
        return value
    import torch.distributed

    held = [value if leads() else None]
    torch.distributed.broadcast_object_list(held, src=0, group=_waiting())
    return held[0]


def summed(values: list[float]) -> list[float]:
    """Each value's sum over the processes."""
    if count() == 1:
        return values
    import torch

    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total, group=_waiting())
    return total.tolist()


def whole(model: Any) -> dict[str, Any] | None:
    """What a model trains, gathered from the processes that hold parts of it: parameter name -> tensor on the CPU.

    None where each process holds all of it. All processes must come here. Raises UserError where the weights are not held as
    the launch says: accelerate ignores FSDP on CPUs without a word, and gathers nothing of its first version.
    """
    if kind() in ("one", "ddp"):
        return None
    mark = {"fsdp": "full_tensor", "zero3": "ds_id"}.get(kind())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if mark and not all(hasattr(parameter, mark) for parameter in trained.values()):
        raise UserError(f"the weights are not sharded by {kind()}: it needs GPUs, and of fsdp its version 2; or take ddp")
    return {name: _gathered(parameter).detach().cpu().clone() for name, parameter in trained.items()}


def _gathered(parameter: Any) -> Any:
    if hasattr(parameter, "full_tensor"):  # FSDP's
        return parameter.full_tensor()
    if hasattr(parameter, "ds_id"):  # of DeepSpeed's third stage
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def meet() -> None:
    """Wait until all have come here."""
    summed([0.0])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Meet the other processes for what follows, and end together.

    The first process says what went wrong where it can; another one only when that lives on. Of the others' end each learns by
    a broken connection, and leaves it to the launcher to end it.
    """
    if not launched():
        yield
        return
    if not leads():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # it writes nothing that could be torn
    _start()
    try:
        yield
    except Exception as error:
        broken = any(text in str(error) for text in BROKEN)
        if broken or not leads():
            time.sleep(GRACE)
        if broken:
            raise UserError("another process of this training has ended; the same command goes on") from None
        raise
    if leads():
        agreed(None)
    if count() > 1:
        import torch

        torch.distributed.destroy_process_group()
