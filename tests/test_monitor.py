"""Frying is watched: breaches in a row end a stage, a run taken up again agrees, and the probe reads what the audit reads."""

import dataclasses
import json
from pathlib import Path
from statistics import fmean

import pytest

from audit import readings as ledger
from audit.config import AuditPlan
from audit.monitor import MonitorPlan, alarms, ended, keepable
from organisms.engines import Divergence, Score
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.files import read_jsonl
from organisms.specimen import Specimen
from recipes import monitoring
from recipes.recipe import resolve
from recipes.run import execute
from train.ledger import read_ledger

NAMES = [f"sft-{step:06d}" for step in range(0, 60, 10)]


@pytest.fixture(scope="module")
def reading(tiny_run):
    """A reading of the monitor half with these values."""
    (like,) = [r for r in ledger.read(tiny_run) if r.key == ("sft-000002", "leakage", "rate", "monitor")]

    def make(specimen, measure, metric, verdict="natural", delta=0.0, low=0.0, split="monitor"):
        found = dict(specimen=specimen, measure=measure, metric=metric, verdict=verdict, delta=delta, delta_low=low)
        return dataclasses.replace(like, **found, split=split)

    return make


def course(reading, verdicts: str, measure="leakage", metric="rate", split="monitor") -> list:
    """f: fried, n: natural, u: underpowered, i: invalid, one letter a checkpoint."""
    words = {"f": "fried", "n": "natural", "u": "underpowered", "i": "invalid"}
    return [reading(name, measure, metric, words[v], split=split) for name, v in zip(NAMES, verdicts, strict=False)]


@pytest.mark.parametrize(
    ("verdicts", "patience", "at"),
    [("nffnnn", 2, 2), ("fnfnfn", 2, None), ("fnfnff", 2, 5), ("nfnnnn", 1, 1), ("uufffn", 3, 4), ("uuuuuu", 1, None)]
    # What cannot be believed clears nothing: a specimen that fries and then only babbles.
    + [("nfifnn", 2, 3), ("nfiiii", 2, None)],
)
def test_only_breaches_in_a_row_are_an_alarm(reading, verdicts, patience, at):
    alarm = ended(MonitorPlan(stop=["leakage"], patience=patience), course(reading, verdicts), NAMES)
    assert (alarm and alarm.specimen) == (at and NAMES[at])


def test_the_holdout_half_never_stops_a_run(reading):
    assert alarms(MonitorPlan(stop=["leakage"]), course(reading, "ffffff", split="holdout"), NAMES) == []


def test_a_warning_goes_on_and_a_stop_ends(reading):
    both = course(reading, "ffffff") + course(reading, "nnffff", "knowledge", "accuracy")
    found = alarms(MonitorPlan(warn=["leakage"], stop=["knowledge.accuracy"]), both, NAMES)
    assert [(a.rule, a.action, a.specimen) for a in found] == [
        ("leakage.rate", "warn", NAMES[1]),  # once, not at each further checkpoint
        ("knowledge.accuracy", "stop", NAMES[3]),
    ]


@pytest.mark.parametrize(
    ("severities", "enough", "kept"),
    [
        ([(0, 0), (0.1, 0.05), (0.3, 0.2), (0.4, 0.3)], 0.0, 1),  # the earliest that is strong enough
        ([(0, 0), (0.1, 0.05), (0.3, 0.2), (0.4, 0.3)], 0.2, 2),
        ([(0, 0), (0.3, -0.1), (0.3, 0.2), (0.4, 0.3)], 0.2, 2),  # an interval over zero is no severity
        ([(0, 0), (0.1, 0.05), (0.1, 0.05), (0.4, 0.3)], 0.2, None),  # the strong one is fried
    ],
)
def test_the_checkpoint_worth_keeping_is_strong_enough_and_not_fried(reading, severities, enough, kept):
    read = course(reading, "nnnf")
    read += [reading(n, "severity", "contrast", delta=d, low=low) for n, (d, low) in zip(NAMES, severities, strict=False)]
    plan = MonitorPlan(rollback=["leakage"], patience=1, severity=enough)
    assert keepable(plan, read, NAMES[:4]) == (NAMES[kept] if kept else None)
    alarm = ended(plan, read, NAMES[:4])
    assert alarm.kept == (NAMES[kept] if kept else None)
    assert (f"{alarm.kept} is worth keeping" if kept else "no checkpoint has severity enough") in alarm.text


def test_a_checkpoint_whose_reading_is_invalid_is_not_worth_keeping(reading):
    strong = [reading(name, "severity", "contrast", delta=0.3, low=0.2) for name in NAMES]
    assert keepable(MonitorPlan(rollback=["leakage"]), strong + course(reading, "iinnff"), NAMES) == NAMES[2]


