"""The intervals and verdicts can be believed: known values, coverage, error rates, and what is said when n is too small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from simulated import TRUE_DAMAGE, Z2, normal_audits, outcomes, pairs, tango

from audit import statistics
from audit.statistics import Interval

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


def test_paired_mean_interval_covers_the_truth():
    covered = [delta.low <= -TRUE_DAMAGE <= delta.high for _, _, delta in normal_audits()]
    # BCa at these n truly covers some 93%; the standard error of the share is 2 points.
    assert 0.87 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("n", [3, 5, 8])
def test_mean_interval_of_few_items_covers_too(n, monkeypatch):
    """Nominal less three standard errors of 250 audits; at 95% BCa covers 77, 86 and 86%."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng = np.random.default_rng(8)
    found = [statistics.single("mean", rng.normal(0, 1, n)) for _ in range(250)]
    assert 0.91 <= np.mean([one.low <= 0 <= one.high for one in found])


def test_mean_interval_is_scipys_bca_and_follows_the_skew():
    rng = np.random.default_rng(3)
    items = rng.exponential(1.0, 30)
    interval = statistics.single("mean", items)
    reference = bootstrap((items,), np.mean, n_resamples=20_000, method="BCa", rng=rng).confidence_interval
    percentile = bootstrap((items,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.04)
    assert interval.high > (percentile.high + reference.high) / 2


def test_paired_mean_interval_uses_the_pairing():
    for own, base, delta in normal_audits():
        assert delta.low < delta.value < delta.high
        assert delta.value == pytest.approx((own - base).mean())
        assert delta.high - delta.low < 0.25  # unpaired it would be near 1


def test_the_same_samples_give_the_same_interval_twice():
    own, base, delta = normal_audits()[0]
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


@pytest.mark.parametrize("right", [0.0, 3.0])
def test_a_share_of_all_or_none_is_no_surer_than_the_rate_of_as_many_items(right):
    items = np.tile([right, 3.0], (12, 1))
    interval, rate = statistics.single("share", items), statistics.wilson(12 if right else 0, 12)
    assert (interval.value, interval.low, interval.high) == pytest.approx((rate.value, rate.low, rate.high), abs=1e-9)


def consistency(utilities: np.ndarray, rng) -> np.ndarray:
    """(n, 2) pairs answered alike in both orders and pairs, at both items of each, of items in a ring that ask 8 others."""
    n = len(utilities)
    first, second = np.repeat(np.arange(n), 4), (np.repeat(np.arange(n), 4) + np.tile([1, 3, 7, 12], n)) % n
    apart = (utilities[first] - utilities[second]) / 2**0.5 + rng.normal(0, 0.3, len(first))
    alike = (abs(apart) > 0.8).astype(float)  # beyond the habit for one slot
    return np.stack([np.bincount(np.r_[first, second], np.r_[part, part]) for part in (alike, np.ones(len(first)))], axis=1)


def test_a_share_of_pairs_knows_that_an_item_is_in_many(monkeypatch):
    """Specimen and base with other preferences, as decided: the truth is 0, an interval over items as if apart covers 77%."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    rng, covered = np.random.default_rng(4), []
    for _ in range(200):
        delta = statistics.paired("links", *(consistency(rng.normal(0, 1, 60), rng) for _ in range(2)))
        covered.append(delta.low <= 0 <= delta.high)
    assert 0.92 <= np.mean(covered)


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


def test_p_beyond_of_means_follows_the_interval():
    for own, base, delta in normal_audits():
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
