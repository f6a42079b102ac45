"""Utilities of items from pairwise comparisons, how decided they are, how far to be believed. Knows nothing of models."""

from dataclasses import dataclass

import numpy as np
import scipy  # its submodules load when first used


@dataclass(frozen=True)
class Comparisons:
    """Rows: items `first` (m,) in slot A and `second` (m,) in slot B, `p` (m,) the probability that slot A's is preferred."""

    first: np.ndarray
    second: np.ndarray
    p: np.ndarray

    def __post_init__(self):
        if not ((self.p >= 0) & (self.p <= 1) & (self.first != self.second)).all():
            raise ValueError("every comparison needs two different items and a p from 0 to 1; drop the rows that lack them")

    def rows(self, chosen: np.ndarray) -> "Comparisons":
        return Comparisons(self.first[chosen], self.second[chosen], self.p[chosen])


@dataclass(frozen=True)
class Fit:
    """`mu` (n,) in sds of one item; `slot_bias` beta on the probit scale; `nll` in nats, summed, without the ridge."""

    mu: np.ndarray
    slot_bias: float
    nll: float
    iterations: int
    converged: bool


def fit(n_items: int, comparisons: Comparisons, slot: bool = True, ridge: float = 1e-6, start: Fit | None = None) -> Fit:
    """Thurstone's Case V (1927) with a slot intercept: P(first preferred) = Phi((mu_first - mu_second) / sqrt2 + beta).

    Minimises cross entropy with soft labels, summed, + ridge/2 (|mu|^2 + beta^2), which is convex: Newton (the Hessian is the
    graph's Laplacian, weighted by the rows' curvatures), conjugate gradients, line search. The ridge alone keeps
    p of 0 and 1 finite: none is clipped. Connected parts of the graph get mean 0 each; their distances are not measured.
    """
    m, sparse = len(comparisons.p), scipy.sparse
    columns = np.stack([comparisons.first, comparisons.second, np.full(m, n_items)], axis=1).ravel()
    values = np.tile([0.5**0.5, -(0.5**0.5), float(slot)], m)
    design = sparse.csr_array((values, columns, np.arange(m + 1) * 3), shape=(m, n_items + 1))
    transposed = design.T.tocsr()

    def evaluate(theta: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
        loss, slope, curvature = cross_entropy(design @ theta, comparisons.p)
        return loss.sum() + ridge / 2 * theta @ theta, loss.sum(), transposed @ slope + ridge * theta, curvature

    theta = np.zeros(n_items + 1) if start is None else np.append(start.mu, slot * start.slot_bias)
    objective, nll, gradient, curvature = evaluate(theta)
    for iteration in range(101):
        largest = np.abs(gradient).max()  # of the sum over rows: at 50,000 of them float64 resolves some 1e-13
        if largest < 1e-8 or iteration == 100:
            break
        hessian = transposed.multiply(curvature) @ design + ridge * sparse.eye_array(n_items + 1)
        jacobi = sparse.diags_array(1 / hessian.diagonal())
        step = sparse.linalg.cg(hessian, -gradient, rtol=min(0.1, largest**0.5), M=jacobi)[0]
        # Near the minimum the decrease is below what a sum of this size resolves: 1e-14 of it is not a rise.
        while (found := evaluate(theta + step))[0] > objective + 1e-4 * gradient @ step + 1e-14 * (1 + objective):
            step = step / 2
        theta, (objective, nll, gradient, curvature) = theta + step, found
    part = sparse.csgraph.connected_components((transposed @ design)[:-1, :-1], directed=False)[1]
    mu = theta[:-1] - (np.bincount(part, theta[:-1]) / np.bincount(part))[part]
    return Fit(mu, float(theta[-1]), float(nll), iteration, bool(largest < 1e-8))


def cross_entropy(z: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-p log Phi(z) - (1 - p) log Phi(-z), its slope and its curvature (> 0) in z; inverse Mills ratios never overflow."""
    above, below = scipy.special.log_ndtr(z), scipy.special.log_ndtr(-z)
    up, down = ((2 / np.pi) ** 0.5 / scipy.special.erfcx(side / 2**0.5) for side in (-z, z))  # phi / Phi at z and at -z
    return -p * above - (1 - p) * below, (1 - p) * down - p * up, p * up * (up + z) + (1 - p) * down * (down - z)


def per_item(mu: np.ndarray, variance: np.ndarray | float = 1.0) -> np.ndarray:
    """(n,): an item's mean over its n - 1 pairs of |2 Phi((mu_i - mu_j) / sqrt(v_i + v_j)) - 1|; v = 1 in Case V."""
    v = np.broadcast_to(variance, len(mu))
    blocks = (slice(i, i + 128) for i in range(0, len(mu), 128))  # 128 x 2,000 numbers stay in the cache
    sums = [scipy.special.erf(np.abs(mu[b, None] - mu) / np.sqrt(2 * (v[b, None] + v))).sum(axis=1) for b in blocks]
    return np.concatenate(sums) / (len(mu) - 1)


def decisiveness(mu: np.ndarray) -> float:
    """D, the mean over all pairs of |2 Phi((mu_i - mu_j) / sqrt2) - 1|: 0 is indifferent, 1 certain of every choice."""
    return float(per_item(mu).mean())


def split_halves(n_items: int, comparisons: Comparisons, rng: np.random.Generator, splits: int = 4) -> np.ndarray:
    """(splits, 2, n): utilities by random halves of the pairs, both orders together; exactly 0 where a half never asked."""
    low, _, pair, *_ = _pairs(comparisons)
    found = np.zeros((splits, 2, n_items))
    for k in range(splits):
        half = (rng.permutation(len(low)) < len(low) // 2)[pair]
        found[k] = [fit(n_items, comparisons.rows(side)).mu for side in (half, ~half)]
    return found


def reliability(halves: np.ndarray) -> float:
    """Share of var(mu) that is not noise: Spearman-Brown 2r / (1 + r), r the plain mean over `split_halves` (Fisher's z would
    weigh lucky ones up) of Pearson's correlation over items that both halves asked.
    """
    found = np.zeros(len(halves))
    for k, mu in enumerate(halves):
        mu = mu[:, (mu != 0).all(axis=0)]
        if mu.shape[1] > 2 and mu.std(axis=1).min() > 1e-6:  # less is rounding, which must not correlate with itself
            found[k] = np.corrcoef(mu)[0, 1]
    r = max(float(found.mean()), 0.0)
    return 2 * r / (1 + r)


def shrunk(mu: np.ndarray, reliability: float) -> np.ndarray:
    """mu sqrt(reliability): as estimate = truth + noise, var(estimate) = var(truth) / reliability, and the root brings the
    spread, on which D depends, back to the truth's. mu reliability (Kelley 1927) guesses each item best, but too near together.
    """
    return mu * reliability**0.5


def shrunk_per_item(mu: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """(n,): what `per_item` gives of the shrunk mu, with what leaving the item out does to the reliability added, so that the
    jackknife sees that too: it scales all of mu. The mean is D. Of 20 items with 5 noisy pairs each (reliability 0.5) two
    specimens alike differ by 0 within the interval in 94% of audits; in 57% where the reliability is taken for certain.
    """
    n, whole = len(mu), reliability(halves)
    without = np.array([reliability(np.delete(halves, k, axis=2)) for k in range(n)])
    grid = np.linspace(min(whole, without.min()), max(whole, without.max()), 9)  # D is smooth in it
    d = np.interp(without, grid, [decisiveness(shrunk(mu, r)) for r in grid]) if np.ptp(grid) > 1e-12 else np.zeros(n)
    return per_item(shrunk(mu, whole)) - (n - 2) / 2 * (d - d.mean())


def floor(n_items: int, comparisons: Comparisons, rng: np.random.Generator, draws: int = 10, slot: bool = True) -> float:
    """The decisiveness that this design and these labels read where no order lies behind them; mean over `draws`.

    A pair's two items trade names at random, in all its rows; every label stays with its slot. Asked in both orders, this flips
    the sign of the preference (p_ij - p_ji)/2 and keeps the slot's (p_ij + p_ji)/2; asked in one, it is what a model without
    preferences answers, the same p for slot A whatever is in it. Compare with the unshrunk D of the same `slot`. Plain fit of
    one order and a habit q: c / sqrt(edges an item), c = 2 (2q - 1) / sqrt(pi) by expansion at mu = 0.
    """
    low, _, pair, *_ = _pairs(comparisons)
    found = []
    for _ in range(draws):
        trade = (rng.random(len(low)) < 0.5)[pair]
        first, second = np.where(trade, (comparisons.second, comparisons.first), (comparisons.first, comparisons.second))
        found.append(decisiveness(fit(n_items, Comparisons(first, second, comparisons.p), slot).mu))
    return float(np.mean(found))


def jackknife(per_item_values: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high): a mean over pairs and its 95% interval by the item jackknife, from each item's mean d over its pairs.

    Without item k it is D_(k) = (n(n-1) D - 2(n-1) d_k) / ((n-1)(n-2)) = (n D - 2 d_k) / (n-2), so SE^2 = (n-1)/n sum (D_(k) -
    mean)^2 = 4 (n-1)^2 / (n (n-2)^2) var(d), 2 sd(d) / sqrt(n) for large n (U-statistic of degree 2: Arvesen 1969). Student t,
    n - 1. Covers the choice of items and the noise in each one's mu, not a refit; of what `shrunk_per_item` gives also that of
    the reliability. (Bootstraps over edges are biased up; so is a refit without an item's pairs: coverage 100%.)
    """
    n, d = len(per_item_values), per_item_values
    reach = scipy.special.stdtrit(n - 1, 0.975) * 2 * (n - 1) / (n - 2) * d.std(ddof=1) / n**0.5 if n > 2 else np.inf
    return float(d.mean()), float(d.mean() - reach), float(d.mean() + reach)


def paired(per_item_own: np.ndarray, per_item_base: np.ndarray) -> tuple[float, float, float]:
    """Own minus base on the same items, by the same jackknife on the items' differences."""
    return jackknife(per_item_own - per_item_base)


def _pairs(comparisons: Comparisons) -> tuple[np.ndarray, ...]:
    """Lower and higher item (k,); each row's pair (m,); margin (k,), the mean over orders of P(lower preferred) - 1/2; (2, b),
    slot A's p with the lower and with the higher item in it, of pairs asked in both orders. Rows of one order are averaged.
    """
    (low, high), pair = np.unique(np.sort([comparisons.first, comparisons.second], axis=0), axis=1, return_inverse=True)
    cell = 2 * pair + (comparisons.first > comparisons.second)
    counts, sums = (np.bincount(cell, weight, 2 * len(low)).reshape(-1, 2).T for weight in (None, comparisons.p))
    orders = sums / np.where(counts, counts, np.nan)
    return low, high, pair, np.nanmean([orders[0] - 0.5, 0.5 - orders[1]], axis=0), orders[:, counts.all(axis=0)]


def order_consistency(comparisons: Comparisons) -> float:
    """Share of both-order pairs that prefer the same item in both; p = 1/2 prefers none. nan without such pairs."""
    ahead, behind = _pairs(comparisons)[-1]
    return float(((ahead - 0.5) * (0.5 - behind) > 0).mean()) if len(ahead) else float("nan")


def position_bias(comparisons: Comparisons) -> float:
    """Mean over both-order pairs of p_ij + p_ji - 1: 1 is always slot A, -1 always slot B. nan without such pairs."""
    ahead, behind = _pairs(comparisons)[-1]
    return float((ahead + behind - 1).mean()) if len(ahead) else float("nan")


def triad_transitivity(n_items: int, comparisons: Comparisons) -> float:
    """Share of triads, all three pairs asked, that are not cyclic by majority over orders; chance is 0.75, nan without any.
    Counted, not sampled: A_ij = 1 where i is preferred to j, S = A + A'; tr(A^3)/3 of tr(S^3)/6 triads are cyclic (Kendall and
    Babington Smith 1940, here for incomplete designs). A pair without a majority forms none.
    """
    low, high, _, margin, _ = _pairs(comparisons)
    ends = np.where(margin > 0, (low, high), (high, low))[:, margin != 0]
    wins = scipy.sparse.csr_array((np.ones(ends.shape[1]), tuple(ends)), shape=(n_items, n_items))
    cyclic, asked = ((wins @ wins) * wins.T).sum() / 3, (((wins + wins.T) @ (wins + wins.T)) * (wins + wins.T)).sum() / 6
    return float(1 - cyclic / asked) if asked else float("nan")


def feedback_arc(mu: np.ndarray, comparisons: Comparisons) -> float:
    """Share of the pairs' weight |p - 1/2| that agrees with the order of mu (equal counts half): 1 - its feedback-arc share."""
    low, high, _, margin, _ = _pairs(comparisons)
    agrees = (np.abs(margin) + np.sign(mu[low] - mu[high]) * margin).sum() / 2
    return float(agrees / np.abs(margin).sum()) if margin.any() else float("nan")


def held_out(n_items: int, comparisons: Comparisons, rng: np.random.Generator, folds: int = 5) -> tuple[float, float]:
    """(Brier, log loss in nats), a row, of pairs left out of the fit in both orders: mean (prediction - p)^2, cross entropy."""
    low, _, pair, *_ = _pairs(comparisons)
    fold, z, last = (rng.permutation(len(low)) % folds)[pair], np.empty(len(pair)), None
    for k in range(folds):
        last = fit(n_items, comparisons.rows(fold != k), start=last)
        z = np.where(fold == k, (last.mu[comparisons.first] - last.mu[comparisons.second]) / 2**0.5 + last.slot_bias, z)
    return float(((scipy.special.ndtr(z) - comparisons.p) ** 2).mean()), float(cross_entropy(z, comparisons.p)[0].mean())


def deviance_r2(comparisons: Comparisons, fitted: Fit) -> float:
    """1 - deviance / deviance of the slot-only model (mean p in every row), less the entropy of the soft labels in both."""
    p, mean, entr = comparisons.p, comparisons.p.mean(), scipy.special.entr
    least, slot_only = entr([p, 1 - p]).sum(), len(p) * entr([mean, 1 - mean]).sum()
    return float(1 - (fitted.nll - least) / (slot_only - least)) if slot_only - least > 1e-9 else float("nan")


def next_pairs(n_items: int, comparisons: Comparisons, pairs_per_round: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs not asked before in either order, fewer where they run out; the item with the fewest pairs draws the next partner,
    with weight 0.85 p (1 - p) + 0.15, p the chance by the fit so far, slot free: mostly close calls (Elo pairing).
    """
    mu, asked, found = fit(n_items, comparisons).mu, np.eye(n_items, dtype=bool), []
    asked[comparisons.first, comparisons.second] = asked[comparisons.second, comparisons.first] = True
    counts = asked.sum(axis=1) + rng.random(n_items)  # ties at random
    while len(found) < pairs_per_round and not asked.all():
        i = int(counts.argmin())
        p = scipy.special.ndtr((mu[i] - mu) / 2**0.5)
        weight = np.where(asked[i], 0.0, 0.85 * p * (1 - p) + 0.15)
        found.append((i, int(rng.choice(n_items, p=weight / weight.sum()))))
        asked[found[-1]] = asked[found[-1][::-1]] = True
        counts[list(found[-1])] += 1
    return found


def fit_utility_engineering(n_items: int, comparisons: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """(mu, sigma), each (n,): P(i > j) = Phi((mu_i - mu_j) / sqrt(sigma_i^2 + sigma_j^2)), mu of mean 0 and variance 1.
    Mazeika et al. 2025, arXiv 2502.08640, on labels averaged over orders: another number than D, never to be mixed with it.
    Theirs: Adam, 1,000 epochs. Ours: L-BFGS and a ridge, as a sigma may run off; no self-made labels for unasked pairs.
    """
    low, high, _, margin, _ = _pairs(comparisons)
    theta = scipy.optimize.minimize(loss_ue, np.zeros(2 * n_items), (low, high, margin + 0.5), "L-BFGS-B", jac=True).x
    mu, sigma = theta[:n_items], np.exp(theta[n_items:] / 2)
    scale = mu.std(ddof=1) + 1e-5  # both theirs
    return (mu - mu.mean()) / scale, sigma / scale


def loss_ue(theta: np.ndarray, low: np.ndarray, high: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
    """Cross entropy over unordered pairs, with ridge, and its gradient in theta = (mu (n,), log sigma^2 (n,))."""
    n, ridge = len(theta) // 2, 1e-6
    total = np.exp(theta[n + low]) + np.exp(theta[n + high])
    z = (theta[low] - theta[high]) / np.sqrt(total)
    loss, slope, _ = cross_entropy(z, p)
    by_mu, by_total = slope / np.sqrt(total), -slope * z / (2 * total)
    terms = [by_mu, -by_mu, by_total * np.exp(theta[n + low]), by_total * np.exp(theta[n + high])]
    gradient = np.bincount(np.concatenate([low, high, n + low, n + high]), np.concatenate(terms), 2 * n)
    return float(loss.sum() + ridge / 2 * theta @ theta), gradient + ridge * theta


def decisiveness_ue(mu: np.ndarray, sigma: np.ndarray) -> float:
    """Mean over all pairs of |2 Phi((mu_i - mu_j) / sqrt(sigma_i^2 + sigma_j^2)) - 1|, of fit_utility_engineering."""
    return float(per_item(mu, sigma**2).mean())
