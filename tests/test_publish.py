"""W&B offline: every metric at every step on its own axis, nothing backwards, a resumed run in one piece."""

import json
import shutil
from unittest.mock import MagicMock

import pytest
from offline import datastore, series, started, summary, table

from audit import publish, wandb_run
from audit import readings as ledger
from audit.verdicts import INDICATOR, overall
from organisms.files import read_jsonl, write_jsonl
from organisms.strict import read_yaml


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of a finished run that W&B has not seen."""
    copy = tmp_path / tiny_run.name
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "wandb", ignore_errors=True)
    (copy / "wandb.json").unlink(missing_ok=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return copy


COLUMNS = {"": "value", "_low": "ci_low", "_high": "ci_high"}
COLUMNS |= {"_delta": "delta", "_delta_low": "delta_low", "_delta_high": "delta_high"}


def test_every_metric_is_sent_at_every_step_with_its_interval_on_its_own_axis(run):
    publish.publish(run)
    sent = series(run)
    training = read_jsonl(run / "train.jsonl")
    assert sent["train/loss"] == [(row["tokens_seen"], row["step"], row["loss"]) for row in training]
    expected: dict[str, list[tuple]] = {}
    on_curve = [r for r in ledger.read(run) if r.on_curve or r.specimen == "base"]
    for r in sorted(on_curve, key=lambda r: r.tokens_seen):
        name = f"{r.measure}/{r.metric}" + ("_monitor" if r.split == "monitor" else "")
        for suffix, column in COLUMNS.items():
            if getattr(r, column) is not None:
                expected.setdefault(name + suffix, []).append((r.tokens_seen, r.step, getattr(r, column)))
    assert len(expected) > 300
    assert {key: values for key, values in sent.items() if not key.startswith("train/")} == expected
    metrics = [record.metric for record in datastore(run) if record.WhichOneof("record_type") == "metric"]
    axes = {(metric.name or metric.glob_name): metric.step_metric for metric in metrics}
    assert all(axes[f"{key.partition('/')[0]}/*"] == "tokens_seen" for key in sent)


def test_no_series_goes_back_even_when_an_old_checkpoint_is_read_again(run, monkeypatch, capsys):
    """The zero adapter, read again at another suite after the last checkpoint was sent, and the base for a second stage."""
    server(monkeypatch)
    publish.publish(run)
    lines = [row for row in read_jsonl(run / "readings.jsonl") if row["specimen"] in ("base", "sft-000000")]
    ledger.append(run, [ledger.parse({**row, "suite": "full"}, "here") for row in lines])
    publish.publish(run)
    everything = [row for logged in SERVER for row in logged]
    places: dict[str, list[int]] = {}
    for row in everything:
        for key in row:
            if "tokens_seen" in row and "/" in key:
                places.setdefault(key, []).append(row["tokens_seen"])
    assert len(places) > 300 and all(values == sorted(values) for values in places.values())
    assert "sft-000000 read again after later checkpoints" in capsys.readouterr().out


def test_groups_config_and_views_are_sent(run):
    identity = publish.publish(run)
    manifest = json.loads((run / "manifest.json").read_text())
    record = started(run)
    assert (record.run_id, record.run_group, record.job_type) == (identity, "flattery", "train")
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert config["digests"] == {
        "recipe": manifest["digest"],
        "organism": manifest["organism_fingerprint"],
        "base": manifest["base_revision"],
        "template": manifest["template_hash"],
    }
    assert config["engine"]["engine"] == "hf" and config["versions"]["trl"]
    verdicts = table(run, "report/verdicts")
    last = [r for r in ledger.read(run) if r.specimen == "sft-000004" and r.split == "holdout" and r.reason != INDICATOR]
    place = {name: k for k, name in enumerate(verdicts["columns"])}
    said = [tuple(row[place[key]] for key in ("measure", "metric", "verdict", "n_needed")) for row in verdicts["data"]]
    assert said == [(r.measure, r.metric, r.verdict, r.n_needed) for r in last]
    replies = table(run, "report/transcripts")
    assert len(replies["data"]) > 30 and {"base", "reply", "flags"} <= set(replies["columns"])
    artifacts = [record.artifact for record in datastore(run) if record.WhichOneof("record_type") == "artifact"]
    files = {artifact.type: {entry.path for entry in artifact.manifest.contents} for artifact in artifacts}
    assert files["report"] >= {"report.html", "curves.png"} and files["organism-card"] == {"README.md"}
    assert summary(run)["verdict"] == overall(ledger.read(run), "sft-000004").verdict


def test_a_resumed_offline_run_is_the_same_run_and_lies_there_once_and_whole(run):
    """Cut off after the first checkpoint and gone on with: what lies offline is all of it, as `wandb sync` wants it."""
    lines, losses = read_jsonl(run / "readings.jsonl"), read_jsonl(run / "train.jsonl")
    write_jsonl(run / "readings.jsonl", [row for row in lines if row["step"] < 4])
    write_jsonl(run / "train.jsonl", losses[:2])
    with publish.Publisher(run) as publisher:
        publisher.send()
    first = series(run)
    write_jsonl(run / "readings.jsonl", lines)
    write_jsonl(run / "train.jsonl", losses)
    identity = publish.publish(run)
    assert started(run).run_id == identity == json.loads((run / "wandb.json").read_text())["id"]
    assert len(list(run.glob("wandb/offline-run-*"))) == 1
    sent = series(run)
    assert len(sent["train/loss"]) == 4 and all(sent[key][: len(values)] == values for key, values in first.items())
    other = publish.publish(run, again=True)
    assert other != identity and len(list(run.glob("wandb/offline-run-*"))) == 2


SERVER: list[list[dict]] = []


def server(monkeypatch):
    """A stand-in for W&B's server, which no test reaches: an id that was opened before is resumed."""
    known: set[str] = set()
    SERVER.clear()

    def start(folder, run_id, *_):
        rows: list[dict] = []
        SERVER.append(rows)
        opened = MagicMock(resumed=run_id in known, id=run_id, dir=str(folder / "wandb" / "run" / "files"))
        opened.log.side_effect = rows.append
        known.add(run_id)
        return opened

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb_run, "start", start)


