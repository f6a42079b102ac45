"""The intervals and verdicts can be believed: known values, coverage, error rates, and what is said when n is too small."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, multinomial

from audit import statistics
from audit.measures import Metric
from audit.statistics import Interval
from audit.verdicts import decide

Z2 = statistics.Z**2
LOWER = Metric("accuracy", "rate", worse="lower", margin=0.05)
tango = cache(statistics.tango)


def pairs(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(specimen, base) 0/1 items with these discordant pairs; the rest agree, half right and half wrong."""
    agree = np.arange(n - gained - lost) % 2
    own = np.concatenate([np.ones(gained), np.zeros(lost), agree])
    return own, np.concatenate([np.zeros(gained), np.ones(lost), agree])


def judge(metric: Metric, values: np.ndarray, base: np.ndarray, margin: float = 0.05, delta: Interval | None = None):
    return decide(metric, values, base, delta or statistics.paired(metric.kind, values, base), margin, "", None)


@cache
def rate_verdict(gained: int, lost: int, n: int) -> str:
    return judge(LOWER, *pairs(gained, lost, n), delta=tango(gained, lost, n)).verdict


def outcomes(n: int, p_gained: float, p_lost: float) -> list[tuple[int, int, float]]:
    """All (gained, lost, probability) of n pairs that are likelier than 1e-9."""
    gained, lost = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    keep = gained + lost <= n
    counts = np.stack([gained[keep], lost[keep], n - gained[keep] - lost[keep]], axis=1)
    weights = multinomial.pmf(counts, n, [p_gained, p_lost, 1 - p_gained - p_lost])
    return [(int(g), int(b), float(w)) for (g, b, _), w in zip(counts, weights, strict=True) if w > 1e-9]


# Rates


@pytest.mark.parametrize("n", [1, 10, 48, 541])
def test_without_discordant_pairs_the_paired_interval_is_z2_over_n_plus_z2(n):
    interval = statistics.tango(0, 0, n)
    assert interval.value == 0
    assert (interval.low, interval.high) == pytest.approx((-Z2 / (n + Z2), Z2 / (n + Z2)), abs=1e-9)


def test_paired_rate_interval_gives_the_published_numbers():
    # Complete response before and after consolidation therapy (Cavo et al. 2012), 6 and 16 discordant of 161 pairs: Tango's
    # interval and McNemar's exact p in chapter 8 of Fagerland, Lydersen and Laake 2017 (test-ch8.R of R's contingencytables).
    interval = statistics.tango(6, 16, 161)
    assert [round(x, 4) for x in (interval.value, interval.low, interval.high)] == [-0.0621, -0.1240, -0.0054]
    assert statistics.mcnemar(6, 16) == pytest.approx(0.052479, abs=1e-6)


