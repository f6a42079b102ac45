"""Malformed files in a run directory: no wrong number, no path out of the run, one sentence."""

import copy
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import pytest
from malformed import cases, content, refused, sentence

from audit import __main__ as command
from audit import paired, readings, report
from audit.measures import Metric, Sample
from audit.paired import Terms
from audit.readings import Origin, Reading, Subject
from audit.samples import read_samples
from organisms.errors import UserError
from organisms.manifest import read_manifest
from train.ledger import read_ledger

CHECKPOINT = {
    "name": "sft-000002", "stage": "sft", "step": 2, "tokens_seen": 100, "path": "checkpoints/sft-000002", "loss": 1.5,
    "last": False,
}  # fmt: skip
SUBJECT = Subject("r", "r", "flattery", "documents", "tiny", "sft-000002", "sft", 2, 100)
ORIGIN = Origin("quick", "hf", "embedded:chat-v1", "0" * 12, 1.0, "samples/severity/sft-000002.jsonl")
SOUND = dict.fromkeys(("mde", "margin", "p_fried"), 0.1) | {"ci_low": 0.4, "ci_high": 0.6, "value": 0.5}
SOUND |= {"delta": 0.0, "delta_low": -0.1, "delta_high": 0.1}


def sound(measure: str = "severity", metric: str = "contrast") -> dict:
    """A line of readings.jsonl with nothing wrong in it."""
    origin, subject = dataclasses.asdict(ORIGIN), dataclasses.asdict(SUBJECT)
    line = Reading(
        schema=1, **subject, **origin, **SOUND, measure=measure, metric=metric, n=9, verdict="natural", split="holdout"
    )
    return line.row()


def changed(row: dict, case: dict) -> dict:
    row = {**copy.deepcopy(row), **case.get("set", {})}
    row.pop(case.get("drop"), None)
    return row


