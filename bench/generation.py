"""Replies: the transformers engine beside naive batches of `generate`, and vLLM beside the transformers engine."""

from importlib.util import find_spec

from audit.measures import shuffled
from bench import equal, plain
from bench.rows import Row, Skipped
from bench.setup import BASE, ROUNDS, Setup
from bench.timing import alternate, compared
from organisms.data import load_rows
from organisms.engines import Generate, NextToken

BATCH = 16


def naive(setup: Setup) -> list[Row]:
    requests = prompts(setup)

    def peer(block: list[Generate]):
        return plain.generated(setup.model, block, setup.renderer, setup.engine._pad_id, BATCH)

    rounds = alternate(lambda block: setup.engine.generate(BASE, block), peer, [requests] * ROUNDS, requests[:2])
    told = equal.replies(setup, requests, rounds.our_answers[-1], rounds.peer_answers[-1])
    return [compared(_name(requests), "hf", f"generate, batches of {BATCH}", rounds, told)]


def vllm(setup: Setup) -> list[Row]:
    """vLLM's start is not on the clock: one engine serves a whole run."""
    if find_spec("vllm") is None:
        raise Skipped("vLLM is not installed (extra [vllm])")
    from organisms.engines.load import EnginePlan, load

    engine = load(EnginePlan(name="vllm", max_length=2048), setup.base, setup.renderer)
    requests = prompts(setup)
    rounds = alternate(
        lambda block: engine.generate(BASE, block),
        lambda block: setup.engine.generate(BASE, block),
        [requests] * ROUNDS,
        requests[:2],
    )
    told = equal.replies(setup, requests, rounds.our_answers[-1], rounds.peer_answers[-1])
    rows = [compared(_name(requests), "vLLM", "hf", rounds, told)]
    ids = tuple(setup.renderer.continuation("The")[:1])
    labels = [NextToken(request.prompt_ids, ids) for request in requests]
    rounds = alternate(
        lambda block: engine.next_token(BASE, block),
        lambda block: setup.engine.next_token(BASE, block),
        [labels] * ROUNDS,
        labels[:2],
    )
    told = equal.logprobs(rounds.our_answers[-1], rounds.peer_answers[-1], setup.tolerance)
    return [*rows, compared(f"next-token probabilities, {len(labels)} prompts", "vLLM", "hf", rounds, told)]


def prompts(setup: Setup) -> list[Generate]:
    """Instructions, answered at length: replies of unlike length, as the full suite has them."""
    count, limit = setup.of(4, 32), setup.of(3, 160, 320)
    chosen = shuffled(load_rows("instructions").rows, count, lambda row: row["id"])
    return [Generate(tuple(setup.renderer.ask(row["prompt"])), limit) for row in chosen]


def _name(requests: list[Generate]) -> str:
    return f"generation, {len(requests)} instructions, up to {requests[0].max_new_tokens} tokens"
