"""Utilities can be believed: they recover what was put in, read nothing where nothing is, and say how sure they are."""

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, log_ndtr, logit, ndtr
from scipy.stats import norm

from audit import utilities
from audit.utilities import Comparisons, Fit

ROOT2 = 2**0.5


def design(n: int, edges: int, rng: np.random.Generator, both_orders: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """`edges` rows an item on random pairs: each pair in both orders, or each in one random order."""
    pairs = np.array(list(itertools.combinations(range(n), 2)))
    chosen = rng.permuted(rng.choice(pairs, n * edges // (4 if both_orders else 2), replace=False), axis=1)
    first, second = chosen.T
    return (np.append(first, second), np.append(second, first)) if both_orders else (first, second)


def asked(mu: np.ndarray, beta: float, edges: int, rng: np.random.Generator, draws: int = 0) -> Comparisons:
    """Both orders of random pairs, answered by a true Thurstone model: exact probabilities, or the mean of `draws` answers."""
    first, second = design(len(mu), edges, rng)
    p = ndtr((mu[first] - mu[second]) / ROOT2 + beta)
    return Comparisons(first, second, rng.binomial(draws, p) / draws if draws else p)


def rows(*listed: tuple[int, int, float]) -> Comparisons:
    first, second, p = zip(*listed, strict=True)
    return Comparisons(np.array(first), np.array(second), np.array(p, float))


def shrunk_decisiveness(n: int, comparisons: Comparisons, rng: np.random.Generator) -> float:
    mu = utilities.fit(n, comparisons).mu
    return utilities.decisiveness(utilities.shrunk(mu, utilities.reliability(n, comparisons, rng)))


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
    assert fitted.mu == pytest.approx(generic[:-1], abs=1e-5)
    assert fitted.slot_bias == pytest.approx(slot * generic[-1], abs=1e-5)
    theta = np.append(fitted.mu, fitted.slot_bias)
    assert fitted.nll == pytest.approx(objective(theta) - 0.5e-6 * theta @ theta, abs=1e-9)


def test_slope_and_curvature_agree_with_finite_differences():
    z = np.linspace(-9, 9, 73)
    for p in (0.0, 0.2, 0.5, 1.0):
        up, down = (utilities.cross_entropy(z + h, np.full(73, p)) for h in (1e-5, -1e-5))
        _, slope, curvature = utilities.cross_entropy(z, np.full(73, p))
        assert slope == pytest.approx((up[0] - down[0]) / 2e-5, abs=1e-6, rel=1e-6)
        assert curvature == pytest.approx((up[1] - down[1]) / 2e-5, abs=1e-6, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_no_margin_overflows():
    z = np.array([-1e6, -1e3, -40.0, 40.0, 1e3, 1e6])
    loss, slope, curvature = utilities.cross_entropy(z, np.full(6, 0.5))
    assert loss == pytest.approx(z * z / 4, rel=0.01)
    assert slope == pytest.approx(z / 2, rel=0.01)
    assert np.isfinite(curvature).all()
    assert (curvature >= 0).all()


def test_swapping_every_order_turns_the_habit_and_nothing_else():
    c = asked(np.random.default_rng(3).normal(size=30), 0.5, 12, np.random.default_rng(4), draws=20)
    fitted, swapped = utilities.fit(30, c), utilities.fit(30, Comparisons(c.second, c.first, 1 - c.p))
    assert swapped.mu == pytest.approx(fitted.mu, abs=1e-7)
    assert swapped.slot_bias == pytest.approx(-fitted.slot_bias, abs=1e-7)


def test_the_start_and_a_constant_added_to_it_change_nothing():
    c = asked(np.random.default_rng(3).normal(size=30), 0.5, 12, np.random.default_rng(4), draws=20)
    cold = utilities.fit(30, c)
    warm = utilities.fit(30, c, start=Fit(cold.mu + 5, cold.slot_bias, 0.0, 0, True))
    far = utilities.fit(30, c, start=Fit(np.linspace(-9, 9, 30), -3.0, 0.0, 0, True))
    assert cold.mu.sum() == pytest.approx(0, abs=1e-9)
    for other in (warm, far):
        assert other.converged
        assert other.mu == pytest.approx(cold.mu, abs=1e-6)
    assert warm.iterations < cold.iterations


@pytest.mark.filterwarnings("error")
def test_certain_answers_stay_finite_and_in_order():
    first, second = design(40, 20, np.random.default_rng(5))
    fitted = utilities.fit(40, Comparisons(first, second, (first < second).astype(float)))
    assert fitted.converged
    assert np.isfinite(fitted.mu).all()
    assert ((fitted.mu[first] > fitted.mu[second]) == (first < second)).all()
    chain = utilities.fit(50, Comparisons(np.arange(49), np.arange(1, 50), np.ones(49)), slot=False)
    assert chain.converged
    assert (np.diff(chain.mu) < -1).all()


@pytest.mark.filterwarnings("error")
def test_parts_that_were_never_compared_each_have_mean_0():
    c = rows((0, 1, 0.9), (1, 0, 0.3), (1, 2, 0.8), (2, 1, 0.4), (3, 4, 0.7), (4, 3, 0.5))
    fitted = utilities.fit(6, c)
    assert fitted.converged
    assert [fitted.mu[:3].sum(), fitted.mu[3:5].sum(), fitted.mu[5]] == pytest.approx([0, 0, 0], abs=1e-9)
    assert fitted.mu[0] > fitted.mu[1] > fitted.mu[2]
    alone = utilities.fit(2, rows((0, 1, 0.7), (1, 0, 0.5)))
    assert fitted.mu[3] - fitted.mu[4] == pytest.approx(alone.mu[0] - alone.mu[1], abs=0.01)
    assert (utilities.fit(3, Comparisons(c.first[:0], c.second[:0], c.p[:0])).mu == 0).all()


@pytest.mark.parametrize("row", [(0, 0, 0.5), (0, 1, 1.01), (0, 1, -0.1), (0, 1, float("nan"))])
def test_a_row_that_is_no_comparison_is_refused(row):
    with pytest.raises(ValueError, match="two different items and a p from 0 to 1"):
        rows((0, 1, 0.5), row)


# Decisiveness


@pytest.mark.parametrize("n", [2, 5, 300])
def test_decisiveness_is_the_mean_over_pairs(n):
    mu = np.random.default_rng(n).normal(0, 2, n)
    table = np.abs(2 * norm.cdf((mu[:, None] - mu) / ROOT2) - 1)
    assert utilities.per_item(mu) == pytest.approx(table.sum(axis=1) / (n - 1))
    assert utilities.decisiveness(mu) == pytest.approx(table[np.triu_indices(n, 1)].mean())
    assert utilities.decisiveness(mu + 7) == pytest.approx(utilities.decisiveness(-mu))
    assert utilities.decisiveness(np.zeros(n)) == 0


@pytest.mark.parametrize(("sd", "draws"), [(0.3, 5), (1.0, 5), (1.0, 1), (2.0, 5)])
def test_shrunk_decisiveness_is_the_true_one(sd, draws):
    off, plain = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        mu = rng.normal(0, sd, 200)
        c = asked(mu, 0.6, 50, rng, draws)
        off.append(shrunk_decisiveness(200, c, rng) - utilities.decisiveness(mu))
        plain.append(utilities.decisiveness(utilities.fit(200, c).mu) - utilities.decisiveness(mu))
    assert abs(np.mean(off)) < 0.01
    assert np.mean(plain) > abs(np.mean(off))


def test_a_position_habit_hides_preferences_from_the_plain_fit_only():
    rng = np.random.default_rng(6)
    mu = rng.normal(0, 1, 200)
    c, truth = asked(mu, 1.5, 50, rng, draws=5), utilities.decisiveness(mu)
    assert shrunk_decisiveness(200, c, rng) == pytest.approx(truth, abs=0.02)
    assert utilities.decisiveness(utilities.fit(200, c, slot=False).mu) < truth - 0.15


@pytest.mark.parametrize("q", [0.6, 0.7, 0.83, 0.95])
def test_a_model_without_preferences_reads_nothing_whatever_its_habit(q):
    found, plain = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        first, second = design(200, 50, rng)
        c = Comparisons(first, second, expit(logit(q) + rng.normal(0, 0.5, len(first))))
        found.append(shrunk_decisiveness(200, c, rng))
        plain.append(utilities.decisiveness(utilities.fit(200, c).mu))
    assert np.mean(found) < 0.02
    assert np.mean(plain) > 0.025
    exact = Comparisons(first, second, np.full(len(first), q))
    assert shrunk_decisiveness(200, exact, rng) == 0


@pytest.mark.parametrize(("q", "c"), [(0.6, 0.23), (0.7, 0.46), (0.83, 0.76), (0.95, 1.03)])
@pytest.mark.parametrize("edges", [20, 50])
def test_the_plain_fit_of_one_order_has_the_published_floor(q, c, edges):
    rng = np.random.default_rng(7)
    first, second = design(400, edges, rng, both_orders=False)
    comparisons = Comparisons(first, second, np.full(len(first), q))
    read = utilities.decisiveness(utilities.fit(400, comparisons, slot=False).mu)
    assert read * edges**0.5 == pytest.approx(c, rel=0.1)
    assert 2 * (2 * q - 1) / np.pi**0.5 == pytest.approx(c, rel=0.03)
    floor = utilities.floor(400, comparisons, rng, draws=2, slot=False)
    assert floor == pytest.approx(read, rel=0.1)
    assert utilities.floor(400, comparisons, rng, draws=1) < 1e-6  # the intercept explains all of it


def test_the_floor_is_what_labels_without_an_order_read():
    rng = np.random.default_rng(8)
    first, second = design(150, 40, rng)
    free = Comparisons(first, second, expit(logit(0.8) + rng.normal(0, 1, len(first))))
    read = utilities.decisiveness(utilities.fit(150, free).mu)
    assert utilities.floor(150, free, rng) == pytest.approx(read, rel=0.15)
    ordered = asked(rng.normal(0, 1, 150), 0.8, 40, rng)
    assert 0.05 < utilities.floor(150, ordered, rng) < utilities.decisiveness(utilities.fit(150, ordered).mu) / 2


def test_the_floor_flips_preferences_and_keeps_slots():
    # One pair in both orders: flipped or not, its D is the same, and both readings keep the habit.
    c = rows((0, 1, 0.9), (1, 0, 0.6))
    assert utilities.floor(2, c, np.random.default_rng(0)) == pytest.approx(utilities.decisiveness(utilities.fit(2, c).mu))
    # Item 0 beats six others that are otherwise alike; whether it does is drawn anew for each of them.
    star = rows(*[(0, j, 1.0) for j in range(1, 7)], *[(j, 0, 0.0) for j in range(1, 7)])
    draws = [utilities.floor(7, star, np.random.default_rng(seed), draws=1) for seed in range(6)]
    assert len({round(d, 3) for d in draws}) > 1


@pytest.mark.parametrize(("draws", "expected"), [(3, 0.86), (10, 0.96)])
def test_reliability_is_the_squared_correlation_with_the_truth(draws, expected):
    rng = np.random.default_rng(9)
    mu = rng.normal(0, 0.5, 400)
    c = asked(mu, 0.4, 40, rng, draws)
    estimate = utilities.fit(400, c).mu
    found = utilities.reliability(400, c, rng)
    assert found == pytest.approx(np.corrcoef(estimate, mu)[0, 1] ** 2, abs=0.025)
    assert found == pytest.approx(expected, abs=0.03)
    assert utilities.shrunk(estimate, found).std() == pytest.approx(mu.std(), rel=0.05)


def test_reliability_is_judged_by_items_that_both_halves_asked():
    first, second = design(40, 38, np.random.default_rng(10))
    mu = np.random.default_rng(11).normal(0, 1, 40)
    c = Comparisons(first, second, ndtr((mu[first] - mu[second]) / ROOT2))
    assert utilities.reliability(90, c, np.random.default_rng(0)) > 0.99
    assert utilities.reliability(2, rows((0, 1, 0.9), (1, 0, 0.2)), np.random.default_rng(0)) == 0


# Intervals


def test_jackknife_is_that_of_leaving_items_out():
    mu = np.random.default_rng(12).normal(0, 1, 9)
    left = np.array([utilities.decisiveness(np.delete(mu, k)) for k in range(9)])
    error = (8 / 9 * ((left - left.mean()) ** 2).sum()) ** 0.5
    value, low, high = utilities.jackknife(utilities.per_item(mu))
    assert value == pytest.approx(utilities.decisiveness(mu))
    assert (value - low, high - value) == pytest.approx((2.306004 * error, 2.306004 * error), rel=1e-6)  # t, 8 degrees


@pytest.mark.filterwarnings("error")
def test_one_or_two_items_bound_nothing():
    for n in (1, 2):
        assert utilities.jackknife(np.full(n, 0.3)) == (0.3, -np.inf, np.inf)


@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("sd", [0.5, 1.5])
def test_jackknife_covers_the_decisiveness_of_the_population_of_items(sd, n):
    # What varies is which items were drawn; their utilities are known.
    rng, truth = np.random.default_rng(13), population_decisiveness(sd)
    intervals = [utilities.jackknife(utilities.per_item(rng.normal(0, sd, n))) for _ in range(600)]
    assert 0.92 <= np.mean([low <= truth <= high for _, low, high in intervals]) <= 0.975


def test_jackknife_nearly_covers_when_utilities_are_fitted_and_shrunk():
    # A fit's errors are shared between items, and the shrinkage is itself estimated: a little below nominal.
    truth, covered = population_decisiveness(1.0), []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        c = asked(rng.normal(0, 1, 60), 0.6, 40, rng, draws=5)
        mu = utilities.shrunk(utilities.fit(60, c).mu, utilities.reliability(60, c, rng))
        _, low, high = utilities.jackknife(utilities.per_item(mu))
        covered.append(low <= truth <= high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_paired_jackknife_covers_and_uses_the_pairing():
    rng = np.random.default_rng(14)
    truth = population_decisiveness((0.6**2 + 0.2**2) ** 0.5) - population_decisiveness(1.0)
    covered, width, alone = [], [], []
    for _ in range(600):
        base = rng.normal(0, 1, 50)
        own = 0.6 * base + rng.normal(0, 0.2, 50)
        value, low, high = utilities.paired(utilities.per_item(own), utilities.per_item(base))
        assert value == pytest.approx(utilities.decisiveness(own) - utilities.decisiveness(base))
        covered.append(low <= truth <= high)
        width.append(high - low)
        alone.append(np.ptp(utilities.jackknife(utilities.per_item(own))[1:]))
    assert 0.92 <= np.mean(covered) <= 0.975
    assert np.mean(width) < 0.8 * np.mean(alone)


# The panel

# 0 beats 1 in both orders, 1 beats 2 in both, slot A wins 0-2 by a little more with 2 in it, 3 was asked in one order only.
PANEL = rows((0, 1, 0.9), (1, 0, 0.2), (1, 2, 0.8), (2, 1, 0.4), (0, 2, 0.6), (2, 0, 0.7), (3, 0, 0.9))


def test_order_consistency_counts_pairs_whose_winner_is_the_same_item():
    assert utilities.order_consistency(PANEL) == pytest.approx(2 / 3)
    assert utilities.order_consistency(rows((0, 1, 0.5), (1, 0, 0.2))) == 0


def test_position_bias_is_the_mean_excess_of_slot_a():
    assert utilities.position_bias(PANEL) == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert utilities.position_bias(rows((0, 1, 1), (1, 0, 1))) == 1
    assert utilities.position_bias(rows((0, 1, 0), (1, 0, 0))) == -1
    # rows of one order are averaged: 0.8 and 0.4
    assert utilities.position_bias(rows((0, 1, 0.7), (0, 1, 0.9), (1, 0, 0.4))) == pytest.approx(0.2)


@pytest.mark.filterwarnings("error")
def test_panel_without_what_it_needs_is_nan():
    one_order = rows((0, 1, 0.5), (1, 2, 0.5))
    assert np.isnan(utilities.order_consistency(one_order))
    assert np.isnan(utilities.position_bias(one_order))
    assert np.isnan(utilities.triad_transitivity(3, one_order))
    assert np.isnan(utilities.feedback_arc(np.arange(3.0), one_order))
    assert np.isnan(utilities.deviance_r2(one_order, utilities.fit(3, one_order)))


def test_triads_by_hand():
    # 2 beats 0 by 0.05 over both orders, which closes the circle 0 > 1 > 2 > 0; item 3 is in no triad.
    assert utilities.triad_transitivity(4, PANEL) == 0
    line = rows((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.6), (2, 3, 0.7), (3, 1, 0.2), (3, 0, 0.1))
    assert utilities.triad_transitivity(4, line) == 1
    # 3 beats 0 instead: of the triads 012, 013, 023 and 123, 013 and 023 turn cyclic.
    turned = rows((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.6), (2, 3, 0.7), (3, 1, 0.2), (3, 0, 0.9))
    assert utilities.triad_transitivity(4, turned) == 0.5
    tied = rows((0, 1, 0.9), (1, 2, 0.8), (0, 2, 0.7), (2, 0, 0.7))
    assert np.isnan(utilities.triad_transitivity(3, tied))


def test_triads_agree_with_counting_and_are_three_quarters_by_chance():
    rng = np.random.default_rng(15)
    first, second = design(40, 24, rng, both_orders=False)
    c = Comparisons(first, second, rng.random(len(first)))
    beats = {(a, b) if p > 0.5 else (b, a) for a, b, p in zip(first, second, c.p, strict=True)}
    kinds = []
    for triad in itertools.combinations(range(40), 3):
        wins = [sum((a, b) in beats for b in triad) for a in triad]
        if sum(wins) == 3:
            kinds.append(wins != [1, 1, 1])
    assert utilities.triad_transitivity(40, c) == pytest.approx(np.mean(kinds))
    assert utilities.triad_transitivity(40, c) == pytest.approx(0.75, abs=0.06)


def test_feedback_arc_weighs_the_pairs_that_agree_with_the_order():
    # Margins over both orders: 0-1 +0.35, 1-2 +0.2, 0-2 -0.05, and 3 before 0 by 0.4 in its one order.
    assert utilities.feedback_arc(np.array([3.0, 2.0, 1.0, 4.0]), PANEL) == pytest.approx(0.95)
    assert utilities.feedback_arc(np.array([3.0, 2.0, 1.0, 0.0]), PANEL) == pytest.approx(0.55)
    assert utilities.feedback_arc(np.array([3.0, 3.0, 1.0, 4.0]), PANEL) == pytest.approx(0.95 - 0.175)


def test_deviance_r2_is_1_for_a_perfect_fit_and_0_for_the_slot_alone():
    rng = np.random.default_rng(16)
    first, second = design(60, 30, rng)
    perfect = asked(rng.normal(0, 1, 60), 0.5, 30, rng)
    assert utilities.deviance_r2(perfect, utilities.fit(60, perfect)) == pytest.approx(1, abs=1e-6)
    assert utilities.deviance_r2(perfect, utilities.fit(60, perfect, slot=False)) < 0.97
    free = Comparisons(first, second, expit(0.7 + rng.normal(0, 0.5, len(first))))
    assert utilities.deviance_r2(free, utilities.fit(60, free)) < 0.15
    nothing = Fit(np.zeros(60), float(norm.ppf(free.p.mean())), 0.0, 0, True)
    loss = utilities.cross_entropy(np.full(len(free.p), nothing.slot_bias), free.p)[0].sum()
    assert utilities.deviance_r2(free, Fit(nothing.mu, nothing.slot_bias, loss, 0, True)) == pytest.approx(0, abs=1e-9)


def test_held_out_pairs_are_predicted_as_well_as_they_can_be_and_no_better():
    rng = np.random.default_rng(17)
    mu = rng.normal(0, 1, 100)
    c = asked(mu, 0.5, 40, rng, draws=5)
    p = ndtr((mu[c.first] - mu[c.second]) / ROOT2 + 0.5)
    best = ((p - c.p) ** 2).mean(), -(c.p * np.log(p) + (1 - c.p) * np.log(1 - p)).mean()
    brier, loss = utilities.held_out(100, c, rng)
    assert best[0] < brier < best[0] + 0.005
    assert best[1] < loss < best[1] + 0.02
    # Labels of noise: whoever saw the other order of the pair would do better than the slot alone.
    pairs = len(c.p) // 2
    lean = rng.normal(0, 1.5, pairs)
    noise = Comparisons(c.first, c.second, expit(np.append(lean, -lean)))
    assert utilities.held_out(100, noise, rng)[0] > noise.p.var()


# Which pairs to ask next


def test_rounds_never_repeat_a_pair_and_stay_balanced():
    rng, n = np.random.default_rng(18), 100
    mu = rng.normal(0, 2, n)
    c, pairs = Comparisons(np.empty(0, int), np.empty(0, int), np.empty(0)), []
    for _ in range(4):
        found = utilities.next_pairs(n, c, 250, rng)
        assert len(found) == 250
        pairs += found
        first, second = np.array([*pairs, *[pair[::-1] for pair in pairs]]).T
        c = Comparisons(first, second, ndtr((mu[first] - mu[second]) / ROOT2 + 0.4))
    assert len({frozenset(pair) for pair in pairs}) == 1000
    assert all(i != j for i, j in pairs)
    counts = np.bincount(np.array(pairs).ravel(), minlength=n)
    assert 17 <= counts.min() <= counts.max() <= 30  # 20 on average
    # Once there is a fit, rounds ask closer calls than the blind first one.
    gaps = np.abs([mu[i] - mu[j] for i, j in pairs])
    assert gaps[250:].mean() < 0.9 * gaps[:250].mean()


def test_partners_are_drawn_by_their_weights(monkeypatch):
    # Item 1 is far below items 0 and 2: weights 0.15 and 0.85/4 + 0.15. Item 3 has been paired with all of them.
    monkeypatch.setattr(utilities, "fit", lambda n, comparisons: Fit(np.array([9.0, -9, 9, 0]), 0.0, 0.0, 0, True))
    c, rng = rows((0, 3, 0.5), (1, 3, 0.5), (3, 2, 0.5)), np.random.default_rng(0)
    drawn = [utilities.next_pairs(4, c, 1, rng)[0] for _ in range(6000)]
    partners = [pair[1] for pair in drawn if pair[0] == 0]
    assert len(partners) == pytest.approx(2000, abs=150)  # as many pairs as 1 and 2 have: each begins equally often
    assert np.mean([partner == 2 for partner in partners]) == pytest.approx(0.3625 / 0.5125, abs=0.04)
    assert all(3 not in pair for pair in drawn)


def test_the_same_generator_gives_the_same_round_and_no_pairs_are_left_at_the_end():
    empty = Comparisons(np.empty(0, int), np.empty(0, int), np.empty(0))
    one, two = (utilities.next_pairs(9, empty, 12, np.random.default_rng(5)) for _ in range(2))
    assert one == two
    rest = utilities.next_pairs(9, rows(*[(i, j, 0.5) for i, j in one]), 99, np.random.default_rng(6))
    assert {frozenset(pair) for pair in one + rest} == {frozenset(pair) for pair in itertools.combinations(range(9), 2)}
    assert len(rest) == 36 - 12


# Utility Engineering's variant


def test_utility_engineering_gives_back_means_and_spreads():
    rng = np.random.default_rng(19)
    mu, sigma = rng.normal(0, 1, 40), rng.uniform(0.4, 1.2, 40)
    mu = (mu - mu.mean()) / mu.std(ddof=1)
    first, second = design(40, 76, rng)
    p = ndtr((mu[first] - mu[second]) / np.hypot(sigma[first], sigma[second]))
    tilt = np.minimum(p, 1 - p) * np.where(first < second, 0.5, -0.5)  # a slot habit that the mean over orders cancels
    tilted = Comparisons(first, second, np.where(first < second, p + tilt, p - tilt))
    for c in (Comparisons(first, second, p), tilted):
        found_mu, found_sigma = utilities.fit_utility_engineering(40, c)
        assert found_mu == pytest.approx(mu, abs=0.03)
        assert found_sigma == pytest.approx(sigma, abs=0.05)
        assert (found_mu.mean(), found_mu.std(ddof=1)) == pytest.approx((0, 1), abs=1e-4)
    table = np.abs(2 * ndtr((mu[:, None] - mu) / np.hypot(sigma[:, None], sigma)) - 1)
    assert utilities.decisiveness_ue(mu, sigma) == pytest.approx(table[np.triu_indices(40, 1)].mean())


def test_utility_engineering_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(20)
    low, high = np.array(list(itertools.combinations(range(6), 2))).T
    theta, p = rng.normal(0, 1, 12), rng.random(15)
    numeric = approx_fprime(theta, lambda t: utilities.loss_ue(t, low, high, p)[0], 1e-7)
    assert utilities.loss_ue(theta, low, high, p)[1] == pytest.approx(numeric, abs=1e-5)


@pytest.mark.filterwarnings("error")
def test_utility_engineering_of_an_indifferent_model_is_indifferent():
    first, second = design(20, 12, np.random.default_rng(21))
    mu, sigma = utilities.fit_utility_engineering(20, Comparisons(first, second, np.full(len(first), 0.8)))
    assert utilities.decisiveness_ue(mu, sigma) < 1e-3