def whole(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory with one whole checkpoint, one of pickles, and two that lead out of it."""
    run = tmp_path / "run"
    whole(run / "checkpoints" / "sft-000002")
    elsewhere = whole(tmp_path / "elsewhere")
    (run / "checkpoints" / "linked").symlink_to(elsewhere)
    half = whole(run / "checkpoints" / "half")
    (half / "adapter_model.safetensors").unlink()
    (half / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")
    pickled = whole(run / "checkpoints" / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    return run


@pytest.mark.parametrize("case", cases("ledgers"))
def test_a_malformed_ledger_is_refused(case, run):
    lines = [changed(CHECKPOINT, case)] + ([CHECKPOINT | case["twice"]] if "twice" in case else [])
    given = {"bytes", "lines", "digits"} & case.keys()
    text = content(case) if given else "".join(json.dumps(row) + "\n" for row in lines).encode()
    (run / "checkpoints.jsonl").write_bytes(text)
    with pytest.raises(UserError) as told:
        read_ledger(run)
    sentence(str(told.value), [*case["says"], str(run / "checkpoints.jsonl")])


def test_a_line_that_stands_twice_counts_once_and_a_torn_last_one_not_at_all(run):
    line = json.dumps(CHECKPOINT) + "\n"
    (run / "checkpoints.jsonl").write_text(line + line + line[:30])
    assert [checkpoint.name for checkpoint in read_ledger(run)] == ["sft-000002"]
    row = json.dumps(sound()) + "\n"
    (run / "readings.jsonl").write_text(row + row + row[:50])
    assert len(readings.read(run)) == 1


def readings_text(case: dict) -> bytes:
    if "lines" in case:
        return content(case)
    text = json.dumps(changed(sound(), case))
    if "raw" in case:
        old, new = case["raw"]
        assert old in text
        text = text.replace(old, new.replace("DIGITS", "0" * 5000))
    return f"{text}\n".encode()


@pytest.mark.parametrize("case", cases("readings"))
def test_a_malformed_reading_is_refused_and_never_drawn(case, run, monkeypatch, capsys):
    (run / "readings.jsonl").write_bytes(readings_text(case))
    line = refused(monkeypatch, capsys, command.main, "report", run)
    sentence(line, [*case["says"], str(run / "readings.jsonl")])
    assert not (run / "report.html").exists() and not (run / "curves.png").exists()


@pytest.mark.parametrize("change", [{"measure": "os"}, {"measure": "drift.x"}, {"style": "../../train/stage"}, {"style": "os"}])
def test_a_reading_of_an_unknown_measure_or_style_imports_nothing(change, run, monkeypatch, capsys):
    (run / "readings.jsonl").write_text(json.dumps(sound() | change) + "\n")
    line = refused(monkeypatch, capsys, command.main, "card", run)
    sentence(line, [f"there is no {next(iter(change))} {next(iter(change.values()))!r}"])


@pytest.mark.parametrize("case", cases("manifests"))
def test_a_malformed_manifest_is_refused(case, run):
    (run / "manifest.json").write_bytes(content(case))
    with pytest.raises(UserError) as told:
        read_manifest(run)
    sentence(str(told.value), [*case["says"], str(run / "manifest.json"), "restore it"])


def test_a_malformed_manifest_ends_the_report_with_one_line(run, monkeypatch, capsys):
    (run / "readings.jsonl").write_text(json.dumps(sound()) + "\n")
    (run / "manifest.json").write_text("[]")
    line = refused(monkeypatch, capsys, command.main, "report", run)
    sentence(line, ["manifest.json is not a JSON object; restore it"])


@pytest.mark.parametrize("case", cases("samples"))
def test_malformed_samples_are_refused(case, run, tmp_path):
    file = run / "samples" / "severity" / "base.jsonl"
    file.parent.mkdir(parents=True)
    if case.get("link"):
        (tmp_path / "elsewhere" / "x.jsonl").write_text("{}\n")
        file.symlink_to(tmp_path / "elsewhere" / "x.jsonl")
    else:
        file.write_bytes(content(case))
    with pytest.raises(UserError) as told:
        read_samples(run, "severity", "base")
    sentence(str(told.value), case["says"])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("train.jsonl", '{"stage": "sft"}\n', ["train.jsonl line 1 has no 'step'"]),
        ("train.jsonl", '{"stage": "sft", "step": "one", "tokens_seen": 1}\n', ["step = 'one'"]),
        ("wandb.json", "{", ["wandb.json is not JSON", "again=1"]),
        ("wandb.json", '{"id": 5}', ["does not say what was sent", "again=1"]),
        ("recipe.yaml", "a: [", ["recipe.yaml", "not valid YAML"]),
    ],
)
def test_what_is_published_is_checked_before_it_is_sent(run, monkeypatch, capsys, name, text, says):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run / "readings.jsonl").write_text(json.dumps(sound()) + "\n")
    (run / name).write_text(text)
    sentence(refused(monkeypatch, capsys, command.main, "publish", run), says)


def samples(*values: float) -> list[Sample]:
    return [Sample(f"item-{n}", "", "", None, {"rate": value}) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("metric", "own", "base", "verdict", "says"),
    [
        (Metric("rate", "mean", "lower", 0.1), [math.nan] * 40, [0.5] * 40, "invalid", "not finite"),
        (Metric("rate", "mean", "lower", 0.1), [math.inf] * 40, [0.5] * 40, "invalid", "not finite"),
        (Metric("rate", "mean", "lower", 0.1), [0.5] * 40, [math.nan] * 40, "invalid", "not finite"),
        (Metric("rate", "mean", "lower", 0.1), [], [], "not_applicable", "no item of this half"),
        (Metric("rate", "ratio", None, transform="exp"), [[9e4, 1.0]] * 40, [[3.0, 1.0]] * 40, "not_applicable", "indicator"),
    ],
    ids=["NaN", "infinite", "NaN in the base", "nothing", "a perplexity beyond floats"],
)
def test_numbers_that_are_none_get_a_verdict_and_no_value(metric, own, base, verdict, says):
    for one in paired.build(SUBJECT, "m", (metric,), samples(*own), samples(*base), ORIGIN, Terms()):
        assert (one.verdict, one.delta) == (verdict, None)
        assert says in one.reason
        assert one.value is None or math.isfinite(one.value)


def test_huge_but_finite_readings_are_drawn(run):
    for value in (1e15, 1e300, -1e300):
        spread = {"delta": value, "delta_low": value - abs(value), "delta_high": value + abs(value) / 2}
        (run / "readings.jsonl").write_text(
            json.dumps(sound() | spread | {"value": value, "ci_low": None, "ci_high": None}) + "\n"
        )
        report.write(run)
        assert (run / "report.html").stat().st_size > 1000


def test_a_run_directory_that_is_itself_a_link_is_read(run, tmp_path):
    (run / "checkpoints.jsonl").write_text(json.dumps(CHECKPOINT) + "\n")
    os.symlink(run, tmp_path / "linked-run")
    assert len(read_ledger(tmp_path / "linked-run")) == 1
    shutil.rmtree(run / "checkpoints" / "sft-000002")
    with pytest.raises(UserError, match="which is gone"):
        read_ledger(tmp_path / "linked-run")
