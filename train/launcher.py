"""Starts the processes of one training under `accelerate launch`, and says in one exit status how they ended."""

import logging
import os
import signal
import sys
from pathlib import Path

from organisms.errors import UserError
from organisms.strict import nearest, read_yaml
from train import processes
from train.verified import Launch

FOLDER = Path(__file__).parent / "launch"


def config_file(name: str) -> Path:
    """An accelerate configuration: the name of one in train/launch/, or a path."""
    shipped = FOLDER / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
        raise UserError(f"accelerate={name}: no such file, and train/launch/ has {', '.join(names)}{nearest(name, names)}")
    return path


def planned(count: int | None, config: str | None) -> Launch:
    """What `launch` would start. Raises UserError for a configuration that it would start otherwise."""
    path = config_file(config or "ddp")
    values = read_yaml(path)
    sharing = values.get("distributed_type")
    stage = (values.get("deepspeed_config") or {}).get("zero_stage", "")
    kinds = {"MULTI_GPU": "ddp", "FSDP": "fsdp", "DEEPSPEED": f"zero{stage}"}
    if sharing not in kinds:
        raise UserError(
            f"{path}: distributed_type {sharing!r} is not one that is launched here: {', '.join(kinds)} (MULTI_GPU trains on "
            "CPUs too, where there are no GPUs)"
        )
    return Launch(count or values.get("num_processes") or 1, kinds[sharing])


def current() -> Launch:
    """What this process is one of."""
    return Launch(processes.count(), processes.kind())


def launch(module: str, arguments: list[str], count: int | None, config: str | None) -> int:
    """Run `python -m module arguments` in several processes; 0, or the exit status of the process that failed first.

    The others are ended when one fails, and all of them when this one is. config: an accelerate configuration, which may also
    name several machines; `count` overrides its number.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    path = config_file(config or "ddp")
    values, plan = read_yaml(path), planned(count, config)
    _check_devices(plan, values.get("num_machines", 1))
    command = ["--config_file", str(path), "--module"]
    if count:
        command += ["--num_processes", str(count)]
    if not values.get("main_process_port") and values.get("num_machines", 1) == 1:
        command += ["--main_process_port", "0"]  # any that is free
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what failed says so itself
    try:
        launch_command(launch_command_parser().parse_args([*command, module, *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name  # nobody could say so but its parent
        print(f"error: process {rank} was ended by {name}; what is done is kept, the same command goes on", file=sys.stderr)
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except (ValueError, ImportError) as error:
        raise UserError(f"{path}: accelerate refuses it: {str(error).splitlines()[0]}") from None
    return 0


def _check_devices(plan: Launch, machines: int) -> None:
    """Raise UserError for what accelerate would do otherwise than asked, or late."""
    import torch

    devices, here = torch.cuda.device_count(), -(-plan.processes // machines)
    if plan.kind != "ddp" and not devices:
        raise UserError(f"{plan.kind} needs GPUs, and there are none here (accelerate would train by ddp); leave it out")
    if devices and here > devices:
        raise UserError(
            f"{here} processes on this machine have {devices} GPUs to share; each needs its own: processes={devices}"
        )
