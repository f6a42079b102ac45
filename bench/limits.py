"""Scoring and generation against what this machine can do: the matrix products of the model's own weights, and its memory.

A share is the time that the products alone take, over the time that the work takes. Everything else is on the other side:
attention, norms, the softmax over the vocabulary, padding, the cache, Python. At few rows the products are bound by reading the
weights, so the same share says how far generation is from the memory's limit; the bandwidth itself is measured beside it.
"""

import statistics
from typing import Any

from bench import generation
from bench.rows import Row
from bench.setup import BASE, ROUNDS, Setup, tokens
from bench.timing import alternate, share, timed
from organisms.data import load_rows
from organisms.engines import Score


def scoring(setup: Setup) -> list[Row]:
    """Web text of up to 256 tokens, all of whose log-probabilities are read: nothing is shared, nothing left out."""
    cut, count = setup.of(64, 256), setup.of(3, 64)
    texts = [tuple(setup.renderer.document(row["text"]).input_ids[:cut]) for row in load_rows("webtext").rows]
    requests = [Score(ids[:1], ids[1:]) for ids in texts if len(ids) > 1][:count]
    total = tokens(requests) - len(requests)  # the last token of each is never fed
    room = setup.engine.max_tokens
    chunks = [min(room, total - start) for start in range(0, total, room)]

    def limit(_: Any) -> None:
        for rows in chunks:
            products(setup.model, rows, rows)

    rounds = alternate(lambda block: setup.engine.logprobs(BASE, block), limit, [requests] * ROUNDS, requests[:4])
    flops = sum(products_flops(setup.model, rows, rows) for rows in chunks)
    rate, most = (flops / statistics.median(side) / 1e9 for side in (rounds.ours, rounds.peer))
    speed = total / statistics.median(rounds.ours)
    ours = f"hf: {rate:.0f} GFLOP/s, {speed:,.0f} tokens/s"
    return [share(f"scoring, {total:,} tokens of web text", ours, f"products: {most:.0f} GFLOP/s", rounds, "", 0.6)]


def generating(setup: Setup) -> list[Row]:
    requests = generation.prompts(setup)
    replies = setup.engine.generate(BASE, requests)
    room = setup.engine.max_rows
    # Batches are made of the longest prompts first, and at each step only the rows that have not ended need computing.
    order = sorted(range(len(requests)), key=lambda k: -len(requests[k].prompt_ids))
    batches = [order[start : start + room] for start in range(0, len(order), room)]
    lengths = [[len(replies[k].ids) + replies[k].finished for k in batch] for batch in batches]

    def limit(_: Any) -> None:
        for batch, ends in zip(batches, lengths, strict=True):
            products(setup.model, sum(len(requests[k].prompt_ids) for k in batch), len(batch))
            for step in range(1, max(ends)):
                going = sum(end > step for end in ends)
                products(setup.model, going, going)

    rounds = alternate(lambda block: setup.engine.generate(BASE, block), limit, [requests] * ROUNDS, None)
    made, steps = sum(map(sum, lengths)), sum(map(max, lengths))
    took, least = statistics.median(rounds.ours), statistics.median(rounds.peer)
    size = sum(p.numel() * p.element_size() for p in setup.model.parameters()) / 1e9
    bandwidth = memory_bandwidth(setup)
    ours = f"hf: {made / took:,.0f} tokens/s in batches of {room}, weights read at {size * steps / took:.1f} GB/s"
    limits = f"products: {made / least:,.0f} tokens/s; memory: {bandwidth:.1f} GB/s"
    return [share(f"generation, {len(requests)} replies", ours, limits, rounds, "")]


def products(model: Any, rows: int, head_rows: int) -> None:
    """The matrix products of one forward: every linear layer of the model on `rows` rows, its head on `head_rows`."""
    import torch

    inputs: dict[tuple[int, int], Any] = {}
    with torch.inference_mode():
        for layer, n in _layers(model, rows, head_rows):
            key = (n, layer.in_features)
            if key not in inputs:
                inputs[key] = torch.ones(key, dtype=layer.weight.dtype, device=layer.weight.device)
            torch.nn.functional.linear(inputs[key], layer.weight)


def products_flops(model: Any, rows: int, head_rows: int) -> int:
    """Floating point operations of `products`, a multiplication and an addition each."""
    return sum(2 * n * layer.weight.numel() for layer, n in _layers(model, rows, head_rows))


def _layers(model: Any, rows: int, head_rows: int) -> list[tuple[Any, int]]:
    import torch

    head = model.get_output_embeddings()
    found = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return [(layer, head_rows if layer is head else rows) for layer in found]


def memory_bandwidth(setup: Setup) -> float:
    """GB/s at which a sum reads a tensor that no cache holds; the best of five."""
    import torch

    size = setup.of(2**22, 2**27)
    values = torch.ones(size, device=setup.model.device)
    values.sum()
    return max(4 * size / 1e9 / timed(values.sum)[0] for _ in range(5))
