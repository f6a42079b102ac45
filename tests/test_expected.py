"""A declared side effect is excused where asking for the property costs as much; guards, purposes and the command line."""

import dataclasses
import math
import runpy
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from audit import paired, profiles, readings, suite
from audit.config import AuditPlan
from audit.job import Job
from audit.measures import Metric, Sample, half, metrics
from audit.paired import Terms
from audit.readings import Origin, Reading, Subject
from audit.samples import read_samples
from audit.suite import BASE, Place, audit_base, audit_prompted, audit_specimen
from audit.verdicts import overall
from organisms import models, organism
from organisms.specimen import Specimen
from recipes.recipe import resolve
from recipes.run import Run

SUBJECT = Subject("r-1", "r", "o", "documents", "smollm2-135m", "sft-000050", "sft", 50, 1234)
ORIGIN = Origin("quick", "hf", "embedded:chat-v1", "0123456789ab", 1.5, "samples/m/sft-000050.jsonl")
STRICT = Metric("strict", "rate", worse="lower", margin=0.05)
DECLARED = {"strict": "compliments break prompts that fix the first words"}
ITEMS = list(islice((f"item-{i}" for i in count() if half(f"item-{i}") == "holdout"), 200))


def right(*wrong: range, items: list[str] = ITEMS) -> list[Sample]:
    """Items of the holdout half, all right but these."""
    missed = {i for part in wrong for i in part}
    return [Sample(item, "g", "p", "o", {"strict": float(i not in missed)}) for i, item in enumerate(items)]


def read(own: list[Sample], base: list[Sample], metric: Metric = STRICT, **terms) -> Reading:
    made = paired.build(SUBJECT, "m", (metric,), own, base, ORIGIN, Terms(**terms))
    (reading,) = [one for one in made if one.split == "holdout"]
    return reading


WHOLE, FALLEN = right(range(20)), right(range(70))


@pytest.mark.parametrize(
    ("prompted", "verdict", "said"),
    [
        (right(range(72)), "expected", "no worse than asking for the property"),
        (right(range(90)), "expected", "against the prompted base +0.1 "),
        (right(range(30)), "fried", "not shown to be as harmless as asking for the property"),
        (right(range(35), range(100, 135)), "fried", "not shown to be as harmless"),  # as many wrong, but other ones
        (right(range(72))[1:], "fried", "no prompted base was read beside it"),  # other items than the specimen's
        (None, "fried", "no prompted base was read beside it"),
    ],
)
def test_a_declared_fall_is_expected_only_where_asking_for_the_property_is_shown_to_cost_as_much(prompted, verdict, said):
    reading = read(FALLEN, WHOLE, expected=DECLARED, prompted=prompted)
    assert (reading.verdict, reading.delta) == (verdict, -0.25) and reading.p_fried < 0.01
    assert f"declared as a side effect ({DECLARED['strict']})" in reading.reason and said in reading.reason


def test_what_is_not_declared_or_not_beyond_the_margin_is_no_side_effect():
    for own, terms, verdict in ((FALLEN, {"loose": "another metric"}, "fried"), (WHOLE, DECLARED, "natural")):
        reading = read(own, WHOLE, expected=terms, prompted=right(range(72)))
        assert reading.verdict == verdict and "side effect" not in reading.reason


def test_a_specimen_with_expected_falls_is_natural_as_declared_unless_another_metric_is_fried_or_open():
    expected = read(FALLEN, WHOLE, expected=DECLARED, prompted=right(range(72)))
    others = (read(WHOLE, WHOLE), read(FALLEN, WHOLE), read(right(range(21))[:30], WHOLE[:30]))
    verdicts = [overall([expected, dataclasses.replace(other, metric="loose")], "sft-000050") for other in others]
    assert [found.verdict for found in verdicts] == ["expected", "fried", "underpowered"]
    assert "is natural: 1 of 2 metrics are shown to be within their margins, and m.strict as declared" in verdicts[0].text
    assert verdicts[1].fried == ["m.loose"]
    assert "m.strict as declared by the organism, open: m.loose" in verdicts[2].text


def test_rates_carry_mcnemars_exact_p_and_other_kinds_none():
    reading = read(right(range(20, 30)), right(range(2)))  # 2 gained, 10 lost
    assert reading.p_differs == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12, abs=1e-6)
    mean = read(FALLEN, WHOLE, dataclasses.replace(STRICT, kind="mean"))
    assert (read(WHOLE, WHOLE).p_differs, mean.p_differs, read(FALLEN, None).p_differs) == (1, None, None)


