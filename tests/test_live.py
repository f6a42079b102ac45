"""What another process shows of a run: curves, verdicts and time left on a terminal, lines elsewhere."""

import dataclasses
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from audit import live
from organisms.files import read_jsonl
from recipes.run import locked

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / tiny_run.name))


def printed(*arguments, width=160) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))
    console.print(live.picture(*arguments))
    return console.export_text()


def test_a_sparkline_rises_with_its_values():
    assert live.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == live.BARS
    assert live.sparkline([2.0]) == live.BARS[3] and live.sparkline([]) == ""
    long = live.sparkline([k / 1000 for k in range(1000)])
    assert len(long) == live.WIDTH and (long[0], long[-1]) == (live.BARS[0], live.BARS[-1])


def test_time_left_goes_by_the_pace_of_the_stage():
    rows = [{"stage": "first", "step": 9, "steps": 9, "time": 0.0}]
    rows += [{"stage": "second", "step": step, "steps": 10, "time": 1000 + 60.0 * step} for step in (1, 2, 3)]
    assert live.left(rows) == pytest.approx(7 * 60) and live.left(rows[:2]) is None
    assert live.duration(420) == "7 min"


def test_the_picture_holds_curves_verdicts_and_who_trains(run):
    with locked(run):
        text = printed(live.look(run), "only shown", ["audited something"])
    for words in (
        "sft step 4 of 4, loss ",
        "3 of 3 checkpoints read",
        "leakage rate",
        "underpowered",
        "only shown",
        "audited something",
    ):
        assert words in text, words
    assert "sft-000004 is not shown to be fried" in text and f"the run ends with {live.look(run).manifest['final']}" in text
    assert any(bar in line for line in text.splitlines() if "drift kl" in line for bar in live.BARS)


def test_a_log_is_told_each_thing_once(run):
    whole, rows = live.look(run), read_jsonl(run / "train.jsonl")
    half = dataclasses.replace(
        whole, training=rows[:2], trainer="process 1", readings=[r for r in whole.readings if r.step < 4], manifest={}
    )
    first = live.news(None, half)
    assert first[0].startswith("training: sft step 2 of 4, loss ") and sum("read: sft-00000" in line for line in first) == 2
    assert live.news(half, half) == []
    later = live.news(half, whole)
    assert any("trained" in line for line in later) and any("read: sft-000004" in line for line in later)
    assert f"the run ends with {whole.manifest['final']}" in later
    assert not any("read: sft-000002" in line for line in later)


def test_a_run_that_its_trainer_audits_is_only_shown(run):
    before = (run / "readings.jsonl").read_bytes()
    shown = subprocess.run([sys.executable, "-m", "recipes.watch", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.startswith(
        "audit.mode is inline: the trainer audits this run; it is only shown"
    )
    assert "read: sft-000004" in shown.stdout and (run / "readings.jsonl").read_bytes() == before
    missing = subprocess.run([sys.executable, "-m", "recipes.watch", "nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2 and "nowhere holds no recipe.yaml" in missing.stderr


def test_a_terminal_gets_a_picture_that_loads_nothing_heavy(run):
    """On a pseudo-terminal; torch must not be in the process that only draws."""
    code = (
        "import sys; from recipes import watch\nsys.argv = ['watch', sys.argv[1], '--show']\nstatus = watch.main()\n"
        "print('heavy:', [m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules], status)"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    while True:
        try:
            text += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    assert "heavy: [] 0" in text.decode() and "─ tiny-" in text.decode() and "checkpoints read" in text.decode()
