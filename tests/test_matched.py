"""Damage at matched severity: interpolation, coverage of the intervals, the method's own error rates."""

import numpy as np
import pytest

from audit import compare_matched as matched
from audit.compare_panels import _damage
from audit.measures import Metric


def rows(*doses: float) -> np.ndarray:
    return np.array([doses], float)


def test_damage_is_interpolated_where_severity_first_reaches_the_level():
    severity, damage = rows(0.2, 0.4, 0.3, 0.6), rows(0.0, 1.0, 5.0, 9.0)
    assert matched.at(severity, damage, 0.1) == pytest.approx(0.0)  # between the base and the first dose
    assert matched.at(severity, damage, 0.3) == pytest.approx(0.5)  # not 5.0, which it comes back to
    assert matched.at(severity, damage, 0.5) == pytest.approx(5 + 4 * 2 / 3)
    assert matched.at(severity, damage, 0.9) == pytest.approx(9.0)  # never reached: the greatest severity's damage


def test_what_is_read_of_pairs_moves_by_twice_what_its_items_do():
    own, base = np.array([[3.0, 4.0], [1.0, 4.0], [2.0, 4.0]]), np.array([[4.0, 4.0], [4.0, 4.0], [2.0, 4.0]])
    drawn = matched.weights(3, 0, 50)
    share, links = (matched.differences(kind, own, base, drawn) for kind in ("share", "links"))
    assert links[0] == share[0] and links[1:] - links[0] == pytest.approx(2 * (share[1:] - share[0]))


SEVERITY = {"first": (0.1, 0.25, 0.45), "second": (0.2, 0.35, 0.5)}  # mean severity of three doses


def experiment(rng, n_severity: int, n: int, kind: str, damage: dict, resamples: int = 400):
    """One simulated audit of two styles with known damage at each dose: (level, true difference, what the method found)."""
    slope, own_slope = rng.normal(1, 0.5, n_severity), rng.normal(1, 0.5, n)  # items differ in how far a dose moves them
    base = (rng.random(n) < 0.6).astype(float) if kind == "rate" else rng.normal(0, 1, n)
    drawn = [matched.weights(k, rng.integers(2**31), resamples) for k in (n_severity, n)]
    sides = {}
    for style, strengths in SEVERITY.items():
        s, y = [], []
        for strength, harm in zip(strengths, damage[style], strict=True):
            moved = strength * slope + rng.normal(0, 0.08, n_severity)
            s.append(matched.differences("mean", moved, np.zeros(n_severity), drawn[0]))
            if kind == "rate":  # of what the base has right this share is lost, and 5% of the rest gained
                own = np.where(base == 1, rng.random(n) >= (harm + 0.4 * 0.05) / 0.6, rng.random(n) < 0.05).astype(float)
                y.append(-matched.differences("rate", own, base, drawn[1]))
            else:
                y.append(matched.differences("mean", base + harm * own_slope + rng.normal(0, 0.1, n), base, drawn[1]))
        sides[style] = np.stack(s, axis=1), np.stack(y, axis=1)
    level = min(matched.reach(s) for s, _ in sides.values())
    true = [float(matched.at(rows(*SEVERITY[style]), rows(*damage[style]), level)[0]) for style in sides]
    found = matched.difference(*([matched.at(s, y, level)] for s, y in sides.values()), kind, n, n_severity)
    return level, true[0] - true[1], found


ALIKE = {style: tuple(0.5 * s for s in strengths) for style, strengths in SEVERITY.items()}  # one line through both
APART = {"first": (0.02, 0.05, 0.3), "second": (0.2, 0.3, 0.4)}


def error_rates(n_severity: int, n: int, kind: str, damage: dict, times: int, seed: int = 1) -> tuple[float, float]:
    """(coverage of the 95% interval, share with p < 0.05) over simulated audits whose severity is told from none."""
    rng, covered, called = np.random.default_rng(seed), [], []
    for _ in range(times):
        level, true, found = experiment(rng, n_severity, n, kind, damage)
        if level > 0:
            covered.append(found.interval.low <= true <= found.interval.high)
            called.append(found.p < 0.05)
    return float(np.mean(covered)), float(np.mean(called))


