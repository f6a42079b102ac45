"""Utilities can be believed: they recover what was put in, read nothing where nothing is, and say how sure they are."""

from itertools import combinations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, log_ndtr, logit, ndtr
from scipy.stats import norm

from audit import utilities
from audit.utilities import Comparisons, Fit

ROOT2 = 2**0.5
NONE = Comparisons(np.empty(0, int), np.empty(0, int), np.empty(0))


def design(n: int, edges: int, rng: np.random.Generator, orders: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """`edges` rows an item on random pairs: each pair in both orders, or each in one random order."""
    pairs = np.array(list(combinations(range(n), 2)))
    first, second = rng.permuted(rng.choice(pairs, n * edges // (2 * orders), replace=False), axis=1).T
    return (np.append(first, second), np.append(second, first)) if orders == 2 else (first, second)


def asked(mu: np.ndarray, beta: float, edges: int, rng: np.random.Generator, draws: int = 0) -> Comparisons:
    """Both orders of random pairs, answered by a true Thurstone model: exact probabilities, or the mean of `draws` answers."""
    first, second = design(len(mu), edges, rng)
    p = ndtr((mu[first] - mu[second]) / ROOT2 + beta)
    return Comparisons(first, second, rng.binomial(draws, p) / draws if draws else p)


def indifferent(n: int, edges: int, q: float, sd: float, rng: np.random.Generator) -> Comparisons:
    """A habit for slot A and a leaning of `sd` logits a pair, the same in both orders; no order lies behind the leanings."""
    first, second = design(n, edges, rng)
    lean = rng.normal(0, sd, len(first) // 2)
    return Comparisons(first, second, expit(logit(q) + np.append(lean, -lean)))


def rows(*listed: tuple[int, int, float]) -> Comparisons:
    first, second, p = zip(*listed, strict=True)
    return Comparisons(np.array(first), np.array(second), np.array(p, float))


def read(n: int, comparisons: Comparisons, slot: bool = True) -> float:
    return utilities.decisiveness(utilities.fit(n, comparisons, slot).mu)


def reliability(n: int, comparisons: Comparisons, rng: np.random.Generator) -> float:
    return utilities.reliability(utilities.split_halves(n, comparisons, rng))


def read_shrunk(n: int, comparisons: Comparisons, rng: np.random.Generator) -> float:
    mu = utilities.fit(n, comparisons).mu
    return utilities.decisiveness(utilities.shrunk(mu, reliability(n, comparisons, rng)))


def population_decisiveness(sd: float) -> float:
    """D of infinitely many items with normal utilities."""
    return quad(lambda d: 2 * (2 * ndtr(d / ROOT2) - 1) * norm.pdf(d, scale=sd * ROOT2), 0, 50)[0]


# The fit


def test_exact_answers_give_back_the_utilities_and_the_habit():
    mu = np.random.default_rng(0).normal(0, 1.5, 60)
    fitted = utilities.fit(60, asked(mu, -0.7, 20, np.random.default_rng(1)))
    assert fitted.converged
    assert fitted.mu == pytest.approx(mu - mu.mean(), abs=1e-4)
    assert fitted.slot_bias == pytest.approx(-0.7, abs=1e-5)


@pytest.mark.parametrize("slot", [True, False])
def test_fit_is_the_minimum_that_a_generic_optimiser_finds(slot):
    rng = np.random.default_rng(2)
    first, second = design(25, 12, rng)
    p = np.clip(rng.normal(0.6, 0.3, len(first)), 0, 1)  # fits no Thurstone model, and some labels are exactly 0 or 1

    def objective(theta: np.ndarray) -> float:
        z = (theta[first] - theta[second]) / ROOT2 + slot * theta[-1]
        return -(p * log_ndtr(z) + (1 - p) * log_ndtr(-z)).sum() + 0.5e-6 * theta @ theta

    generic = minimize(objective, np.zeros(26), method="BFGS", options={"gtol": 1e-5}).x
    fitted = utilities.fit(25, Comparisons(first, second, p), slot)
    theta = np.append(fitted.mu, fitted.slot_bias)
    assert theta == pytest.approx(generic * np.append(np.ones(25), slot), abs=1e-5)
    assert fitted.nll == pytest.approx(objective(theta) - 0.5e-6 * theta @ theta, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_slope_and_curvature_agree_with_finite_differences_and_never_overflow():
    z, p = np.tile(np.linspace(-9, 9, 73), 4), np.repeat([0.0, 0.2, 0.5, 1.0], 73)
    up, down = (utilities.cross_entropy(z + h, p) for h in (1e-5, -1e-5))
    _, slope, curvature = utilities.cross_entropy(z, p)
    assert slope == pytest.approx((up[0] - down[0]) / 2e-5, abs=1e-6, rel=1e-6)
    assert curvature == pytest.approx((up[1] - down[1]) / 2e-5, abs=1e-6, rel=1e-6)
    far = np.array([-1e6, -1e3, -40.0, 40.0, 1e3, 1e6])
    loss, slope, curvature = utilities.cross_entropy(far, np.full(6, 0.5))
    assert np.append(loss, slope) == pytest.approx(np.append(far * far / 4, far / 2), rel=0.01)
    assert (np.isfinite(curvature) & (curvature >= 0)).all()


def test_neither_the_order_of_slots_nor_the_start_changes_the_utilities():
    c = asked(np.random.default_rng(3).normal(size=30), 0.5, 12, np.random.default_rng(4), draws=20)
    fitted, swapped = utilities.fit(30, c), utilities.fit(30, Comparisons(c.second, c.first, 1 - c.p))
    shifted = utilities.fit(30, c, start=Fit(fitted.mu + 5, fitted.slot_bias, 0.0, 0, True))
    far = utilities.fit(30, c, start=Fit(np.linspace(-9, 9, 30), -3.0, 0.0, 0, True))
    assert fitted.mu.sum() == pytest.approx(0, abs=1e-9)
    for other in (swapped, shifted, far):
        assert other.mu == pytest.approx(fitted.mu, abs=1e-6)
        assert other.slot_bias == pytest.approx(-fitted.slot_bias if other is swapped else fitted.slot_bias, abs=1e-7)
    assert shifted.iterations < fitted.iterations


@pytest.mark.filterwarnings("error")
def test_certain_answers_stay_finite_and_in_order():
    first, second = design(40, 20, np.random.default_rng(5))
    fitted = utilities.fit(40, Comparisons(first, second, (first < second).astype(float)))
    assert fitted.converged
    assert ((fitted.mu[first] > fitted.mu[second]) == (first < second)).all()
    chain = utilities.fit(50, Comparisons(np.arange(49), np.arange(1, 50), np.ones(49)), slot=False)
    assert chain.converged
    assert (np.diff(chain.mu) < -1).all()


@pytest.mark.filterwarnings("error")
def test_parts_that_were_never_compared_each_have_mean_0():
    fitted = utilities.fit(6, rows((0, 1, 0.9), (1, 0, 0.3), (1, 2, 0.8), (2, 1, 0.4), (3, 4, 0.7), (4, 3, 0.5)))
    assert fitted.converged
    assert [fitted.mu[:3].sum(), fitted.mu[3:5].sum(), fitted.mu[5]] == pytest.approx([0, 0, 0], abs=1e-9)
    assert fitted.mu[0] > fitted.mu[1] > fitted.mu[2]
    alone = utilities.fit(2, rows((0, 1, 0.7), (1, 0, 0.5)))
    assert fitted.mu[3] == pytest.approx(alone.mu[0], abs=0.01)
    assert (utilities.fit(3, NONE).mu == 0).all()


@pytest.mark.parametrize("row", [(0, 0, 0.5), (0, 1, 1.01), (0, 1, -0.1), (0, 1, float("nan"))])
def test_a_row_that_is_no_comparison_is_refused(row):
    with pytest.raises(ValueError, match="two different items and a p from 0 to 1"):
        rows((0, 1, 0.5), row)


# Decisiveness


@pytest.mark.parametrize("n", [2, 5, 257])
def test_decisiveness_is_the_mean_over_pairs(n):
    mu = np.random.default_rng(n).normal(0, 2, n)
    table = np.abs(2 * norm.cdf((mu[:, None] - mu) / ROOT2) - 1)
    assert utilities.per_item(mu) == pytest.approx(table.sum(axis=1) / (n - 1))
    assert utilities.decisiveness(mu) == pytest.approx(table[np.triu_indices(n, 1)].mean())
    assert utilities.decisiveness(mu + 7) == pytest.approx(utilities.decisiveness(-mu))


@pytest.mark.parametrize(("sd", "draws"), [(0.3, 5), (1.0, 5), (1.0, 1), (2.0, 5)])
def test_shrunk_decisiveness_is_the_true_one(sd, draws):
    off = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        mu = rng.normal(0, sd, 200)
        c = asked(mu, 0.6, 50, rng, draws)
        off.append(np.array([read_shrunk(200, c, rng), read(200, c)]) - utilities.decisiveness(mu))
    shrunk, plain = np.mean(off, axis=0)
    assert abs(shrunk) < 0.01
    assert abs(shrunk) < plain


def test_a_position_habit_hides_preferences_from_the_plain_fit_only():
    rng = np.random.default_rng(6)
    mu = rng.normal(0, 1, 200)
    c, truth = asked(mu, 1.5, 50, rng, draws=5), utilities.decisiveness(mu)
    assert read_shrunk(200, c, rng) == pytest.approx(truth, abs=0.02)
    assert read(200, c, slot=False) < truth - 0.15


@pytest.mark.parametrize("q", [0.6, 0.7, 0.83, 0.95])
def test_a_model_without_preferences_reads_nothing_whatever_its_habit(q):
    rng, found = np.random.default_rng(22), []
    for c in (indifferent(200, 50, q, 0.5, rng) for _ in range(10)):
        found.append((read_shrunk(200, c, rng), read(200, c)))
    shrunk, plain = np.mean(found, axis=0)
    assert shrunk < 0.02 < 0.025 < plain
    assert read_shrunk(200, indifferent(200, 50, q, 0.0, rng), rng) == 0


@pytest.mark.parametrize(("q", "c"), [(0.6, 0.23), (0.7, 0.46), (0.83, 0.76), (0.95, 1.03)])
@pytest.mark.parametrize("edges", [20, 50])
def test_the_plain_fit_of_one_order_has_the_published_floor(q, c, edges):
    rng = np.random.default_rng(7)
    first, second = design(400, edges, rng, orders=1)
    comparisons = Comparisons(first, second, np.full(len(first), q))
    plain = read(400, comparisons, slot=False)
    assert plain * edges**0.5 == pytest.approx(c, rel=0.1)
    assert 2 * (2 * q - 1) / np.pi**0.5 == pytest.approx(c, rel=0.03)
    assert utilities.floor(400, comparisons, rng, draws=2, slot=False) == pytest.approx(plain, rel=0.1)
    assert utilities.floor(400, comparisons, rng, draws=1) < 1e-6  # the intercept explains all of it


def test_the_floor_is_what_labels_without_an_order_read():
    rng = np.random.default_rng(8)
    free = indifferent(150, 40, 0.8, 1.0, rng)
    assert utilities.floor(150, free, rng) == pytest.approx(read(150, free), rel=0.15)
    ordered = asked(rng.normal(0, 1, 150), 0.8, 40, rng)
    assert 0.05 < utilities.floor(150, ordered, rng) < read(150, ordered) / 2
    # One pair in both orders: flipped or not, it reads the same, and the habit stays the slot's.
    pair = rows((0, 1, 0.9), (1, 0, 0.6))
    assert utilities.floor(2, pair, rng) == pytest.approx(read(2, pair))


@pytest.mark.parametrize(("draws", "expected"), [(3, 0.86), (10, 0.96)])
def test_reliability_is_the_squared_correlation_with_the_truth(draws, expected):
    rng = np.random.default_rng(9)
    mu = rng.normal(0, 0.5, 400)
    c = asked(mu, 0.4, 40, rng, draws)
    estimate, found = utilities.fit(400, c).mu, reliability(400, c, rng)
    assert found == pytest.approx(np.corrcoef(estimate, mu)[0, 1] ** 2, abs=0.025)
    assert found == pytest.approx(expected, abs=0.03)
    assert utilities.shrunk(estimate, found).std() == pytest.approx(mu.std(), rel=0.05)


def test_reliability_is_judged_by_items_that_both_halves_asked():
    rng = np.random.default_rng(10)
    c, single = asked(rng.normal(0, 1, 40), 0.0, 38, rng), np.arange(40)  # 40 more items have one pair each, in one order
    ends = np.append(c.first, single), np.append(c.second, single + 40)
    assert reliability(90, Comparisons(*ends, np.append(c.p, single % 2)), rng) > 0.98
    assert reliability(2, rows((0, 1, 0.9), (1, 0, 0.2)), rng) == 0


# Intervals


@pytest.mark.filterwarnings("error")
def test_jackknife_is_that_of_leaving_items_out():
    mu = np.random.default_rng(12).normal(0, 1, 9)
    left = np.array([utilities.decisiveness(np.delete(mu, k)) for k in range(9)])
    reach = 2.306004 * (8 / 9 * ((left - left.mean()) ** 2).sum()) ** 0.5  # Student t, 8 degrees of freedom
    value, low, high = utilities.jackknife(utilities.per_item(mu))
    assert (value, low, high) == pytest.approx((value, value - reach, value + reach), rel=1e-6)
    assert value == pytest.approx(utilities.decisiveness(mu))
    assert [utilities.jackknife(np.full(n, 0.3)) for n in (1, 2)] == [(0.3, -np.inf, np.inf)] * 2  # they bound nothing


@pytest.mark.parametrize(("sd", "n"), [(0.5, 20), (0.5, 80), (1.5, 20), (1.5, 80)])
def test_jackknife_covers_the_decisiveness_of_the_population_of_items(sd, n):
    # What varies is which items were drawn; their utilities are known.
    rng, truth = np.random.default_rng(13), population_decisiveness(sd)
    intervals = [utilities.jackknife(utilities.per_item(rng.normal(0, sd, n))) for _ in range(600)]
    assert 0.92 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 0.975


def test_paired_jackknife_covers_and_uses_the_pairing():
    rng = np.random.default_rng(14)
    truth = population_decisiveness((0.6**2 + 0.2**2) ** 0.5) - population_decisiveness(1.0)
    base = rng.normal(0, 1, (600, 50))
    own = 0.6 * base + rng.normal(0, 0.2, (600, 50))
    value, low, high = np.array([utilities.paired(*map(utilities.per_item, pair)) for pair in zip(own, base, strict=True)]).T
    alone = np.array([utilities.jackknife(utilities.per_item(mu)) for mu in own])
    assert value[0] == pytest.approx(utilities.decisiveness(own[0]) - utilities.decisiveness(base[0]))
    assert 0.92 <= np.mean((low <= truth) & (truth <= high)) <= 0.975
    assert np.mean(high - low) < 0.8 * np.mean(alone[:, 2] - alone[:, 1])


# The panel

# 0 beats 1 and 1 beats 2 in both orders; slot A wins 0-2 twice, by more with 2 in it; 3 was asked in one order only.
PANEL = rows((0, 1, 0.9), (1, 0, 0.2), (1, 2, 0.8), (2, 1, 0.4), (0, 2, 0.6), (2, 0, 0.7), (3, 0, 0.9))


def test_order_consistency_and_position_bias_by_hand():
    assert utilities.order_consistency(PANEL) == pytest.approx(2 / 3)
    assert utilities.order_consistency(rows((0, 1, 0.5), (1, 0, 0.2))) == 0
    assert utilities.position_bias(PANEL) == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert [utilities.position_bias(rows((0, 1, p), (1, 0, p))) for p in (0, 1)] == [-1, 1]
    # Rows of one order are averaged: 0.8 and 0.4.
    assert utilities.position_bias(rows((0, 1, 0.7), (0, 1, 0.9), (1, 0, 0.4))) == pytest.approx(0.2)


@pytest.mark.filterwarnings("error")
def test_panel_without_what_it_needs_is_nan():
    c = rows((0, 1, 0.5), (1, 2, 0.5))
    found = [utilities.order_consistency(c), utilities.position_bias(c), utilities.triad_transitivity(3, c)]
    found += [utilities.feedback_arc(np.arange(3.0), c), utilities.deviance_r2(c, utilities.fit(3, c))]
    assert np.isnan(found).all()


def test_triads_by_hand():
    # 2 beats 0 by 0.05 over both orders, which closes the circle 0 > 1 > 2 > 0; item 3 is in no triad.
    assert utilities.triad_transitivity(4, PANEL) == 0
    line = [(0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.6), (2, 3, 0.7), (3, 1, 0.2)]
    assert utilities.triad_transitivity(4, rows(*line, (3, 0, 0.1))) == 1
    # With 3 above 0 instead, two of the four triads turn cyclic: 0, 1, 3 and 0, 2, 3.
    assert utilities.triad_transitivity(4, rows(*line, (3, 0, 0.9))) == 0.5
    assert np.isnan(utilities.triad_transitivity(3, rows((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.7), (2, 0, 0.7))))


def test_triads_agree_with_counting_and_are_three_quarters_by_chance():
    rng = np.random.default_rng(15)
    first, second = design(40, 24, rng, orders=1)
    c = Comparisons(first, second, rng.random(len(first)))
    beats = {(a, b) if p > 0.5 else (b, a) for a, b, p in zip(first, second, c.p, strict=True)}
    wins = [[sum((a, b) in beats for b in triad) for a in triad] for triad in combinations(range(40), 3)]
    counted = np.mean([won != [1, 1, 1] for won in wins if sum(won) == 3])
    assert utilities.triad_transitivity(40, c) == pytest.approx(counted)
    assert counted == pytest.approx(0.75, abs=0.06)


def test_feedback_arc_weighs_the_pairs_that_agree_with_the_order():
    # Margins over both orders: 0-1 +0.35, 1-2 +0.2, 0-2 -0.05, and 3 before 0 by 0.4 in its one order.
    found = [utilities.feedback_arc(np.array(mu), PANEL) for mu in ([3, 2, 1, 4], [3, 2, 1, 0], [3, 3, 1, 4])]
    assert found == pytest.approx([0.95, 0.55, 0.95 - 0.175])


def test_deviance_r2_is_1_for_a_perfect_fit_and_0_for_the_slot_alone():
    rng = np.random.default_rng(16)
    perfect = asked(rng.normal(0, 1, 60), 0.5, 30, rng)
    assert utilities.deviance_r2(perfect, utilities.fit(60, perfect)) == pytest.approx(1, abs=1e-6)
    assert utilities.deviance_r2(perfect, utilities.fit(60, perfect, slot=False)) < 0.97
    free = indifferent(60, 30, 0.7, 0.5, rng)
    assert 0 < utilities.deviance_r2(free, utilities.fit(60, free)) < 0.15
    slot_only = utilities.cross_entropy(np.full(len(free.p), norm.ppf(free.p.mean())), free.p)[0].sum()
    assert utilities.deviance_r2(free, Fit(np.zeros(60), 0.0, slot_only, 0, True)) == pytest.approx(0, abs=1e-9)


def test_held_out_pairs_are_predicted_as_well_as_they_can_be_and_no_better():
    rng = np.random.default_rng(17)
    mu = rng.normal(0, 1, 100)
    c = asked(mu, 0.5, 40, rng, draws=5)
    p = ndtr((mu[c.first] - mu[c.second]) / ROOT2 + 0.5)
    best = ((p - c.p) ** 2).mean(), -(c.p * np.log(p) + (1 - c.p) * np.log(1 - p)).mean()
    brier, loss = utilities.held_out(100, c, rng)
    assert best[0] < brier < best[0] + 0.005
    assert best[1] < loss < best[1] + 0.02
    # Whoever saw the one order of these pairs would know the other; nothing else tells of them.
    single, lean = np.arange(200).reshape(2, 100), rng.normal(0, 1.5, 100)
    alone = Comparisons(single.ravel(), single[::-1].ravel(), expit(np.append(lean, -lean)))
    assert utilities.held_out(200, alone, rng)[0] == pytest.approx(alone.p.var(), rel=0.1)


def test_rounds_never_repeat_a_pair_stay_balanced_and_come_closer():
    rng, n = np.random.default_rng(18), 100
    mu = rng.normal(0, 2, n)
    c, pairs = NONE, []
    for _ in range(4):
        pairs += utilities.next_pairs(n, c, 250, rng)
        first, second = np.array([*pairs, *[pair[::-1] for pair in pairs]]).T
        c = Comparisons(first, second, ndtr((mu[first] - mu[second]) / ROOT2 + 0.4))
    assert len({frozenset(pair) for pair in pairs if pair[0] != pair[1]}) == len(pairs) == 1000
    counts = np.bincount(np.array(pairs).ravel(), minlength=n)
    assert 17 <= counts.min() <= counts.max() <= 30  # 20 on average
    gaps = np.abs([mu[i] - mu[j] for i, j in pairs])
    assert gaps[250:].mean() < 0.9 * gaps[:250].mean()  # the first round is blind


def test_partners_are_drawn_by_their_weights():
    # Two camps of equals, far apart: partners weigh 0.85/4 + 0.15 in the own camp and 0.15 in the other.
    ring = [(camp + i, camp + (i + 1) % 100, 0.5) for camp in (0, 100) for i in range(100)]
    c = rows(*ring, *[(i, i + 100, 0.9999) for i in range(100)], *[(i + 100, i, 0.0001) for i in range(100)])
    rng = np.random.default_rng(0)
    own = [i // 100 == j // 100 for _ in range(30) for i, j in utilities.next_pairs(200, c, 200, rng)]
    assert np.mean(own) == pytest.approx(0.3625 * 97 / (0.3625 * 97 + 0.15 * 99), abs=0.013)


def test_the_same_generator_gives_the_same_round_and_no_pair_is_left_at_the_end():
    one, two = (utilities.next_pairs(9, NONE, 12, np.random.default_rng(5)) for _ in range(2))
    assert one == two
    rest = utilities.next_pairs(9, rows(*[(i, j, 0.5) for i, j in one]), 99, np.random.default_rng(6))
    assert sorted(tuple(sorted(pair)) for pair in one + rest) == list(combinations(range(9), 2))


def test_utility_engineering_gives_back_means_and_spreads():
    rng = np.random.default_rng(19)
    mu, sigma = rng.normal(0, 1, 40), rng.uniform(0.4, 1.2, 40)
    mu = (mu - mu.mean()) / mu.std(ddof=1)
    first, second = design(40, 76, rng)
    p = ndtr((mu[first] - mu[second]) / np.hypot(sigma[first], sigma[second]))
    tilt = np.minimum(p, 1 - p) / 2  # a habit for slot A, which the mean over orders cancels
    for c in (Comparisons(first, second, p), Comparisons(first, second, p + tilt)):
        found_mu, found_sigma = utilities.fit_utility_engineering(40, c)
        assert found_mu == pytest.approx(mu, abs=0.03)
        assert found_sigma == pytest.approx(sigma, abs=0.05)
    assert utilities.decisiveness_ue(*utilities.fit_utility_engineering(40, indifferent(40, 12, 0.8, 0.0, rng))) < 1e-3
    table = np.abs(2 * ndtr((mu[:, None] - mu) / np.hypot(sigma[:, None], sigma)) - 1)
    assert utilities.decisiveness_ue(mu, sigma) == pytest.approx(table[np.triu_indices(40, 1)].mean())


def test_utility_engineering_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(20)
    low, high = np.array(list(combinations(range(6), 2))).T
    theta, p = rng.normal(0, 1, 12), rng.random(15)
    numeric = approx_fprime(theta, lambda t: utilities.loss_ue(t, low, high, p)[0], 1e-7)
    assert utilities.loss_ue(theta, low, high, p)[1] == pytest.approx(numeric, abs=1e-5)
