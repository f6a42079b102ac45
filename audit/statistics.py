"""Intervals and tests for paired audits. Everything here takes plain arrays and knows nothing of models.

Rates (0/1 an item): Wilson for one rate; for a paired difference Tango's score interval (Tango 1998, Statistics in Medicine
17:891-908, the method with near-nominal coverage at small n and no discordant pairs) and McNemar's exact test.
Means and ratios: BCa bootstrap over items (Efron 1987) from scipy, paired by resampling items; too narrow for few items, so its
ends are taken further out (Hesterberg 2015, as in audit/compare_matched.py): of 6 items of a normal mean it covers 93% where
95% BCa covers 87%, of a skewed one less (lognormal: 84%, was 76%). A bootstrap cannot see what a small sample has not shown;
so a share of counts is never narrower than Tango's interval without discordance, and reads like the rate beside it.
Means over pairs of items (decisiveness): the item jackknife of audit/utilities.py; edges are never resampled. Shares of pairs
(order consistency) stand at both items of each pair, so that an item moves them by twice what the bootstrap over items sees.
All intervals are two-sided at 95%.
"""

from dataclasses import dataclass

import numpy as np

from audit.kinds import OF_PAIRS, RATIOS, SHARES
from audit.utilities import jackknife

Z = 1.959963984540054
POWER_Z = 2.8  # 1.96 + 0.84: two-sided 5% level and 80% power
RESAMPLES = 2000
FEW = 6  # rows


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def single(kind: str, items: np.ndarray) -> Interval:
    """One specimen's own value. `items`: (n,) for rates and means, (n, 2) numerators and denominators for ratios and shares."""
    if kind == "rate":
        return wilson(int(items.sum()), len(items))
    if kind == "constant":
        return Interval(float(items[0]), float(items[0]), float(items[0]))
    if kind == "pairs":
        return Interval(*jackknife(items))
    found = _bootstrap(lambda rows: estimate(kind, rows), items)
    if kind not in SHARES:
        return found
    found = _both_ends(kind, found)
    least = tango(0, 0, len(items)).high  # as far as Wilson's goes from 0 and 1
    return Interval(found.value, max(min(found.low, found.value - least), 0.0), min(max(found.high, found.value + least), 1.0))


def paired(kind: str, items: np.ndarray, base: np.ndarray) -> Interval:
    """Specimen minus base on the same items, with its interval."""
    if kind == "rate":
        gained = int(((items == 1) & (base == 0)).sum())
        lost = int(((items == 0) & (base == 1)).sum())
        return tango(gained, lost, len(items))
    if kind == "constant":
        difference = float(items[0] - base[0])
        return Interval(difference, difference, difference)
    if kind == "pairs":
        return Interval(*jackknife(items - base))
    both = np.concatenate([np.atleast_2d(items.T).T, np.atleast_2d(base.T).T], axis=1)
    width = both.shape[1] // 2

    def difference(rows: np.ndarray) -> float:
        return estimate(kind, rows[:, :width].squeeze(-1) if width == 1 else rows[:, :width]) - estimate(
            kind, rows[:, width:].squeeze(-1) if width == 1 else rows[:, width:]
        )

    found = _bootstrap(difference, both)
    if kind not in SHARES:
        return found
    found = _both_ends(kind, found)
    least = tango(0, 0, len(items)).high
    return Interval(found.value, min(found.low, found.value - least), max(found.high, found.value + least))


def _both_ends(kind: str, found: Interval) -> Interval:
    """Twice as wide where each pair of items was counted at both (see audit.utilities.jackknife)."""
    stretch = 2 if kind in OF_PAIRS else 1
    return Interval(found.value, *(found.value + stretch * (end - found.value) for end in (found.low, found.high)))


def estimate(kind: str, items: np.ndarray) -> float:
    """The point estimate: a mean, or for ratios the sum of numerators over the sum of denominators."""
    if kind in RATIOS:
        return float(items[:, 0].sum() / items[:, 1].sum())
    return float(items.mean())


def minimum_detectable(kind: str, items: np.ndarray, base: np.ndarray) -> float:
    """Smallest true difference that 80% of such audits would find at the 5% level, from the discordance seen here.

    For rates 2.8 sqrt(d/n) with d the share of discordant pairs; d is taken as at least one pair in n, since a sample
    without discordance does not show that there is none.
    """
    n = len(items)
    if n < 2:
        return float("inf")
    smallest = POWER_Z * (_discordance(kind, items, base) / n) ** 0.5
    return min(smallest, 1.0) if kind == "rate" else smallest


