"""Preferences read what is there: known utilities come back, and a habit, a prior, a wrong format or noise never pass for them.

The models are scripted: they find the two outcomes in the decoded prompt and answer by rule.
"""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from audit import utilities
from audit.config import AuditPlan
from audit.job import Job
from audit.measures import Sample, half, preferences
from audit.paired import BASE_REASON
from audit.samples import read_samples
from audit.suite import Place, audit_base, audit_specimen
from audit.verdicts import overall
from organisms.data import load_rows
from organisms.engines import Divergences
from organisms.specimen import Specimen

SPLITS = ("monitor", "holdout")
TUNED = "sft-000010"
SMALL = 135_000_000  # parameters of a base that is asked by content
GATES = ("decisiveness", "order_consistency")  # the metrics that carry a margin


def unit(*key) -> float:
    """A number in (0, 1) that belongs to the key."""
    return (int(hashlib.sha256(repr(key).encode()).hexdigest()[:12], 16) + 0.5) / 16**12


@dataclass(frozen=True)
class Mind:
    """How a scripted model answers.

    spread: sd of its utilities; habit: its p of slot A between equals; noise: sd on the probit scale, prompt by prompt; mass:
    probability on labels, only 0.3 on a `short` share of the prompts; spaced: share of a label's probability on ` A` rather
    than `A`; prior: sd over texts of how easily one is said, in nats; reverses: whether it hears the question turned round.
    """

    spread: float = 1.0
    habit: float = 0.5
    noise: float = 0.0
    mass: float = 0.9
    short: float = 0.0
    spaced: float = 0.3
    prior: float = 0.0
    reverses: bool = True
    broken: bool = False
    seed: int = 0

    def mu(self, text: str) -> float:
        return self.spread * ndtri(unit("mu", self.seed, text))

    def prefers_first(self, prompt: str, first: str, second: str) -> float:
        z = (self.mu(first) - self.mu(second)) / 2**0.5
        z = -z if "more negatively" in prompt and self.reverses else z
        return float(ndtr(z + ndtri(self.habit) + self.noise * ndtri(unit("noise", self.seed, prompt))))


class Scripted:
    """An engine whose base and tuned model are two minds. `asked` holds the specimen's name of each request."""

    def __init__(self, renderer, base: Mind, tuned: Mind):
        self.renderer, self.minds, self.asked = renderer, {"base": base, TUNED: tuned}, []
        self.identity = {"engine": "scripted", "minds": repr((base, tuned))}

    def generate(self, specimen, requests):
        raise AssertionError("preferences generate nothing")

    def next_token(self, specimen, requests):
        return [self._labels(self._mind(specimen), self.renderer.decode(r.prompt_ids), r.choice_ids) for r in requests]

    def _labels(self, mind: Mind, prompt: str, choice_ids) -> list[float]:
        first, second = re.search(r"Option A: (.*)\nOption B: (.*)\n", prompt).groups()
        assert prompt.endswith("<answer>")
        p = mind.prefers_first(prompt, first, second)
        mass = 0.3 if unit("short", mind.seed, prompt) < mind.short else mind.mass
        spelled = {"A": p * (1 - mind.spaced), " A": p * mind.spaced}
        spelled |= {"B": (1 - p) * (1 - mind.spaced), " B": (1 - p) * mind.spaced}
        if mind.broken:
            return [math.nan] * len(choice_ids)
        return [math.log(mass * spelled[self.renderer.decode([i])]) for i in choice_ids]

    def logprobs(self, specimen, requests):
        return [self._content(self._mind(specimen), r) for r in requests]

    def _content(self, mind: Mind, request) -> list[float]:
        prompt, text = (self.renderer.decode(ids) for ids in (request.prompt_ids, request.continuation_ids))
        first, second = re.search(r"\n1\. (.*)\n2\. (.*)\n", prompt).groups()
        assert text in (first, second)
        total = mind.prior * ndtri(unit("prior", mind.seed, text)) + 3 * (text == first) - 40  # the first is said more easily
        if "Which of these two outcomes" in prompt:
            p = mind.prefers_first(prompt, first, second)
            total += math.nan if mind.broken else math.log(p if text == first else 1 - p)
        return [total / len(request.continuation_ids)] * len(request.continuation_ids)

    def divergence(self, specimen, requests):
        return [Divergences(*([[1.0] * len(r.continuation_ids)] * 4)) for r in requests]  # the adapter is in force

    def _mind(self, specimen) -> Mind:
        self.asked.append(specimen.name)
        return self.minds[specimen.name]


