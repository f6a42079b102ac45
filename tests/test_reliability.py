"""The interval of decisiveness knows that the reliability, which scales all utilities, is itself an estimate."""

import numpy as np
import pytest
from scipy.special import ndtr
from test_utilities import ROOT2, asked, design, population_decisiveness, read_shrunk

from audit import utilities
from audit.utilities import Comparisons


def test_jackknife_nearly_covers_when_utilities_are_fitted_and_shrunk():
    # A fit's errors are shared between items: a little below nominal.
    truth, covered = population_decisiveness(1.0), []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        c = asked(rng.normal(0, 1, 60), 0.6, 40, rng, draws=5)
        each = utilities.shrunk_per_item(utilities.fit(60, c).mu, utilities.split_halves(60, c, rng))
        value, low, high = utilities.jackknife(each)
        assert value == pytest.approx(read_shrunk(60, c, np.random.default_rng(seed)), abs=0.03)  # other splits
        covered.append(low <= truth <= high)
    assert 0.85 <= np.mean(covered) <= 1.0


def noisy(mu: np.ndarray, rng: np.random.Generator) -> Comparisons:
    """Five pairs an item, each with a leaning of its own as large as the utilities."""
    first, second = design(len(mu), 10, rng)
    lean = rng.normal(0, 1, len(first) // 2)
    return Comparisons(first, second, ndtr((mu[first] - mu[second]) / ROOT2 + np.append(lean, -lean) + 0.5))


def test_two_noisy_readings_of_the_same_utilities_differ_by_nothing_within_the_interval():
    """Reliability is uncertain here, and scales all of mu: taken for certain, the interval holds 0 in three audits of five."""
    covered = {"certain": [], "uncertain": []}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mu = rng.normal(0, 1, 20)
        both = [noisy(mu, rng) for _ in range(2)]
        fits = [(utilities.fit(20, c).mu, utilities.split_halves(20, c, rng)) for c in both]
        plain = [utilities.per_item(utilities.shrunk(mu, utilities.reliability(halves))) for mu, halves in fits]
        seen = [utilities.shrunk_per_item(*one) for one in fits]
        assert [each.mean() for each in plain] == pytest.approx([each.mean() for each in seen])
        for how, (own, base) in (("certain", plain), ("uncertain", seen)):
            _, low, high = utilities.paired(own, base)
            covered[how].append(low <= 0 <= high)
    assert np.mean(covered["certain"]) < 0.75
    assert np.mean(covered["uncertain"]) > 0.88
