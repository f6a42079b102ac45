"""W&B offline: nothing is dropped, audits have their own axis, a second publish sends nothing twice, disabled sends nothing."""

import json
import shutil
import struct

import pytest

from audit import publish
from audit import readings as ledger
from organisms.files import read_jsonl


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of a finished run that W&B has not seen."""
    copy = tmp_path / tiny_run.name
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "wandb", ignore_errors=True)
    (copy / "wandb.json").unlink(missing_ok=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return copy


def records(raw: bytes) -> list[bytes]:
    """Records of a .wandb file: LevelDB's log format (32 KiB blocks of crc, length, kind, data) after a 7-byte header."""
    found, part, position = [], b"", 7
    while position + 7 <= len(raw):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + 7])
        data = raw[position + 7 : position + 7 + length]
        position += 7 + length
        part = data if kind in (1, 2) else part + data  # whole, first; middle, last
        if kind in (1, 4):
            found.append(part)
    return found


def history(run) -> list[dict]:
    """Every history row in the run's offline files, in the order they were logged."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def test_training_and_audits_are_sent_whole_on_their_own_axis(run):
    publish.publish(run)
    rows = history(run)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses == [row["loss"] for row in read_jsonl(run / "train.jsonl")]
    sent = {(row["step"], row["tokens_seen"], key): row[key] for row in rows for key in row if key.startswith("audit/")}
    readings = [r for r in ledger.read(run) if r.stage and r.split == "holdout" and r.delta is not None]
    assert len(readings) > 50
    for r in readings:
        assert sent[r.step, r.tokens_seen, f"audit/{r.measure}/{r.metric}/delta"] == pytest.approx(r.delta)
        assert sent[r.step, r.tokens_seen, f"audit/{r.measure}/{r.metric}"] == pytest.approx(r.value)


def test_a_second_publish_sends_nothing_twice_and_again_replays_all(run):
    first = publish.publish(run)
    losses = sum("train/loss" in row for row in history(run))
    assert publish.publish(run) == first
    assert sum("train/loss" in row for row in history(run)) == losses
    assert publish.publish(run, again=True) != first
    assert sum("train/loss" in row for row in history(run)) == 2 * losses


def test_disabled_sends_and_writes_nothing(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    publish.publish(run)
    assert not (run / "wandb").exists() and not (run / "wandb.json").exists()


def test_offline_is_the_default_without_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert publish.wandb_mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert publish.wandb_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert publish.wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert publish.wandb_mode() == "disabled"