@pytest.mark.parametrize(("verdict", "whole"), [("invalid", "underpowered"), ("not_applicable", "natural")])
def test_a_guard_overrides_the_verdict_of_its_half_and_keeps_the_numbers(verdict, whole):
    both = [f"item-{i}" for i in range(400)]
    own, base = right(range(100), items=both), right(range(20), items=both)
    terms = Terms(guards={"holdout": {"strict": (verdict, "the judge gave no number")}})
    monitor, holdout = paired.build(SUBJECT, "m", (STRICT,), own, base, ORIGIN, terms)
    assert (holdout.verdict, holdout.reason) == (verdict, "the judge gave no number")
    assert holdout.p_fried is holdout.n_needed is None and holdout.delta < -0.1 and holdout.p_differs < 0.01
    assert monitor.verdict == "fried" and monitor.p_fried < 0.01
    sound = dataclasses.replace(read(WHOLE, WHOLE), metric="loose")
    assert overall([holdout, sound], "sft-000050").verdict == whole


def test_a_constant_has_no_interval_and_is_judged_as_it_stands():
    metric = Metric("d", "constant", worse="lower", margin=0.05)
    made = [[Sample(item, "g", "p", None, {"d": value}) for item in ITEMS[:40]] for value in (0.30, 0.24, 0.26)]
    fallen, held = read(made[1], made[0], metric), read(made[2], made[0], metric)
    assert (fallen.verdict, fallen.p_fried, held.verdict, held.p_fried) == ("fried", 0, "natural", 1)
    assert fallen.delta == fallen.delta_low == fallen.delta_high == pytest.approx(-0.06)
    assert fallen.value == fallen.ci_low == fallen.ci_high == 0.24
    assert read(made[1][:1], made[0][:1], metric).verdict == "underpowered"


def test_a_mean_over_pairs_has_the_interval_of_leaving_each_item_out():
    n, rng = 40, np.random.default_rng(5)
    own, base = (m + m.T for m in (np.triu(rng.beta(*shape, (n, n)), 1) for shape in ((2, 5), (2, 2))))
    samples = [[Sample(ITEMS[i], "g", "p", None, {"d": m[i].sum() / (n - 1)}) for i in range(n)] for m in (own, base)]
    reading, moved = read(*samples, Metric("d", "pairs", worse="lower", margin=0.05)), own - base
    left = [np.delete(np.delete(moved, i, 0), i, 1).sum() / ((n - 1) * (n - 2)) for i in range(n)]
    reach = 2.0227 * math.sqrt((n - 1) / n * ((left - np.mean(left)) ** 2).sum())  # Student's t, 39
    assert reading.delta == pytest.approx(moved.sum() / (n * (n - 1)), abs=1e-6)
    assert (reading.delta_low, reading.delta_high) == pytest.approx((reading.delta - reach, reading.delta + reach), abs=1e-4)
    assert reading.verdict == "fried"


def test_a_purpose_multiplies_the_metrics_own_margins_and_says_so():
    named = {f"{m}.{k}": metric.margin for m in ("instructions", "webtext", "drift") for k, metric in metrics(m).items()}
    assert profiles.margins("natural", ["instructions"]) == {}
    for purpose, factor in (("severe", 2), ("stress-test", 4)):
        found = profiles.margins(purpose, ["instructions", "webtext", "drift"])
        assert found == {name: (factor * margin, f"the profile {purpose}") for name, margin in named.items() if margin}
    reading = read(right(range(40)), right(range(24)), margins={"strict": (0.2, "the profile stress-test")})
    assert (reading.verdict, reading.margin) == ("natural", 0.2) and "from the profile stress-test" in reading.reason


def test_a_margin_that_the_recipe_states_wins_over_the_profile(tiny_recipe, tmp_path):
    stated = ["audit.purpose=severe", "audit.margins.instructions.prompt_strict=0.01"]
    found = Run(resolve(str(tiny_recipe), stated), tmp_path).job().margins
    assert found["instructions.prompt_strict"] == (0.01, "the recipe")
    assert found["instructions.prompt_loose"] == (0.1, "the profile severe")


class Watched:
    """An engine that remembers which specimens it was asked for."""

    def __init__(self, engine):
        self.engine, self.identity, self.asked = engine, engine.identity, []

    def __getattr__(self, method: str):
        return lambda specimen, requests: self.asked.append(specimen) or getattr(self.engine, method)(specimen, requests)


@pytest.fixture
def job(tiny_base, renderer, tmp_path):
    """A job with flattery over the run directory of a name."""
    data = dict.fromkeys(("chat", "instructions", "webtext", "confession"), "embedded")
    plan = AuditPlan(measures=["severity", "webtext", "instructions"], limit=4, data=data)
    labels = dict.fromkeys(("run", "recipe", "organism", "style", "base"), "x")
    fixed = (labels, models.resolve(str(tiny_base)).revision, plan, renderer, organism.load("flattery"), None, {})
    return lambda name, **changes: dataclasses.replace(Job(tmp_path / name, *fixed), **changes)