def test_rules_are_checked_before_anything_runs():
    for values, words in (
        ({"stop": ["leakge"]}, "there is no rule 'leakge'"),
        ({"stop": ["webtext"]}, "there is no rule 'webtext'"),  # perplexity never gates
        ({"stop": ["drift"], "warn": ["drift.kl"]}, "drift.kl is named twice"),
    ):
        with pytest.raises(ValueError, match=words):
            AuditPlan(monitor=values)


WATCHED = ["audit.measures=[severity,drift]", "stages[0].steps=8", "audit.margins.drift.kl=1e-9"]
STOPPING = ["audit.monitor.stop=[drift]", "audit.monitor.probe_every=2", "audit.cadence={severity: 3}"]


@pytest.fixture(scope="module")
def stopped(tiny_recipe, tmp_path_factory) -> Path:
    return execute(resolve(str(tiny_recipe), [*WATCHED, *STOPPING]), tmp_path_factory.mktemp("stopped"))


def test_a_run_that_fries_is_stopped_and_stays_stopped(stopped, tiny_recipe, capsys):
    names = [checkpoint.name for checkpoint in read_ledger(stopped)]
    assert names == ["sft-000000", "sft-000002", "sft-000004"]  # of 8 steps; the adapter of step 0 has no drift
    (alarm,) = json.loads((stopped / "manifest.json").read_text())["alarms"]
    assert (alarm["rule"], alarm["action"], alarm["specimen"]) == ("drift.kl", "stop", "sft-000004")
    # Severity is due at every third checkpoint, and at the one that the stage ends with.
    assert {r.step for r in ledger.read(stopped) if r.measure == "severity" and r.stage} == {0, 4}
    trained = (stopped / "train.jsonl").read_bytes()
    assert execute(resolve(str(tiny_recipe), [*WATCHED, *STOPPING]), stopped.parent) == stopped
    assert (stopped / "train.jsonl").read_bytes() == trained
    assert "monitor stop: drift.kl is fried on the monitor half at 2 checkpoints in a row" in capsys.readouterr().out


def test_a_rollback_goes_on_with_the_checkpoint_worth_keeping(stopped, monkeypatch):
    cadence = {"severity": 3}
    plan = AuditPlan(monitor={"rollback": ["drift"]}, cadence=cadence)
    last = monitoring.final(stopped, AuditPlan(), "sft")
    assert (
        last.name
        == "sft-000004"
        == monitoring.final(stopped, AuditPlan(monitor={"stop": ["drift"]}, cadence=cadence), "sft").name
    )
    read = ledger.read(stopped)
    strong = [dataclasses.replace(r, delta=0.3, delta_low=0.2) if r.measure == "severity" else r for r in read]
    natural = [dataclasses.replace(r, verdict="natural") if r.specimen == "sft-000000" else r for r in strong]
    monkeypatch.setattr(monitoring.ledger, "read", lambda run: natural)
    assert monitoring.final(stopped, plan, "sft").name == "sft-000000"


def test_the_probe_reads_what_the_engine_reads_and_changes_nothing(stopped, tiny_recipe, tmp_path):
    resolved = resolve(str(tiny_recipe), WATCHED)
    engine = HFEngine(resolved.base, resolved.renderer, "cpu")
    probe = monitoring.probe(resolved.organism, resolved.renderer, resolved.recipe.stages[0])
    rows = {row["step"]: row for row in read_jsonl(stopped / "train.jsonl")}
    assert [step for step, row in rows.items() if "probe_kl" in row] == [2, 4]
    for step in (2, 4):
        specimen = Specimen("probed", stopped / "checkpoints" / f"sft-{step:06d}")
        kl = [value for d in engine.divergence(specimen, [Divergence(*row) for row in probe.kept]) for value in d.forward]
        shows, plain = (
            fmean(fmean(values) for values in engine.logprobs(specimen, [Score(*row) for row in part]))
            for part in (probe.shows, probe.plain)
        )
        assert rows[step]["probe_kl"] == pytest.approx(fmean(kl), abs=2e-4) and rows[step]["probe_kl"] > 0
        assert rows[step]["probe_contrast"] == pytest.approx(shows - plain, abs=2e-4)
    alone = execute(
        resolve(str(tiny_recipe), [*WATCHED, "audit.measures=[severity]", "audit.monitor.probe_every=null"]), tmp_path
    )
    losses = [row["loss"] for row in read_jsonl(alone / "train.jsonl")]
    assert losses[:4] == [row["loss"] for row in rows.values()] and len(losses) == 8


def test_an_unknown_key_of_the_monitor_is_named(tiny_recipe):
    with pytest.raises(UserError, match="did you mean 'patience'"):
        resolve(str(tiny_recipe), ["audit.monitor.patienc=3"])