def needed(kind: str, items: np.ndarray, base: np.ndarray, distance: float, sides: int = 1) -> int:
    """Items at which 80% of audits as noisy as this one have an interval that ends within `distance`, on one side or on both.

    A mean's interval reaches z sd / sqrt(n). Those of rates and shares reach further where few pairs are discordant (Wilson's
    approximation to the score interval): z^2 / 2n + z sqrt(d / n + z^2 / 4n^2), which without any is Tango's z^2 / n.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    spread, power = _discordance(kind, items, base), norm.isf(0.2 / sides)

    def short(root: float) -> float:  # root: 1 / sqrt(n)
        least = Z * root / 2 if kind in SHARES else 0.0
        return root * (Z * (least + (spread + least**2) ** 0.5) + power * spread**0.5) - max(distance, 1e-6)

    return 1 if short(1.0) <= 0 else int(np.ceil(brentq(short, 0.0, 1.0, xtol=1e-15) ** -2))


def _discordance(kind: str, items: np.ndarray, base: np.ndarray) -> float:
    """Variance of one item's paired difference."""
    if kind == "rate":
        return max(float((items != base).mean()), 1 / len(items))
    if kind == "constant":
        return 0.0
    if kind == "pairs":
        return 4 * float(np.var(items - base, ddof=1)) if len(items) > 1 else 0.0
    if kind in RATIOS:
        residual = [r[:, 0] - estimate(kind, r) * r[:, 1] for r in (items, base)]
        scaled = residual[0] / items[:, 1].mean() - residual[1] / base[:, 1].mean()
        return (4 if kind in OF_PAIRS else 1) * float(np.var(scaled, ddof=1)) if len(items) > 1 else 0.0
    return float(np.var(items - base, ddof=1)) if len(items) > 1 else 0.0


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval for one rate (from scipy)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


def tango(gained: int, lost: int, n: int) -> Interval:
    """Tango's score interval for a paired difference of rates, (gained - lost) / n.

    gained: items right only with the specimen; lost: right only with the base; n: all items.
    """
    from scipy.optimize import brentq

    value = (gained - lost) / n

    def excess(delta: float, target: float) -> float:
        return tango_statistic(gained, lost, n, delta) - target

    edge = 1 - 1e-9
    low = -1.0 if excess(-edge, Z) < 0 else brentq(excess, -edge, value, args=(Z,))
    high = 1.0 if excess(edge, -Z) > 0 else brentq(excess, value, edge, args=(-Z,))
    return Interval(value, min(low, value), max(high, value))


def tango_statistic(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's z of the hypothesis that the paired difference is `delta`; positive where the data lie above it."""
    a = 2 * n
    b = -gained - lost + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    root = max(b * b - 4 * a * c, 0.0) ** 0.5
    q21 = (root - b) / (2 * a)
    variance = n * (2 * q21 + delta * (1 - delta))
    numerator = gained - lost - n * delta
    if variance <= 0:
        return 0.0 if numerator == 0 else float(np.sign(numerator)) * np.inf
    return float(numerator / variance**0.5)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of no paired difference (binomial on the discordant pairs, from scipy)."""
    from scipy.stats import binomtest

    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def p_beyond(kind: str, items: np.ndarray, base: np.ndarray, bound: float, direction: int) -> float:
    """One-sided p-value of 'the true difference is not beyond `bound`' in `direction` (+1 above, -1 below).

    Small values say that it is beyond. Rates: Tango's score statistic at the bound. Others: a normal approximation with
    the standard error of the paired difference.
    """
    from scipy.stats import norm

    if kind == "rate":
        gained = int(((items == 1) & (base == 0)).sum())
        lost = int(((items == 0) & (base == 1)).sum())
        return float(norm.sf(direction * tango_statistic(gained, lost, len(items), bound)))
    delta = estimate(kind, items) - estimate(kind, base)
    error = (_discordance(kind, items, base) / len(items)) ** 0.5
    distance = direction * (delta - bound)
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(norm.sf(distance / error))


def holm(p_values: dict[str, float], level: float = 0.05) -> set[str]:
    """Names whose hypothesis Holm's step-down procedure rejects at family-wise `level` (Holm 1979)."""
    rejected = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for rank, name in enumerate(ordered):
        if p_values[name] > level / (len(ordered) - rank):
            break
        rejected.add(name)
    return rejected


def _bootstrap(statistic, rows: np.ndarray) -> Interval:
    """BCa interval over rows, widened for few; a sample without spread has an interval of no width, one row an unbounded one.

    Of fewer than FEW rows the resamples hold hardly more than the rows, and Student's interval (jackknife) is the least.
    """
    from scipy.stats import bootstrap, norm, t

    value, n = statistic(rows), len(rows)
    if n < 2:
        return Interval(value, -np.inf, np.inf)
    jackknife = np.array([statistic(np.delete(rows, i, axis=0)) for i in range(n)])
    if np.ptp(jackknife) < 1e-12 * max(1.0, abs(value)):
        return Interval(value, value, value)
    edge = max(norm.cdf((n / (n - 1)) ** 0.5 * t.ppf(0.025, n - 1)), 1 / RESAMPLES)
    indices = np.arange(n)
    found = bootstrap(
        (indices,),
        lambda chosen: statistic(rows[chosen]),
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * edge,
        method="BCa",
        vectorized=False,
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if n < FEW:
        reach = t.ppf(0.975, n - 1) * ((n - 1) * float(np.var(jackknife))) ** 0.5
        low, high = min(low, value - reach), max(high, value + reach)
    return Interval(value, low, high)
