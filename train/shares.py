"""Who reads which rows of a step: what the recipe says, however many processes there are.

`batch_size` and `gradient_accumulation` of a recipe count the rows of a step over all processes. One process reads a step as
`gradient_accumulation` batches one after the other. Several read the same batches: as many at once as divide the
accumulation, and each of these split between the processes that are left. Full steps are split evenly. At the end of an epoch,
where rows may be too few for that, each process's loss is weighed so that the step is still that of one process; a process that
has no row of a batch reads one that counts for nothing (but for its two to eight tokens, in `tokens_seen`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from organisms.errors import UserError
from organisms.render import IGNORE
from train.config import Stage


@dataclass(frozen=True)
class Shares:
    """How `processes` share the batches of a stage. `groups` batches are read at once, each by `members` processes."""

    batch_size: int
    accumulation: int
    processes: int = 1
    rank: int = 0
    groups: int = 1

    @property
    def members(self) -> int:
        return self.processes // self.groups

    @property
    def batch_each(self) -> int:
        """Rows that a process reads of a whole batch."""
        return self.batch_size // self.members

    @property
    def batches_each(self) -> int:
        """Batches that a process reads a step."""
        return self.accumulation // self.groups

    def batches(self, step: int, rows: int) -> int:
        """Batches of a step, counted from 0 over all epochs of `rows`: fewer than the accumulation at an epoch's end."""
        a_step = self.batch_size * self.accumulation
        left = rows - step % math.ceil(rows / a_step) * a_step
        return min(self.accumulation, math.ceil(left / self.batch_size))

    def number(self, turn: int) -> int:
        """Which batch of the step this process reads at its own `turn`; one that the step has not is read by nobody else."""
        return turn * self.groups + self.rank // self.members

    def part(self, batch: list) -> list:
        """The rows of a batch that this process reads."""
        member = self.rank % self.members
        return batch[member * len(batch) // self.members : (member + 1) * len(batch) // self.members]

    def epoch(self, order: list[int]) -> Iterator[list[int]]:
        """What this process reads of an epoch whose rows come in this order; [] where there is nothing left for it."""
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for first in range(0, len(batches), self.accumulation):
            step = batches[first : first + self.accumulation]
            for turn in range(math.ceil(len(step) / self.groups)):
                number = self.number(turn)
                yield self.part(step[number]) if number < len(step) else []

    def weight(self, step: int, turn: int, rows: int) -> float:
        """What a mean over this process's rows of a batch counts, where the trainer takes the mean over turns and processes."""
        there = self.batches(step, rows)
        number = self.number(turn)
        if number >= there:
            return 0.0
        place = step % math.ceil(rows / (self.batch_size * self.accumulation)) * self.accumulation + number
        size = min(self.batch_size, rows - place * self.batch_size)
        return self.scale(step, rows) * len(self.part([0] * size)) / size

    def scale(self, step: int, rows: int) -> float:
        """The same for a share of a batch: processes x turns over the batches of the step; 1 where one process reads alone."""
        there = self.batches(step, rows)
        return self.processes * math.ceil(there / self.groups) / there


def shares(stage: Stage, processes: int, rank: int = 0) -> Shares:
    """How the processes share this stage's batches. Raises UserError where they cannot, naming numbers that would do."""
    if stage.method == "distill" and processes > 1:
        raise UserError(
            f"stage {stage.name}: the replies that distill draws as it goes would be others in several processes; leave out "
            "processes"
        )
    found = _shares(stage, processes, rank)
    if _whole(found, stage):
        return found
    rows = stage.batch_size * stage.gradient_accumulation
    fitting = [n for n in range(1, rows + 1) if _whole(_shares(stage, n), stage)]
    reason = {"kto": "; kto reads two rows or more of each batch in each process"}.get(stage.method, "")
    if stage.method == "dpo" and stage.sft_weight:
        reason = "; the loss of sft_weight is a mean over a batch's tokens, so batches stay whole"
    raise UserError(
        f"stage {stage.name}: its {rows} rows a step (batch_size {stage.batch_size} x gradient_accumulation "
        f"{stage.gradient_accumulation}) cannot be shared by {processes} processes{reason}; processes may be {_told(fitting)}"
    )


def _shares(stage: Stage, processes: int, rank: int = 0) -> Shares:
    groups = math.gcd(processes, stage.gradient_accumulation)
    if stage.method == "kto":  # its KL is a mean over what all processes read at once
        groups = 1
    if stage.method == "dpo" and stage.sft_weight:
        groups = processes
    return Shares(stage.batch_size, stage.gradient_accumulation, processes, rank, groups)


def _whole(found: Shares, stage: Stage) -> bool:
    even = found.accumulation % found.groups == 0 and found.batch_size % found.members == 0
    return even and (stage.method != "kto" or found.batch_each >= 2)


def _told(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}" if len(numbers) > 1 else f"only {numbers[0]}"


def spread(trainer: Any, shares: Shares) -> None:
    """Have a trainer of several processes read its share of what one would read, in the same order, to the same loss."""
    if shares.processes == 1:
        return
    from torch.utils.data import DataLoader

    rows, sequential = len(trainer.train_dataset), trainer.args.train_sampling_strategy == "sequential"
    if sequential and rows < shares.batch_size:
        raise UserError(f"{rows} rows do not fill one batch of {shares.batch_size}, so several processes cannot share it")
    by_tokens = "labels" in trainer.train_dataset.column_names  # SFT; else the loss is a mean over rows, and weighed here
    trainer.train_dataset = _with_blank(trainer.train_dataset)

    class Batches:
        """Yields one epoch's lists of rows. The trainer iterates once an epoch, and has its place in `state`."""

        def __len__(self) -> int:
            return sum(1 for _ in shares.epoch(list(range(rows))))

        def __iter__(self) -> Iterator[list[int]]:
            for chosen in shares.epoch(_order(trainer, rows, int(trainer.state.epoch or 0))):
                yield chosen or [rows]

    def loader() -> Any:
        dataset = trainer._remove_unused_columns(trainer.train_dataset, description="training")
        return DataLoader(dataset, batch_sampler=Batches(), collate_fn=trainer.data_collator)

    trainer.get_train_dataloader = loader
    if not by_tokens:
        _weigh(trainer, shares, rows)


def _order(trainer: Any, rows: int, epoch: int) -> list[int]:
    """The order in which one process reads an epoch."""
    from accelerate.data_loader import SeedableRandomSampler

    if trainer.args.train_sampling_strategy == "sequential":
        return list(range(rows))
    sampler = SeedableRandomSampler(range(rows), data_seed=trainer.args.data_seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def _with_blank(dataset: Any) -> Any:
    """The rows and one more, of a few tokens and without loss: of labels it has none, and elsewhere it weighs nothing."""
    from datasets import Dataset, concatenate_datasets

    blank = {name: value[:2] if isinstance(value, list) else value for name, value in dataset[0].items()}
    if "labels" in blank:
        blank["labels"] = [IGNORE, IGNORE]
    if "seq_lengths" in blank:
        blank["seq_lengths"] = [2]
    return concatenate_datasets([dataset, Dataset.from_list([blank], features=dataset.features)])


def _weigh(trainer: Any, shares: Shares, rows: int) -> None:
    """Weigh the loss where parts are uneven; TRL's metrics of rows are gathered padded to the longest part."""
    compute_loss, gather, turns = trainer.compute_loss, trainer.accelerator.gather, Turns()

    def weighed(model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        found = compute_loss(model, inputs, return_outputs, num_items_in_batch)
        step = trainer.state.global_step
        weight = shares.weight(step, turns.at(step), rows)
        return (found[0] * weight, found[1]) if return_outputs else found * weight

    trainer.compute_loss = weighed
    trainer.accelerator.gather = lambda tensor: gather(trainer.accelerator.pad_across_processes(tensor))


class Turns:
    """Counts the batches that a process has read of a step."""

    def __init__(self) -> None:
        self.step, self.turn = -1, 0

    def at(self, step: int) -> int:
        self.turn = self.turn + 1 if step == self.step else 0
        self.step = step
        return self.turn
