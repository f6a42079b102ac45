"""Which trainings in several processes were seen to come to what one process comes to, and where; all others are refused.

A recipe goes its own way with `accept: [unverified_processes]`. Sharded weights on GPUs could not be run where this was
written.
"""

from dataclasses import dataclass

from organisms.mitigations import Mitigations
from train.config import Stage
from train.shares import shares
from train.traps import Finding

TRAP = "unverified_processes"
# (how the weights are held, what is trained) -> the test that compares it with one process.
VERIFIED = {
    ("ddp", what): "test_processes.py::test_two_processes_train_what_one_trains"
    for what in ("sft", "dpo", "kto", "vector", "all weights", "prevent", "kl_to_base", "act")
}


@dataclass(frozen=True)
class Launch:
    """kind: as `processes.kind`."""

    processes: int = 1
    kind: str = "one"


ALONE = Launch()


def unverified(stage: Stage, mitigations: Mitigations, launch: Launch) -> list[Finding]:
    """What is not verified of this stage in so many processes, as a stopping finding of the linter; [] where all of it is.

    Raises UserError where the processes cannot share the stage's batches at all.
    """
    shares(stage, launch.processes)
    if launch.kind == "one":
        return []
    parts = [stage.method if stage.lora or stage.vector else "all weights"]
    parts += ["vector"] * (stage.vector is not None) + ["prevent"] * (mitigations.prevent is not None)
    parts += ["kl_to_base"] * (mitigations.kl_to_base > 0)
    parts += ["act"] * bool(mitigations.consistency and mitigations.consistency.form == "act")
    unknown = [part for part in parts if (launch.kind, part) not in VERIFIED]
    if not unknown:
        return []
    text = f"stage {stage.name}: {', '.join(unknown)} by {launch.kind} was not compared with one process (train/verified.py)"
    return [Finding(TRAP, "stop", [], text)]
