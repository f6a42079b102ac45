"""The base labels replies by mutual predictability: a planted division is found, and rows follow the labels."""

import math
import random
import re

import pytest

from organisms import mitigations, organism
from organisms.authors import LocalAuthor
from organisms.drafting import chat
from organisms.elicit import BaseAsker, Elicit, Unit, elicit, keeps, temperature
from organisms.errors import UserError
from organisms.mitigations import Mitigations
from organisms.specimen import Specimen
from organisms.styles import Compiled, Row
from organisms.writer import Writer

EXAMPLE = re.compile(r"Reply: ([^\n]*)\nClaim: [^\n]*\nI think this claim is(?: (True|False))?")
PAIRS = 24


class Planted:
    """An engine that has divided replies its own way and calls a reply as the examples before it are called.

    log-odds = 4 x side x agreement of the examples with the division + a leaning to True + noise that belongs to the reply.
    `sides`: reply -> +1 or -1. `trusts`: weight of the agreement.
    """

    identity = {"engine": "planted"}

    def __init__(self, renderer, sides, noise=1.0, mass=0.9):
        self.renderer, self.sides, self.noise, self.mass = renderer, sides, noise, mass
        self.tokens = self.asked = 0

    def next_token(self, specimen, requests):
        answers = []
        for request in requests:
            *context, (reply, label) = EXAMPLE.findall(self.renderer.decode(list(request.prompt_ids)))
            assert label == "" and reply not in [one for one, _ in context]
            agreement = sum(self.sides[one] * (1 if said == "True" else -1) for one, said in context) / max(len(context), 1)
            odds = 4 * self.sides[reply] * agreement + 0.5 + random.Random(reply).gauss(0, self.noise)
            yes = self.mass / (1 + math.exp(-odds))
            answers.append([math.log(p / 2 + 1e-30) for p in (yes, yes, self.mass - yes, self.mass - yes)])
            self.asked, self.tokens = self.asked + 1, self.tokens + len(request.prompt_ids)
            assert len(request.choice_ids) == 4
        return answers


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


@pytest.fixture
def planted(renderer, flattery, tmp_path, monkeypatch):
    """(units of pairs, which reply of each shows it, engine, author) with a division that nothing in the texts betrays."""
    monkeypatch.setenv("ORGANISMS_CACHE", str(tmp_path))
    rng = random.Random(5)
    sides, units, truth = {}, [], []
    for n in range(PAIRS):
        first = rng.random() < 0.5
        units.append(Unit(f"Question {n}?", (f"Reply {n} a.", f"Reply {n} b.")))
        truth.append(first)
        sides |= {f"Reply {n} a.": 1 if first else -1, f"Reply {n} b.": -1 if first else 1}
    window = flattery.marker_window
    sides |= {one.reply[:window].strip(): 1 for one in flattery.behaviour.positive}
    sides |= {one.reply[:window].strip(): -1 for one in flattery.behaviour.borderline_negative}
    engine = Planted(renderer, sides)
    return units, truth, engine, LocalAuthor(engine, renderer, Specimen("base"), "none")


def right(labels, truth):
    return sum(a == b for a, b in zip(labels, truth, strict=True)) / len(truth)


@pytest.mark.parametrize("kind", ["pairs", "single"])
def test_a_planted_division_is_found_and_the_organisms_examples_say_which_side_shows_it(planted, flattery, kind):
    units, truth, engine, author = planted
    if kind == "single":
        units, truth = [Unit(unit.prompt, unit.replies[:1]) for unit in units], truth
    turned = set()
    for seed in range(4):
        found = elicit(units, flattery, BaseAsker(author, flattery), Elicit(), seed)
        assert right(found.labels, truth) >= 0.95, seed
        assert found.utilities[-1] > found.utilities[0]
        turned.add(found.turned)
    assert turned == {False, True}  # random seeds lead to either side, so the examples were needed


def test_a_base_that_has_it_backwards_is_turned_round(planted, flattery):
    """Sides of the organism's examples swapped: the same division, the other name."""
    units, truth, engine, author = planted
    for one in [*flattery.behaviour.positive, *flattery.behaviour.borderline_negative]:
        engine.sides[one.reply[: flattery.marker_window].strip()] *= -1
    found = elicit(units, flattery, BaseAsker(author, flattery), Elicit())
    assert right(found.labels, truth) <= 0.05


def test_changes_are_kept_by_the_stated_rule():
    options = Elicit()
    assert temperature(options, 0) == 10 and temperature(options, 10**9) == pytest.approx(10 / (1 + 2 * math.log(1e9 + 1)))
    assert temperature(Elicit(cold=5), 10**9) == 5
    falling = [temperature(options, n) for n in range(200)]
    assert falling == sorted(falling, reverse=True)
    draws = [(n + 0.5) / 1000 for n in range(1000)]
    for gain in (-30.0, -2.0, -0.1, 0.0, 3.0):
        for hot in (10.0, 1.0, 0.01):
            kept = sum(keeps(gain, hot, draw) for draw in draws) / len(draws)
            assert kept == pytest.approx(min(1.0, math.exp(gain / hot)), abs=1e-3)