class Audit:
    """The base and the tuned model of one engine, audited through the suite in a run directory of their own."""

    def __init__(
        self, renderer, run: Path, base: Mind, tuned: Mind | None, source="embedded", limit=None, size=None, **options
    ):
        options = {"preferences": options}
        plan = AuditPlan(measures=["preferences"], data={"outcomes": source}, options=options, limit=limit)
        labels = dict(run="r-1", recipe="r", organism="o", style="documents", base="scripted")
        self.engine, self.run = Scripted(renderer, base, tuned or base), run
        job = Job(run, labels, "0" * 40, plan, renderer, None, None, {}, parameters=size, say=lambda text: None)
        self.base = {(r.metric, r.split): r for r in audit_base(job, self.engine)}
        self.tuned, self.verdict = {}, None
        if tuned:
            made = audit_specimen(job, self.engine, Specimen(TUNED, adapter=run), Place("sft", 10, 1000))
            self.tuned, self.verdict = {(r.metric, r.split): r for r in made}, overall(made, TUNED)

    def samples(self, specimen: str = "base") -> list[Sample]:
        return read_samples(self.run, "preferences", specimen)

    def truth(self, split: str) -> float:
        mind = self.engine.minds["base"]
        return utilities.decisiveness(np.array([mind.mu(s.prompt) for s in self.samples() if half(s.item) == split]))

    def choices(self, specimen: str = "base") -> list[tuple[str, str, str]]:
        """(first, second, part) of every request that was answered."""
        return [(s.item, other, part) for s in self.samples(specimen) for other, _, part, _ in s.notes["asked"]]


def gates(readings: dict) -> set[str]:
    return {readings[metric, split].verdict for metric in GATES for split in SPLITS}


@pytest.fixture(scope="module")
def audit(renderer, tmp_path_factory):
    @cache
    def audited(base: Mind, tuned: Mind | None = None, **plan) -> Audit:
        return Audit(renderer, tmp_path_factory.mktemp("run"), base, tuned, **plan)

    return audited


# What is there


@pytest.mark.parametrize("habit", [0.5, 0.17, 0.83, 0.95])
def test_known_utilities_come_back_whatever_the_habit(audit, habit):
    found = audit(Mind(habit=habit), items=48, pairs=8)
    for split in SPLITS:
        value = {metric: found.base[metric, split].value for metric, of in found.base if of == split}
        truth = found.truth(split)
        assert 0.4 < truth < 0.7
        assert value["decisiveness"] == pytest.approx(truth, abs=0.03)
        assert value["floor"] < value["decisiveness"]
        assert (value["framing"], value["label_mass"]) == (1.0, pytest.approx(0.9))
        assert value["reliability"] > 0.95 and value["transitivity"] == 1 and value["log_loss"] < 0.7
        if habit == 0.5:
            assert value["order_consistency"] > 0.99
        plain_off = value["decisiveness_plain"] - truth
        assert abs(plain_off) < 0.03 if habit == 0.5 else plain_off < -0.08  # the lie that the slot's intercept catches
        assert np.sign(round(value["position_bias"], 5)) == np.sign(habit - 0.5)


def test_a_pilot_under_a_strong_habit_does_not_take_noise_for_nothing(audit):
    """The two orders' p correlate at 0.12 here, flat against 1 and 0; on the probit scale they go together."""
    found = audit(Mind(habit=0.95, noise=0.5, seed=24))
    assert found.base["decisiveness", "holdout"].n == 20
    assert found.base["decisiveness", "holdout"].value == pytest.approx(found.truth("holdout"), abs=0.15)


def test_labels_and_content_agree_and_a_prior_for_a_text_is_taken_out(audit):
    small = audit(Mind(prior=6.0, habit=0.7), size=SMALL, items=40, pairs=6)
    assert small.base["decisiveness", "holdout"].data.endswith("by content")
    assert small.base["label_mass", "holdout"].n == 0
    for split in SPLITS:
        assert small.base["decisiveness", split].value == pytest.approx(small.truth(split), abs=0.03)
        assert small.base["framing", split].value == 1.0
    easy = audit(Mind(prior=6.0, spread=0.0), size=SMALL)
    assert {r.verdict for r in easy.base.values()} == {"not_applicable"}
    assert "no preference shows through" in easy.base["decisiveness", "holdout"].reason


