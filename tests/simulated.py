"""Paired audits made up for the tests of statistics and verdicts."""

from functools import cache

import numpy as np
from scipy.stats import multinomial

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


TRUE_DAMAGE = 0.05


@cache
def normal_audits() -> list[tuple[np.ndarray, np.ndarray, Interval]]:
    """150 seeded audits of a mean over 20 to 40 items, all truly -TRUE_DAMAGE apart; items differ much, pairs little."""
    rng = np.random.default_rng(20240607)
    audits = []
    for n in rng.integers(20, 41, size=150):
        base = rng.normal(0.5, 1.0, n)
        own = base - TRUE_DAMAGE + rng.normal(0, 0.1, n)
        audits.append((own, base, statistics.paired("mean", own, base)))
    return audits
