"""The checkpoint ledger: checkpoints.jsonl, one line for each adapter (or vector, or model), written once it was validated."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from organisms.errors import UserError
from organisms.files import append_jsonl, inside, is_a, read_numbered_jsonl

LEDGER = "checkpoints.jsonl"
NEEDS = {"name": str, "stage": str, "step": int, "tokens_seen": int, "path": str}
SAVED = (
    ("adapter_config.json", "adapter_model.safetensors"),
    ("steering.json", "steering.safetensors"),
    ("config.json", "model*.safetensors"),  # all weights, in one file or in shards
)


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
    """The ledger's lines in order. A line whose adapter is gone or lies outside the run is an error that says so."""
    path = run / LEDGER
    if not path.is_file():
        return []
    found: dict[str, Checkpoint] = {}
    for number, row in read_numbered_jsonl(path, NEEDS):
        place = f"{path} line {number}"
        try:
            checkpoint = Checkpoint(**row)
        except TypeError as error:
            raise UserError(f"{place} is not a checkpoint ({error}); was it written by another version?") from None
        loss = checkpoint.loss
        sound = min(checkpoint.step, checkpoint.tokens_seen) >= 0 and is_a(checkpoint.last, bool)
        if not sound or not (loss is None or is_a(loss, int | float) and math.isfinite(loss)):
            raise UserError(f"{place} is not a checkpoint: step, tokens_seen, loss or last cannot be; mend or remove that line")
        folder = inside(run, checkpoint.path, place)
        if not any(all(any(folder.glob(name)) for name in files) for files in SAVED):
            raise UserError(
                f"{path} names {checkpoint.path}, which is gone or not whole; restore it or delete the run directory"
            )
        for file in (file for pair in SAVED for name in pair for file in folder.glob(name)):
            inside(run, f"{checkpoint.path}/{file.name}", place)
        if found.setdefault(checkpoint.name, checkpoint) != checkpoint:
            raise UserError(f"{place} names {checkpoint.name} a second time, with other values; remove one of the two lines")
    return list(found.values())


def enter(run: Path, checkpoint: Checkpoint) -> None:
    append_jsonl(run / LEDGER, [asdict(checkpoint)])