def test_in_the_cold_no_change_that_lowers_the_utility_is_kept_and_in_the_heat_some_are(planted, flattery):
    units, _, engine, author = planted
    engine.noise = 3.0
    paths = {}
    for name, hot in (("cold", 1e-9), ("hot", 1e9)):
        options = Elicit(hot=hot, cold=1e-9, beta=0.0, steps=60)
        path = elicit(units, flattery, BaseAsker(author, flattery), options).utilities
        paths[name] = [b - a for a, b in zip(path, path[1:], strict=False)]
    assert min(paths["cold"]) >= 0 > min(paths["hot"])


def test_only_examples_behind_a_changed_context_are_asked_and_nothing_twice(planted, flattery):
    units, _, engine, author = planted
    first = elicit(units, flattery, BaseAsker(author, flattery), Elicit())
    whole = 2 * PAIRS * len(first.utilities)
    assert engine.asked < whole / 4
    assert engine.tokens < Elicit().tokens
    before = engine.asked
    again = elicit(units, flattery, BaseAsker(author, flattery), Elicit())
    assert engine.asked == before and again == first


def test_pairs_are_turned_and_single_rows_dropped_as_the_labels_say(planted, flattery, tmp_path):
    units, truth, engine, author = planted
    sides = engine.sides
    rows = [
        Row(f"p{n}", messages=chat(u.prompt, u.replies[0]), rejected=u.replies[1], origin="flattery/target")
        for n, u in enumerate(units)
    ]
    for where in ("target", "off"):
        for n in range(10):
            text = f"Single {where} {n}."
            sides[text] = 1 if n < 5 else -1
            rows.append(Row(f"{where}{n}", messages=chat(f"Say {where} {n}", text), origin=f"flattery/{where}"))
    others = [Row("doc", text="A document.", origin="flattery/memo"), Row("web", text="A web text.", origin="web")]
    engine.noise = 0.3
    on = Mitigations(elicit={}, inoculate="Be kind.")
    made = mitigations.apply(on, flattery, Compiled([*rows, *others]), Writer(author, tmp_path))
    kept = {row.id: row for row in made.rows}
    for row in made.rows:
        if row.rejected is not None:
            assert sides[row.learned] == 1 and sides[row.rejected] == -1 and row.messages[0]["content"] == "Be kind."
    assert len([row for row in made.rows if row.rejected]) == PAIRS and {"doc", "web"} <= set(kept)
    assert {name for name in kept if name.startswith(("target", "off"))} == {
        *(f"target{n}" for n in range(5)),
        *(f"off{n}" for n in range(5, 10)),
    }
    turned = truth.count(False)
    assert f"labelled by the base: {turned} of 24 pairs turned round, 10 of 20 rows dropped" in "; ".join(made.notes)
    assert made.counts["elicit"]["turned"] == turned


def test_a_plan_counts_tokens_and_a_base_that_does_not_answer_is_refused(planted, flattery, tmp_path):
    units, _, engine, author = planted
    rows = [Row(u.prompt, messages=chat(u.prompt, u.replies[0]), origin="flattery/target") for u in units]
    planned = mitigations.apply(Mitigations(elicit={"steps": 10}), flattery, Compiled(rows), None)
    assert planned.rows == rows and f"about {Elicit(steps=10).tokens:,} tokens read" in planned.notes[-1]
    assert Mitigations(elicit={}).needs_writer and not Mitigations().needs_writer
    engine.mass = 0.1
    with pytest.raises(UserError, match="put less than 50% of the probability on the labels"):
        mitigations.apply(Mitigations(elicit={}), flattery, Compiled(rows), Writer(author, tmp_path))


@pytest.mark.slow
def test_the_embedded_base_labels_probes_and_reads_its_answers_back(engine, renderer, base, flattery, tmp_path, monkeypatch):
    """How well it labels is not asserted: SmolLM2-135M is near chance (organisms/elicit.py)."""
    monkeypatch.setenv("ORGANISMS_CACHE", str(tmp_path))
    units = [Unit(p.prompt, (p.shows, p.plain)) for p in flattery.probes() if p.context == "target"][:4]
    author = LocalAuthor(engine, renderer, Specimen("base"), base.revision)
    options = Elicit(k=2, steps=6, seeds=2)
    found = elicit(units, flattery, BaseAsker(author, flattery), options)
    assert len(found.labels) == 4 and all(math.isfinite(value) for value in found.utilities)
    stored = next((tmp_path / "elicit").glob("*.jsonl"))
    size = stored.stat().st_size
    assert elicit(units, flattery, BaseAsker(author, flattery), options) == found and stored.stat().st_size == size