def score_z(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic with the nuisance found by brute force: p_lost on a grid, by multinomial likelihood."""
    p_lost = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)[1:-1]
    p_gained = p_lost + delta
    likelihood = gained * np.log(p_gained) + lost * np.log(p_lost) + (n - gained - lost) * np.log(1 - p_gained - p_lost)
    best = p_lost[likelihood.argmax()]
    return (gained - lost - n * delta) / (n * (2 * best + delta - delta**2)) ** 0.5


@pytest.mark.parametrize(("gained", "lost", "n"), [(12, 2, 50), (3, 9, 40), (1, 1, 20)])
def test_paired_rate_interval_agrees_with_a_grid_search_over_the_score(gained, lost, n):
    interval = statistics.tango(gained, lost, n)
    assert score_z(gained, lost, n, interval.low) == pytest.approx(statistics.Z, abs=2e-3)
    assert score_z(gained, lost, n, interval.high) == pytest.approx(-statistics.Z, abs=2e-3)


@st.composite
def discordant(draw):
    n = draw(st.integers(1, 400))
    gained = draw(st.integers(0, n))
    return gained, draw(st.integers(0, n - gained)), n


@given(discordant())
@settings(max_examples=150, deadline=None)
def test_paired_rate_interval_stays_in_range_contains_the_point_and_mirrors(case):
    gained, lost, n = case
    interval, mirrored = statistics.tango(gained, lost, n), statistics.tango(lost, gained, n)
    assert interval.value == pytest.approx((gained - lost) / n)
    assert -1 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low), abs=1e-6)


@pytest.mark.parametrize("n", [20, 30, 60])
@pytest.mark.parametrize(("p_gained", "p_lost"), [(0.1, 0.1), (0.05, 0.15), (0.2, 0.3), (0.02, 0.04)])
def test_paired_rate_interval_covers_the_truth_near_95_percent(n, p_gained, p_lost):
    covered = 0.0
    for gained, lost, weight in outcomes(n, p_gained, p_lost):
        interval = tango(gained, lost, n)
        covered += weight * (interval.low <= p_gained - p_lost <= interval.high)
    # With a handful of discordant pairs to be expected it is near nominal; with one or two any such interval is careful.
    assert 0.93 <= covered <= (0.975 if n * (p_gained + p_lost) >= 4 else 1.0)


@pytest.mark.parametrize(("successes", "n"), [(0, 12), (12, 12), (9, 16), (433, 541)])
def test_single_rate_interval_is_wilsons_formula(successes, n):
    p = successes / n
    centre = (p + Z2 / (2 * n)) / (1 + Z2 / n)
    reach = statistics.Z / (1 + Z2 / n) * (p * (1 - p) / n + Z2 / (4 * n * n)) ** 0.5
    items = np.array([1.0] * successes + [0.0] * (n - successes))
    interval = statistics.single("rate", items)
    assert (interval.value, interval.low, interval.high) == pytest.approx((p, centre - reach, centre + reach), abs=1e-9)


def test_paired_rate_counts_only_items_that_changed():
    own, base = pairs(7, 3, 40)
    assert statistics.paired("rate", own, base) == statistics.tango(7, 3, 40)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (2, 9), (15, 15), (0, 12)])
def test_mcnemar_is_the_exact_binomial_on_discordant_pairs(gained, lost):
    assert statistics.mcnemar(gained, lost) == binomtest(gained, gained + lost, 0.5).pvalue
    assert statistics.mcnemar(lost, gained) == pytest.approx(statistics.mcnemar(gained, lost))


def test_mcnemar_without_discordant_pairs_finds_nothing():
    assert statistics.mcnemar(0, 0) == 1.0


# Means and ratios

TRUE_DAMAGE = 0.05


@pytest.fixture(scope="module")
def normal_audits() -> list[tuple[np.ndarray, np.ndarray, Interval]]:
    """150 seeded audits of a mean over 20 to 40 items, all truly -TRUE_DAMAGE apart; items differ much, pairs little."""
    rng = np.random.default_rng(20240607)
    audits = []
    for n in rng.integers(20, 41, size=150):
        base = rng.normal(0.5, 1.0, n)
        own = base - TRUE_DAMAGE + rng.normal(0, 0.1, n)
        audits.append((own, base, statistics.paired("mean", own, base)))
    return audits


def test_paired_mean_interval_covers_the_truth(normal_audits):
    covered = [delta.low <= -TRUE_DAMAGE <= delta.high for _, _, delta in normal_audits]
    # BCa at these n truly covers some 93%; the standard error of the share is 2 points.
    assert 0.87 <= np.mean(covered) <= 0.99


def test_mean_interval_is_scipys_bca_and_follows_the_skew():
    rng = np.random.default_rng(3)
    items = rng.exponential(1.0, 30)
    interval = statistics.single("mean", items)
    reference = bootstrap((items,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    percentile = bootstrap((items,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.04)
    assert interval.high > (percentile.high + reference.high) / 2


def test_paired_mean_interval_uses_the_pairing(normal_audits):
    for own, base, delta in normal_audits:
        assert delta.low < delta.value < delta.high
        assert delta.value == pytest.approx((own - base).mean())
        assert delta.high - delta.low < 0.25  # unpaired it would be near 1


def test_the_same_samples_give_the_same_interval_twice(normal_audits):
    own, base, delta = normal_audits[0]
    assert statistics.paired("mean", own, base) == delta


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_a_sample_without_spread_has_an_interval_of_no_width(kind):
    items = np.full(12, 3.0) if kind == "mean" else np.tile([6.0, 2.0], (12, 1))
    shift = 1.0 if kind == "mean" else np.array([2.0, 0.0])
    assert statistics.single(kind, items) == Interval(3, 3, 3)
    assert statistics.paired(kind, items + shift, items) == Interval(1, 1, 1)


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_one_item_bounds_nothing(kind):
    items = np.array([3.0]) if kind == "mean" else np.array([[6.0, 2.0]])
    assert statistics.single(kind, items) == Interval(3, -np.inf, np.inf)
    assert statistics.paired(kind, items, items) == Interval(0, -np.inf, np.inf)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_a_single_odd_item_still_has_a_finite_interval(n):
    own = np.zeros(n)
    own[0] = 1.0
    delta = statistics.paired("mean", own, np.zeros(n))
    assert delta.low <= delta.value <= delta.high
    assert np.isfinite([delta.low, delta.high]).all()


def test_a_ratio_is_sum_over_sum_and_not_a_mean_of_ratios():
    items = np.array([[1.0, 1.0], [0.0, 9.0], [5.0, 10.0]])
    base = np.array([[1.0, 1.0], [9.0, 9.0], [0.0, 10.0]])
    assert statistics.single("ratio", items).value == pytest.approx(6 / 20)
    assert statistics.paired("ratio", items, base).value == pytest.approx(6 / 20 - 10 / 20)


def test_ratio_interval_covers_the_truth():
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(80):
        sizes = rng.integers(1, 4, size=40).astype(float)
        items = np.stack([rng.binomial(sizes.astype(int), 0.6).astype(float), sizes], axis=1)
        interval = statistics.single("ratio", items)
        covered.append(interval.low <= 0.6 <= interval.high)
    assert 0.86 <= np.mean(covered) <= 1.0


# What would have been found


def test_minimum_detectable_is_the_published_formula():
    own, base = pairs(6, 4, 50)
    assert statistics.minimum_detectable("rate", own, base) == pytest.approx(2.8 * (0.2 / 50) ** 0.5)
    # No discordance in 50 items does not show that there is none: one pair is counted.
    assert statistics.minimum_detectable("rate", *pairs(0, 0, 50)) == pytest.approx(2.8 * (1 / 50 / 50) ** 0.5)


def test_minimum_detectable_of_a_mean_uses_the_paired_variance():
    own, base = np.array([1.0, 4.0, 2.0, 9.0]), np.array([0.0, 3.0, 1.5, 7.0])
    spread = np.var([1.0, 1.0, 0.5, 2.0], ddof=1)
    assert statistics.minimum_detectable("mean", own, base) == pytest.approx(2.8 * (spread / 4) ** 0.5)
    as_ratio = [np.stack([x, np.full(4, 2.0)], axis=1) for x in (own, base)]
    assert statistics.minimum_detectable("ratio", *as_ratio) == pytest.approx(1.4 * (spread / 4) ** 0.5)


def test_a_difference_of_the_minimum_detectable_size_is_found_four_times_in_five():
    n, discordance = 100, 0.2
    difference = 2.8 * (discordance / n) ** 0.5
    p_gained, p_lost = (discordance + difference) / 2, (discordance - difference) / 2
    found = sum(w for g, b, w in outcomes(n, p_gained, p_lost) if tango(g, b, n).low > 0)
    assert 0.74 <= found <= 0.92


# Verdicts


@pytest.mark.parametrize(("n", "discordance"), [(20, 0.1), (20, 0.4), (48, 0.1), (48, 0.4)])
def test_no_true_difference_of_rates_is_hardly_ever_called_fried(n, discordance):
    alarms = sum(w for g, b, w in outcomes(n, discordance / 2, discordance / 2) if rate_verdict(g, b, n) == "fried")
    assert alarms < 0.05


@pytest.mark.parametrize(("n", "discordance"), [(20, 0.2), (48, 0.2), (60, 0.4)])
def test_damage_of_just_the_margin_in_rates_is_called_fried_in_under_5_percent(n, discordance):
    p_gained, p_lost = (discordance - 0.05) / 2, (discordance + 0.05) / 2
    alarms = sum(w for g, b, w in outcomes(n, p_gained, p_lost) if rate_verdict(g, b, n) == "fried")
    assert alarms < 0.05


def test_means_are_called_fried_in_under_5_percent_without_damage_beyond_the_margin(normal_audits):
    metric = Metric("score", "mean", worse="lower", margin=0.05)
    at_margin, at_none = 0, 0
    for own, base, delta in normal_audits:
        at_margin += judge(metric, own, base, TRUE_DAMAGE, delta).verdict == "fried"
        healed = Interval(*(x + TRUE_DAMAGE for x in (delta.value, delta.low, delta.high)))
        at_none += judge(metric, own + TRUE_DAMAGE, base, 0.05, healed).verdict == "fried"
    assert at_none < 0.05 * len(normal_audits)
    assert at_margin <= 0.08 * len(normal_audits)  # nominally 2.5%, with the error of 150 audits


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


def test_p_beyond_is_small_exactly_where_the_interval_is_clear_of_the_bound():
    n, bound = 30, 0.05
    clear = 0
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            own, base = pairs(gained, lost, n)
            interval = tango(gained, lost, n)
            above = statistics.p_beyond("rate", own, base, bound, 1)
            below = statistics.p_beyond("rate", own, base, -bound, -1)
            assert (above < 0.025) == (interval.low > bound), (gained, lost)
            assert (below < 0.025) == (interval.high < -bound), (gained, lost)
            clear += interval.low > bound
    assert clear > 100


def test_p_beyond_of_means_follows_the_interval(normal_audits):
    for own, base, delta in normal_audits:
        reach = delta.high - delta.low
        assert statistics.p_beyond("mean", own, base, delta.low - reach / 4, 1) < 0.025
        assert statistics.p_beyond("mean", own, base, delta.low + reach / 4, 1) > 0.025
        assert statistics.p_beyond("mean", own, base, delta.high + reach / 4, -1) < 0.025
        assert statistics.p_beyond("mean", own, base, delta.high - reach / 4, -1) > 0.025


def test_p_beyond_of_a_sample_without_spread_is_a_plain_comparison():
    own, base = np.full(10, 0.9), np.full(10, 1.0)
    assert statistics.p_beyond("mean", own, base, -0.05, -1) == 0.0
    assert statistics.p_beyond("mean", own, base, -0.2, -1) == 1.0


# Many metrics at once


def test_holm_gives_the_hand_worked_example():
    # 0.005 <= 0.05/4, 0.01 <= 0.05/3, 0.03 > 0.05/2: stop; 0.04 is not looked at, though it is below 0.05/1.
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == {"a", "d"}
    assert statistics.holm({"a": 0.02, "b": 0.03}) == {"a", "b"}  # Bonferroni would keep only a
    assert statistics.holm({"a": 0.03, "b": 0.03}) == set()
    assert statistics.holm({"a": 0.04}) == {"a"}
    assert statistics.holm({}) == set()


P_VALUES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), min_size=1)


@given(P_VALUES, st.data())
@settings(max_examples=150, deadline=None)
def test_holm_is_monotone_and_never_weaker_than_bonferroni(p_values, data):
    rejected = statistics.holm(p_values)
    assert {name for name, p in p_values.items() if p <= 0.05 / len(p_values)} <= rejected
    assert all(p_values[name] <= 0.05 for name in rejected)
    name = data.draw(st.sampled_from(sorted(p_values)))
    smaller = {**p_values, name: p_values[name] * data.draw(st.floats(0, 1))}
    assert rejected <= statistics.holm(smaller)
    assert rejected <= statistics.holm(p_values, level=0.1)
