"""A run that is broken again and again ends as an undisturbed one (tests/torture.py); the full form is `make torture`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torture import differences

from organisms.files import append_jsonl, read_jsonl, write_jsonl

SCRIPT = Path(__file__).with_name("torture.py")


def torture(*options: str) -> str:
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, cwd=SCRIPT.parent.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_run_torn_without_power_and_on_a_full_disk_ends_as_an_undisturbed_one(tiny_base):
    told = torture("--short", "--kills", "3", "--base", str(tiny_base))
    assert "3 kills in 1 trials, 0 wrong" in told
    assert told.count("status -9") == 2 and told.count("status 2") == 1, told


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_dozen_kills_anywhere_in_a_run_of_two_stages_change_nothing(tiny_base):
    assert "24 kills in 16 trials, 0 wrong" in torture("--kills", "24", "--seed", "1", "--base", str(tiny_base))


def doubled(name):
    def change(run):
        rows = read_jsonl(run / name)
        append_jsonl(run / name, rows[-1:])

    return change


def moved(run):
    rows = read_jsonl(run / "readings.jsonl")
    number = next(n for n, row in enumerate(rows) if row["value"])
    write_jsonl(
        run / "readings.jsonl", [{**row, "value": row["value"] + 2e-6} if n == number else row for n, row in enumerate(rows)]
    )


def lost(run):
    rows = read_jsonl(run / "readings.jsonl")
    write_jsonl(run / "readings.jsonl", rows[:-1])


def scaled(run):
    from safetensors.torch import load_file, save_file

    path = run / "checkpoints" / "sft-000004" / "adapter_model.safetensors"
    save_file({name: tensor * 1.001 for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled("train.jsonl"), "train.jsonl: 5 lines, 4 undisturbed"),
        (doubled("checkpoints.jsonl"), "checkpoints.jsonl: 4 lines, 3 undisturbed"),
        (doubled("readings.jsonl"), "readings: 1 double lines"),
        (moved, "readings: ('base',"),
        (lost, "readings: keys differ"),
        (scaled, "the final adapter differs"),
        (lambda run: (run / "trainer").mkdir(), "left behind: ['trainer']"),
        (lambda run: (run / "report.html").write_text(""), "empty: ['report.html']"),
        (lambda run: (run / "samples" / "drift" / "base.jsonl").unlink(), "samples: "),
    ],
)
def test_the_comparison_sees_what_is_otherwise(tiny_run, tmp_path, change, said):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    assert differences(copy, tiny_run) == []
    change(copy)
    assert any(said in found for found in differences(copy, tiny_run))