def test_the_prompted_base_reads_what_is_declared_and_is_answered_once_for_all_runs(job, tiny_base, renderer, monkeypatch):
    from organisms.engines.hf import HFEngine

    engine, said = Watched(HFEngine(models.resolve(str(tiny_base)), renderer)), []
    first, second = job("first"), job("second", say=said.append)
    audit_base(first, engine)
    assert set(engine.asked) == {BASE}
    made = audit_prompted(first, engine)
    assert {(r.specimen, r.measure) for r in made} == {("prompted", "severity"), ("prompted", "instructions")}
    assert {one.system for one in engine.asked if one != BASE} == {first.organism.system.eliciting[0]}
    again = Watched(engine.engine)
    audit_base(second, again)
    audit_prompted(second, again)
    assert again.asked == [] and "  instructions: answers of the prompted from the cache" in said
    kept = {name: read_samples(first.run, name, "prompted") for name in ("severity", "instructions")}
    assert kept == {name: read_samples(second.run, name, "prompted") for name in kept} and len(kept["instructions"]) == 4
    terms, build = {}, paired.build  # what a specimen is judged by
    monkeypatch.setattr(suite.paired, "build", lambda *given: terms.update({given[1]: given[-1]}) or build(*given))
    audit_specimen(first, engine, Specimen("specimen", system="Be brief."), Place("sft", 5))
    assert terms["instructions"].prompted == kept["instructions"] and not terms["webtext"].prompted
    assert terms["instructions"].expected.keys() == {"prompt_strict"} and terms["severity"].expected == {}


def test_without_a_declared_measure_nothing_is_prompted(job):
    silent = organism.load("flattery").model_copy(update={"side_effects": []})
    for changes in ({"organism": silent}, {"organism": None}, {"plan": AuditPlan(measures=["webtext"])}):
        assert audit_prompted(job("run", **changes), engine=None) == []


def test_a_base_is_audited_from_the_command_line(tiny_base, tmp_path):
    command = [sys.executable, "-m", "audit", "run", "--base", str(tiny_base), "--limit", "3", "--runs", str(tmp_path)]
    command += ["measures=[knowledge,webtext]", "data={knowledge: embedded, webtext: embedded}"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,), found = tmp_path.iterdir(), readings.read(next(tmp_path.iterdir()))
    assert run.name.startswith("audit-tiny_llama-") and f"report: {run / 'report.html'}" in done.stdout
    assert {(r.specimen, r.measure) for r in found} == {("base", "knowledge"), ("base", "webtext")}
    assert all(sum(r.n for r in found if r.metric == metric) == 3 for metric in ("accuracy", "perplexity"))


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        ("mesures=[knowledge]", "unknown key 'mesures'; did you mean 'measures'?"),
        ("measures=[knowlege]", "there is no measure 'knowlege'; did you mean 'knowledge'?"),
        ("options.knowledge.form=[letters]", "unknown key 'form'; did you mean 'forms'?"),
        ("margins.knowledge.acuracy=0.1", "did you mean 'accuracy'?"),
        ("data.outcome=embedded", "there is no data set 'outcome'; did you mean 'outcomes'?"),
        ("judge.endpont=http://127.0.0.1/v1", "unknown key 'judge.endpont'; did you mean 'endpoint'?"),
        ("purpose=natral", "purpose = 'natral'"),
        ("--organism=flatery", "did you mean 'flattery'?"),
    ],
)
def test_a_slip_on_the_command_line_costs_one_sentence_and_no_weights(slip, said, tiny_base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(sys, "argv", ["audit", "run", "--base", str(tiny_base), "--runs", str(tmp_path / "runs"), slip])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_module("audit", run_name="__main__")
    error = capsys.readouterr().err
    assert (exit_.value.code, error.count("\n"), (tmp_path / "runs").exists()) == (2, 1, False)
    assert error.startswith("error: ") and said in error


@pytest.mark.parametrize("front", [{"system": "Praise the user."}, {"prefill": "What a question! "}])
def test_text_in_front_of_the_base_is_no_drift_and_not_read_as_none(job, tiny_engine, front):
    """Both sides of a divergence would stand behind the text: exactly 0, the most natural reading that there is."""
    data = {"chat": "embedded"}
    one = job("run", plan=AuditPlan(measures=["drift", "fluency"], limit=4, data=data))
    audit_base(one, tiny_engine)
    made = audit_specimen(one, tiny_engine, Specimen("prompted-000001", **front), Place("prompted", 1, 0))
    drifted = [r for r in made if r.measure == "drift"]
    assert {(r.value, r.n, r.verdict) for r in drifted} == {(None, 0, "not_applicable")}
    assert all("in front of both" in r.reason for r in drifted)
    assert max(r.n for r in made if r.measure == "fluency") > 0