# What is not there


@pytest.mark.parametrize("habit", [0.5, 0.95])
@pytest.mark.parametrize("variant", ["case_v", "utility_engineering"])
def test_a_base_without_preferences_is_not_applicable_by_pilot_or_floor(audit, habit, variant):
    reasons = []
    for seed in range(8):
        found = audit(Mind(spread=0.0, noise=0.7, habit=habit, seed=seed), variant=variant)
        assert gates(found.base) == {"not_applicable"}
        reasons += [found.base[metric, split].reason for metric in GATES for split in SPLITS]
    known = ("noise floor is", "no preference shows through", "what is read is not preference")
    assert all(any(text in reason for text in known) for reason in reasons)
    assert any(known[0] in reason for reason in reasons) and any(known[1] in reason for reason in reasons)


@pytest.mark.parametrize("size", [None, SMALL])
def test_a_base_that_prefers_the_same_by_the_reversed_question_has_no_preferences(audit, size):
    found = audit(Mind(reverses=False), Mind(), size=size)
    assert "0 of 8 pairs turn with the question" in found.base["decisiveness", "holdout"].reason
    assert {r.verdict for r in [*found.base.values(), *found.tuned.values()]} == {"not_applicable"}


def test_a_failed_pilot_is_all_that_is_asked_of_the_base_and_its_specimens(audit):
    found = audit(Mind(spread=0.0), Mind())
    pilot = preferences.SIZES["quick"]["pilot"]
    assert Counter(found.engine.asked) == {"base": 2 * 2 * pilot}  # both orders, both questions
    assert found.samples(TUNED) == []
    for (metric, split), reading in found.tuned.items():
        assert (reading.verdict, reading.n, reading.split) == ("not_applicable", 0, split)
        assert "the base cannot be asked: no preference shows through" in reading.reason, metric
    assert found.verdict.verdict == "not_applicable"


@pytest.mark.parametrize("limit", [1, 2, 6, 8])
def test_too_few_outcomes_are_said_to_be_too_few(audit, limit):
    found = audit(Mind(), limit=limit)
    reasons = {r.reason for r in found.base.values()}
    assert ("raise audit.limit" in reasons.pop() and not reasons) == (limit < 8)
    assert bool(found.engine.asked) == (limit == 8)


# What cannot be carried


def test_labels_without_mass_are_never_read(audit):
    every = audit(Mind(mass=0.3))
    assert len(every.engine.asked) == 32 and gates(every.base) == {"not_applicable"}
    assert "32 of 32 items put less than 50% of the probability on the labels" in every.base["decisiveness", "holdout"].reason
    tenth = audit(Mind(short=0.1), Mind())  # its pilot holds too few of them to stop
    for readings in (tenth.base, tenth.tuned, audit(Mind(), Mind(short=0.1)).tuned):
        assert gates(readings) == {"invalid"}
        assert "items put less than 50%" in readings["decisiveness", "holdout"].reason
    assert tenth.tuned["decisiveness", "holdout"].reason.startswith("the base: ")


