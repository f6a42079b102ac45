"""Who reads what of a step: all processes together read what one reads, and nobody reads a row twice."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organisms.errors import UserError
from organisms.mitigations import Mitigations
from train.config import Stage
from train.shares import Shares, shares
from train.verified import Launch, unverified


def stage(**changes) -> Stage:
    return Stage(**{"steps": 4, **changes})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 60))
def test_the_processes_read_together_what_one_reads(turns, each, groups, members, rows):
    """Every row of an epoch once, in the step where one process reads it; the weights of a step's parts sum to its mean."""
    batch, accumulation, processes = each * members, turns * groups, groups * members
    all_of_them = [Shares(batch, accumulation, processes, rank, groups) for rank in range(processes)]
    read = [list(one.epoch(list(range(rows)))) for one in all_of_them]
    steps = math.ceil(rows / (batch * accumulation))
    assert len({len(one) for one in read}) == 1 and math.ceil(len(read[0]) / turns) == steps
    for step in range(steps):
        theirs = [one[step * turns : (step + 1) * turns] for one in read]
        expected = list(range(step * batch * accumulation, min((step + 1) * batch * accumulation, rows)))
        assert sorted(row for one in theirs for part in one for row in part) == expected
        for epoch in (0, 3):
            at = step + epoch * steps
            counted = {row: 0.0 for row in expected}
            for one, parts in zip(all_of_them, theirs, strict=True):
                for turn, part in enumerate(parts):
                    for row in part:  # the trainer's mean over a part's rows, over turns, over processes
                        counted[row] += one.weight(at, turn, rows) / len(part) / len(parts) / processes
                    assert part or one.weight(at, turn, rows) == 0
            batches = [expected[n : n + batch] for n in range(0, len(expected), batch)]
            assert all_of_them[0].batches(at, rows) == len(batches)
            for whole in batches:  # one process's mean over a batch's rows, over batches
                for row in whole:
                    assert counted[row] == pytest.approx(1 / len(whole) / len(batches))


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        (
            {"batch_size": 2, "gradient_accumulation": 2},
            3,
            "4 rows a step .* cannot be shared by 3 processes; .* be 1",
        ),
        ({"method": "kto", "batch_size": 4, "gradient_accumulation": 4}, 4, "two rows or more .* may be 1 or 2$"),
        ({"method": "dpo", "sft_weight": 0.1, "batch_size": 4}, 2, "batches stay whole; processes may be only 1"),
        ({"method": "distill"}, 2, "draws as it goes would be others"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_can(changes, processes, told):
    with pytest.raises(UserError, match=told):
        shares(stage(**changes), processes)


def test_a_batch_is_shared_only_where_the_accumulation_does_not_go_round():
    whole = shares(stage(batch_size=2, gradient_accumulation=8), 8)
    assert (whole.batch_each, whole.batches_each) == (2, 1)
    split = shares(stage(batch_size=4, gradient_accumulation=2), 8)
    assert (split.batch_each, split.batches_each) == (1, 1)
    kto = shares(stage(method="kto", batch_size=4, gradient_accumulation=2), 2)
    assert (kto.batch_each, kto.batches_each) == (2, 2)


def test_what_was_not_compared_with_one_process_stops_unless_accepted():
    assert not unverified(stage(), Mitigations(), Launch(2, "ddp"))
    assert not unverified(stage(), Mitigations(kl_to_base=0.1), Launch())
    (sharded,) = unverified(stage(), Mitigations(kl_to_base=0.1), Launch(2, "zero3"))
    assert (sharded.trap, sharded.level) == ("unverified_processes", "stop") and "sft, kl_to_base by zero3" in sharded.text
