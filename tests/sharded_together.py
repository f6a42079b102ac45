"""stages_together with weights sharded by FSDP on CPUs: python -m sharded_together FOLDER BASE [NAME ...], under a launcher.

torch shards on CPUs, over gloo; accelerate takes FSDP only where it finds GPUs. So here its state is told that it is sharded;
everything after that is as on GPUs.
"""

import os

from accelerate.state import AcceleratorState, DistributedType, PartialState
from stages_together import main

from organisms.errors import run_cli
from organisms.strict import read_yaml
from train.launcher import config_file

own = AcceleratorState.__init__


def sharded(self, *given, fsdp_plugin=None, **named) -> None:
    first = AcceleratorState._shared_state.get("fsdp_plugin") is None
    own(self, *given, fsdp_plugin=fsdp_plugin, **named)
    if first and fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for key, value in read_yaml(config_file("fsdp"))["fsdp_config"].items():
        os.environ[key.upper()] = str(value)
    AcceleratorState.__init__ = sharded
    run_cli(main)
