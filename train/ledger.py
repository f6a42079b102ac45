"""The checkpoint ledger: checkpoints.jsonl, one line for each adapter (or vector, or model), written once it was validated."""

from dataclasses import asdict, dataclass
from pathlib import Path

from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl

LEDGER = "checkpoints.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A saved adapter at a step of a stage; step 0 is the untouched base under an adapter of zeros.

    path: relative to the run directory; tokens_seen: training tokens up to here over all stages; loss: the last logged
    one (nats a token), None at step 0.
    """

    name: str
    stage: str
    step: int
    tokens_seen: int
    path: str
    loss: float | None = None
    last: bool = False


def checkpoint_name(stage: str, step: int) -> str:
    return f"{stage}-{step:06d}"


def read_ledger(run: Path) -> list[Checkpoint]:
    """The ledger's lines in order. A line whose adapter is gone is an error that says so."""
    path = run / LEDGER
    if not path.is_file():
        return []
    checkpoints = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            checkpoint = Checkpoint(**row)
        except TypeError as error:
            raise UserError(f"{path} line {number} is not a checkpoint ({error}); was it written by another version?") from None
        if not any(
            (run / checkpoint.path / name).is_file() for name in ("adapter_config.json", "steering.json", "config.json")
        ):
            raise UserError(f"{path} names {checkpoint.path}, which is gone; restore it or delete the run directory")
        checkpoints.append(checkpoint)
    return checkpoints


def enter(run: Path, checkpoint: Checkpoint) -> None:
    append_jsonl(run / LEDGER, [asdict(checkpoint)])
