"""Preferences: eliciting them beside plain loops over the same token ids, and the Case V fit beside Adam."""

from functools import partial
from typing import Any

import numpy as np

from audit import utilities
from audit.choices import ask_pairs, read
from audit.measures import Asked, Context, preferences
from audit.utilities import Comparisons
from bench import equal, plain
from bench.rows import Row, Unequal
from bench.setup import BASE, ROUNDS, Setup, parts
from bench.timing import alternate, compared
from organisms.engines import NextToken

BATCH = 16
AIMS = {1: 5.0, BATCH: 1.5}


def by_labels(setup: Setup) -> list[Row]:
    return [_elicited(setup, "labels", batch) for batch in AIMS]


def by_content(setup: Setup) -> list[Row]:
    return [_elicited(setup, "content", batch) for batch in AIMS]


def _elicited(setup: Setup, by: str, batch: int) -> Row:
    """The pairs of the quick suite, 100, each in both orders, as the measure asks them; 250 at full size."""
    sizes = preferences.SIZES["quick"]
    items, count = setup.of(8, sizes["items"], 100), setup.of(3, sizes["items"] * sizes["pairs"] // 2, 250)
    context = Context(BASE, setup.renderer, None, "quick", {})
    texts = {row["id"]: row["text"] for row in context.rows("outcomes").rows[:items]}
    names, nothing = list(texts), Comparisons(np.empty(0, int), np.empty(0, int), np.empty(0))
    drawn = utilities.next_pairs(len(names), nothing, count, np.random.default_rng(0))
    pairs = [(names[i], names[j]) for i, j in sorted(drawn)]
    blocks = [ask_pairs(context, texts, some, "pair", by) for some in parts(pairs)]

    def ours(block: list[Asked]) -> list[list[float]]:
        requests = [one.request for one in block]
        method = setup.engine.next_token if isinstance(requests[0], NextToken) else setup.engine.logprobs
        return method(BASE, requests)

    def peer(block: list[Asked]) -> list[list[float]]:
        return plain.scored(setup.model, [one.request for one in block], setup.engine._pad_id, batch)

    rounds = alternate(ours, peer, blocks, blocks[0][:4])
    nats = (_each(sum(side, [])) for side in (rounds.our_answers, rounds.peer_answers))
    told = equal.logprobs(*nats, setup.tolerance)
    apart = max(
        abs(one.p - other.p)
        for block, *both in zip(blocks, rounds.our_answers, rounds.peer_answers, strict=True)
        for one, other in zip(*(read(block, [{"logprobs": values} for values in side]) for side in both), strict=True)
    )
    name = f"preferences by {by}, {count} pairs in both orders in {ROUNDS} parts"
    loop = f"plain loop, {'one at a time' if batch == 1 else f'batches of {batch}'}"
    return compared(name, "hf", loop, rounds, f"p within {apart:.0e}, {told} a token", AIMS[batch])


def _each(rows: list[list[float]]) -> list[list[float]]:
    """Mean over a row's tokens, or labels, whose number is the same on both sides."""
    return [[sum(row) / len(row)] for row in rows]


def fit(setup: Setup) -> list[Row]:
    """Thurstone's Case V on simulated answers: 2,000 items in 50,000 rows, Newton beside Adam with 2,000 steps."""
    items, rows = setup.of(60, 2000), setup.of(1500, 50000)
    comparisons = simulated(items, rows)
    newton = partial(utilities.fit, items)
    rounds = alternate(newton, partial(_adam, items), [comparisons] * ROUNDS, None if setup.size == "small" else comparisons)
    apart = max(float(np.abs(a.mu - b).max()) for a, b in zip(rounds.our_answers, rounds.peer_answers, strict=True))
    if not apart <= 1e-4:
        raise Unequal(f"the two optima lie {apart:.1e} apart")
    name = f"Case V fit, {items:,} items, {rows:,} rows"
    return [compared(name, "Newton", "Adam, 2,000 steps", rounds, f"mu within {apart:.0e}", 10.0)]


def simulated(items: int, rows: int, seed: int = 0) -> Comparisons:
    """Answers of a model with preferences, a habit for the first slot, and noise; every pair in both orders."""
    from scipy.special import ndtr

    rng = np.random.default_rng(seed)
    mu = rng.normal(size=items)
    first = np.concatenate([np.arange(items), rng.integers(items, size=max(rows // 2 - items, 0))])
    second = (first + rng.integers(1, items, size=len(first))) % items
    first, second = np.concatenate([first, second]), np.concatenate([second, first])
    z = (mu[first] - mu[second]) / 2**0.5 + 0.4 + rng.normal(scale=0.5, size=len(first))
    return Comparisons(first, second, ndtr(z))


def _adam(items: int, comparisons: Comparisons, steps: int = 2000) -> Any:
    """The same loss and ridge by Adam at a rate that falls along a cosine; mu (items,) of mean 0."""
    import torch

    first, second, p = (torch.from_numpy(np.asarray(x)) for x in (comparisons.first, comparisons.second, comparisons.p))
    mu = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    slot = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([mu, slot], lr=0.05)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        z = (mu[first] - mu[second]) / 2**0.5 + slot
        loss = -(p * torch.special.log_ndtr(z) + (1 - p) * torch.special.log_ndtr(-z)).sum()
        (loss + 0.5e-6 * (mu.square().sum() + slot.square())).backward()
        optimiser.step()
        falling.step()
    found = mu.detach().numpy()
    return found - found.mean()