@pytest.mark.parametrize(("kind", "n_severity", "n"), [("mean", 13, 6), ("rate", 13, 16), ("mean", 30, 40), ("rate", 100, 200)])
def test_intervals_cover_and_equal_styles_are_rarely_called_different(kind, n_severity, n):
    """Bounds are nominal and three standard errors of 150 simulated audits."""
    coverage, false_alarms = error_rates(n_severity, n, kind, ALIKE, 150)
    assert coverage >= 0.9 and false_alarms <= 0.1
    coverage, found = error_rates(n_severity, n, kind, APART, 150)
    assert coverage >= 0.9
    assert found >= 0.5 or n < 200  # and with enough items a real difference of 0.1 is found


def test_the_error_of_severity_is_part_of_the_interval():
    """Damage known exactly but steep in severity: all uncertainty comes from where the level is reached."""
    rng = np.random.default_rng(3)
    drawn = matched.weights(20, 0)
    severity = np.stack([matched.differences("mean", s + rng.normal(0, 0.2, 20), np.zeros(20), drawn) for s in (0.2, 0.6)], 1)
    damage = np.tile([0.0, 2.0], (len(severity), 1))
    found = matched.difference([matched.at(severity, damage, 0.4)], [], "mean", 1000, 20)
    assert found.interval.high - found.interval.low > 0.5
    exact = np.tile([0.2, 0.6], (len(severity), 1))
    none = matched.difference([matched.at(exact, damage, 0.4)], [], "mean", 1000, 20)
    assert none.interval.high - none.interval.low < 1e-9


def test_seeds_widen_the_interval_by_their_own_spread():
    """Three seeds each whose damage varies by 0.2 between seeds and by almost nothing between items."""
    rng, covered, narrow = np.random.default_rng(5), [], []
    for _ in range(300):
        sides = [[0.5 + rng.normal(0, 0.2) + rng.normal(0, 0.01, 501) for _ in range(3)] for _ in range(2)]
        both = matched.difference(*sides, "mean", 100, 100).interval
        covered.append(both.low <= 0 <= both.high)
        one = matched.difference(*(side[:1] for side in sides), "mean", 100, 100).interval
        narrow.append(one.low <= 0 <= one.high)
    assert np.mean(covered) >= 0.91 and np.mean(narrow) < 0.4  # one seed each says nothing about another training run


def test_what_a_small_sample_has_not_shown_is_not_claimed():
    """Eight replies, none of them different: the interval is Tango's and not of no width; two of 16 lost are no evidence."""
    same = matched.summary(np.zeros(501), "rate", 8, 50)
    assert same[0].high == pytest.approx(0.324, abs=1e-3) and same[1] == 1.0
    base = np.ones(16)
    lost = matched.differences("rate", np.r_[np.zeros(3), np.ones(13)], base, matched.weights(16, 0))
    interval, p = matched.summary(-lost, "rate", 16, 50)
    assert interval.low < 0 and p > 0.05


def test_a_style_that_moves_to_neither_side_is_not_called_worse_than_one_that_stays():
    """Unsafe refusal of 250 prompts: a tenth lost and a tenth gained against no change at all; the truth is no difference."""
    metric, rng, called = Metric("unsafe", "rate", worse="both", margin=0.05), np.random.default_rng(2), []
    base = np.arange(250) % 2.0
    still = np.zeros(401)
    for _ in range(200):
        own = np.where(rng.random(250) < 0.2, 1 - base, base)
        moved = _damage(metric, matched.differences("rate", own, base, matched.weights(250, rng.integers(2**31), 400)))
        assert moved[0] == pytest.approx(abs(own.mean() - base.mean()))
        interval = matched.difference([moved], [still], "rate", 250, 100).interval
        called.append(not interval.low <= 0 <= interval.high)
    assert np.mean(called) <= 0.1


# Run directories with known truth