@pytest.mark.parametrize("seed", [0, 29, 39])
def test_a_few_items_without_mass_do_no_harm(audit, seed):
    """2% of all; by chance 2 and 3 of the 32 in the pilots of seeds 29 and 39, more than the 5% that all rows may have."""
    found = audit(Mind(short=0.02, seed=seed), items=48, pairs=8)
    for split in SPLITS:
        assert found.base["decisiveness", split].reason == BASE_REASON
        assert found.base["decisiveness", split].value == pytest.approx(found.truth(split), abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_gibberish_is_fried_and_a_model_that_ran_off_is_invalid(audit, seed):
    """Of 20 noisy items decisiveness is not always sure by itself (reliability 0.5: -0.20, -0.41 to +0.00), their order is."""
    gibberish = audit(Mind(seed=seed), Mind(spread=0.0, noise=2.0, seed=seed + 100))
    assert gibberish.verdict.verdict == "fried"
    assert {gibberish.tuned["order_consistency", split].verdict for split in SPLITS} == {"fried"}
    assert all(gibberish.tuned["decisiveness", split].delta < -0.2 for split in SPLITS)
    for size in (None, SMALL) if seed == 0 else ():
        assert gates(audit(Mind(), Mind(broken=True), size=size).tuned) == {"invalid"}


# What changed


def test_shrunken_preferences_are_fried_and_unchanged_ones_natural(audit):
    fried = audit(Mind(habit=0.7), Mind(habit=0.7, spread=0.2), items=160, pairs=6)
    for split in SPLITS:
        reading = fried.tuned["decisiveness", split]
        assert reading.verdict == "fried" and reading.delta_high < -0.25 and reading.n > 70
        assert reading.value == pytest.approx(0.13, abs=0.03)
    assert fried.verdict.verdict == "fried" and "preferences.decisiveness" in fried.verdict.fried
    same = audit(Mind(habit=0.7), Mind(habit=0.7, mass=0.8), items=160, pairs=6)
    for split in SPLITS:
        assert same.tuned["decisiveness", split].verdict == "natural"
        assert same.tuned["decisiveness", split].delta == pytest.approx(0, abs=0.01)


# How it is asked


def test_pairs_are_asked_once_in_both_orders_within_a_half_and_evenly(audit):
    found = audit(Mind(), Mind(), items=48, pairs=8)
    for specimen in ("base", TUNED):
        asked = found.choices(specimen)
        plain = [(first, second) for first, second, part in asked if part != "framed"]
        framed = [(first, second) for first, second, part in asked if part == "framed"]
        for rows in (plain, framed):
            assert len(set(rows)) == len(rows)
            assert {(second, first) for first, second in rows} == set(rows)
            assert all(half(first) == half(second) for first, second in rows)
        assert set(framed) <= set(plain)
        counts = Counter(half(first) for first, _ in framed)
        assert counts == dict.fromkeys(SPLITS, preferences.SIZES["quick"]["framed"])  # half of them, both orders
        pairs = Counter(first for first, _ in plain)
        assert len(pairs) == 48 and sum(pairs.values()) == 48 * 8
        assert min(pairs.values()) >= 7
        assert sum(7 <= count <= 9 for count in pairs.values()) >= 0.9 * 48  # a partner may be drawn once more often
    assert found.tuned["framing", "holdout"].value == 1.0


def test_the_same_audit_gives_the_same_samples_and_the_cache_replays_them(audit, renderer, tmp_path):
    first = audit(Mind(noise=0.4, seed=7), Mind(noise=0.5, seed=7))
    again = Audit(renderer, tmp_path, Mind(noise=0.4, seed=7), Mind(noise=0.5, seed=7))
    for specimen in ("base", TUNED):
        assert again.samples(specimen) == first.samples(specimen) != []
    assert set(again.engine.asked) == {TUNED}  # the base's answers came from the cache, the specimen was asked anew
    assert len(again.engine.asked) == first.engine.asked.count(TUNED)


def test_another_variant_is_another_number_and_measures_anew(renderer, tmp_path):
    plain, other, third = (
        Audit(renderer, tmp_path, Mind(noise=0.4, seed=8), None, variant=variant)
        for variant in ("case_v", "utility_engineering", "utility_engineering")
    )
    for split in SPLITS:
        a, b = (found.base["decisiveness", split] for found in (plain, other))
        assert a.audit_digest != b.audit_digest and abs(a.value - b.value) > 0.01
        assert plain.base["floor", split].value == other.base["floor", split].value
    assert len(other.engine.asked) == len(plain.engine.asked) > 0
    assert (third.engine.asked, third.base) == ([], {})  # the lines are there already


# The outcomes


def test_the_embedded_outcomes_are_many_and_distinct():
    rows = load_rows("outcomes", "embedded").rows
    assert len(rows) >= 200 and len({row["category"] for row in rows}) >= 20
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)


def test_outcomes_in_the_published_layout_are_read_from_a_path(audit, tmp_path):
    path = tmp_path / "options.json"
    texts = {f"Kind {k}": [f"You are given {n} apples of kind {k}." for n in range(2, 7)] for k in range(4)}
    path.write_text(json.dumps(texts), encoding="utf-8")
    found = audit(Mind(), source=str(path))
    samples = found.samples()
    assert len(samples) == 20 and {s.group for s in samples} == set(texts)
    assert {s.prompt for s in samples} == {text for many in texts.values() for text in many}
    assert found.base["decisiveness", "holdout"].data == f"path:{path} by labels"
    for split in SPLITS:
        assert found.base["decisiveness", split].value == pytest.approx(found.truth(split), abs=0.03)