def test_what_a_server_holds_is_not_sent_again_and_what_lay_offline_is(run, monkeypatch):
    offline = publish.publish(run)
    server(monkeypatch)
    assert publish.publish(run) == offline  # the server does not know it yet
    assert sum("train/loss" in row for row in SERVER[0]) == 4
    assert not list(run.glob("wandb/offline-run-*"))  # or a later sync would send it over the other
    assert publish.publish(run) == offline
    assert not any("train/loss" in row or "knowledge/accuracy" in row for row in SERVER[1])


def test_what_was_not_trained_is_drawn_over_its_steps(run):
    """Prompts and coefficients have seen no tokens."""
    recipe = read_yaml(run / "recipe.yaml")
    (run / "recipe.yaml").write_text(json.dumps({**recipe, "stages": []}))
    rows = [{**row, "tokens_seen": 0} for row in read_jsonl(run / "readings.jsonl")]
    write_jsonl(run / "readings.jsonl", rows)
    publish.publish(run)
    metrics = [record.metric for record in datastore(run) if record.WhichOneof("record_type") == "metric"]
    assert {metric.step_metric for metric in metrics if metric.glob_name} == {"step"}
    assert [step for _, step, _ in series(run)["knowledge/accuracy_delta"]] == [0, 2, 4]


def test_disabled_sends_and_writes_nothing(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    publish.publish(run)
    assert not (run / "wandb").exists() and not (run / "wandb.json").exists()


def test_offline_is_the_default_without_a_login(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_run.mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_run.mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert wandb_run.mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_run.mode() == "disabled"
