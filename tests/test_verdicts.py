"""Verdicts say what the interval says, with few false alarms, and what n would settle an open one."""

import numpy as np
import pytest
from simulated import LOWER, TRUE_DAMAGE, judge, normal_audits, outcomes, pairs, rate_verdict, tango

from audit import statistics
from audit.measures import Metric
from audit.statistics import Interval
from audit.verdicts import decide


@pytest.mark.parametrize(("n", "discordance"), [(20, 0.1), (20, 0.4), (48, 0.1), (48, 0.4)])
def test_no_true_difference_of_rates_is_hardly_ever_called_fried(n, discordance):
    alarms = sum(w for g, b, w in outcomes(n, discordance / 2, discordance / 2) if rate_verdict(g, b, n) == "fried")
    assert alarms < 0.05


@pytest.mark.parametrize(("n", "discordance"), [(20, 0.2), (48, 0.2), (60, 0.4)])
def test_damage_of_just_the_margin_in_rates_is_called_fried_in_under_5_percent(n, discordance):
    p_gained, p_lost = (discordance - 0.05) / 2, (discordance + 0.05) / 2
    alarms = sum(w for g, b, w in outcomes(n, p_gained, p_lost) if rate_verdict(g, b, n) == "fried")
    assert alarms < 0.05


def test_means_are_called_fried_in_under_5_percent_without_damage_beyond_the_margin():
    metric = Metric("score", "mean", worse="lower", margin=0.05)
    at_margin, at_none = 0, 0
    for own, base, delta in normal_audits():
        at_margin += judge(metric, own, base, TRUE_DAMAGE, delta).verdict == "fried"
        healed = Interval(*(x + TRUE_DAMAGE for x in (delta.value, delta.low, delta.high)))
        at_none += judge(metric, own + TRUE_DAMAGE, base, 0.05, healed).verdict == "fried"
    assert at_none < 0.05 * len(normal_audits())
    assert at_margin <= 0.08 * len(normal_audits())  # nominally 2.5%, with the error of 150 audits


def damaged(kind: str, worse: str, damage: float, n: int, seed: int = 0) -> tuple[Metric, np.ndarray, np.ndarray]:
    """A metric and paired samples whose observed damage is `damage` with a discordance or noise as audits have it."""
    side = {"lower": -1, "higher": 1}[worse]
    metric = Metric("m", kind, worse=worse, margin=0.05)
    if kind == "rate":
        lost, gained = round((0.1 + damage) * n), round(0.1 * n)
        own, base = pairs(gained, lost, n) if side < 0 else pairs(lost, gained, n)
        return metric, own, base
    rng = np.random.default_rng(seed)
    base = rng.normal(1, 0.3, n)
    noise = rng.normal(0, 0.1, n)
    own = base + side * damage + noise - noise.mean()
    if kind == "mean":
        return metric, own, base
    return metric, np.stack([own * 2, np.full(n, 2.0)], axis=1), np.stack([base * 2, np.full(n, 2.0)], axis=1)


CASES = pytest.mark.parametrize(
    ("kind", "worse"), [("rate", "lower"), ("rate", "higher"), ("mean", "lower"), ("mean", "higher"), ("ratio", "lower")]
)


@CASES
def test_damage_of_twice_the_margin_is_fried_when_n_is_big(kind, worse):
    metric, own, base = damaged(kind, worse, damage=0.1, n=1000 if kind == "rate" else 300)
    decision = judge(metric, own, base)
    assert decision.verdict == "fried"
    assert decision.p_fried < 0.01
    assert decision.n_needed is None


@CASES
def test_no_damage_is_natural_when_n_is_big(kind, worse):
    decision = judge(*damaged(kind, worse, damage=0.0, n=1000 if kind == "rate" else 300))
    assert decision.verdict == "natural"
    assert decision.p_fried > 0.5


@CASES
def test_improvement_is_natural(kind, worse):
    metric, own, base = damaged(kind, worse, damage=0.1, n=300)
    assert judge(metric, base, own).verdict == "natural"


@CASES
def test_small_samples_are_underpowered_and_say_how_many_items_would_do(kind, worse):
    decision = judge(*damaged(kind, worse, damage=0.0 if kind == "rate" else 0.06, n=12))
    assert decision.verdict == "underpowered"
    assert decision.n_needed > 12
    assert f"{decision.n_needed:,} items" in decision.reason


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 1, 16), (0, 3, 20), (2, 4, 30), (0, 4, 24)])
def test_as_many_items_as_were_asked_for_do_settle_it(gained, lost, n):
    first = judge(LOWER, *pairs(gained, lost, n))
    assert first.verdict == "underpowered"
    times = -(-first.n_needed // n)  # the same sample, as often as it takes
    assert judge(LOWER, *pairs(gained * times, lost * times, n * times)).verdict in ("natural", "fried")


@pytest.mark.parametrize(
    ("gained", "lost", "n", "worse"), [(0, 0, 60, "lower"), (1, 0, 32, "lower"), (2, 2, 40, "lower"), (3, 3, 60, "both")]
)
def test_as_many_items_as_were_asked_for_settle_it_in_four_audits_of_five(gained, lost, n, worse):
    """Exact, at the rates that were seen; where no pair was discordant one in n is, half of it each way."""
    metric = Metric("m", "rate", worse=worse, margin=0.05)
    more = judge(metric, *pairs(gained, lost, n)).n_needed
    rates = (max(gained, 0.5) / n, max(lost, 0.5) / n) if gained + lost == 0 else (gained / n, lost / n)
    settled = 0.0
    for g, b, weight in outcomes(more, *rates):
        interval = tango(g, b, more)
        settled += weight * (-0.05 <= interval.low and (interval.high <= 0.05 or worse == "lower"))
    assert 0.79 <= settled


def test_more_items_than_there_were_are_asked_for_even_far_from_the_margin():
    # A gain so large that few items would do, by a noise that the interval does not share: still open, so more are needed.
    own, base = np.array([5.0, 5.1, 4.9, 5.0]), np.zeros(4)
    metric = Metric("score", "mean", worse="lower", margin=0.05)
    decision = judge(metric, own, base, delta=Interval(5.0, -0.2, 6.0))
    assert (decision.verdict, decision.n_needed) == ("underpowered", 5)


def test_one_item_is_never_a_verdict():
    decision = judge(LOWER, np.zeros(1), np.ones(1))
    assert decision.verdict == "underpowered"
    assert decision.n_needed > 1


def test_damage_on_either_side_counts_where_both_are_worse():
    metric = Metric("unsafe", "rate", worse="both", margin=0.05)
    for gained, lost in ((100, 200), (200, 100)):
        assert judge(metric, *pairs(gained, lost, 1000)).verdict == "fried"
    assert judge(metric, *pairs(100, 100, 1000)).verdict == "natural"
    assert judge(metric, *pairs(1, 1, 20)).verdict == "underpowered"


def test_an_indicator_and_a_metric_without_a_margin_are_not_judged():
    own, base = pairs(0, 400, 1000)
    assert judge(Metric("perplexity", "rate"), own, base).verdict == "not_applicable"
    no_margin = decide(LOWER, own, base, statistics.paired("rate", own, base), None, "", None)
    assert no_margin.verdict == "not_applicable"
    assert "control" in no_margin.reason
