"""Whether two sides gave the same results; a row whose sides did not has no ratio."""

from collections.abc import Sequence

from bench.rows import Unequal
from organisms.engines import Completion, Generate, NextToken

Values = Sequence[Sequence[float]]


def logprobs(ours: Values, theirs: Values, tolerance: float) -> str:
    """How far log-probabilities lie apart at most, in words. Raises Unequal where that is more than `tolerance` nats."""
    furthest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        furthest = max(furthest, *(abs(x - y) for x, y in zip(a, b, strict=True)))
    if not furthest <= tolerance:  # nan fails as well
        raise Unequal(f"log-probabilities lie up to {furthest:.2g} nats apart, {tolerance:g} is rounding")
    return f"at most {furthest:.0e} nats apart"


def picks(ours: Values, theirs: Values, tolerance: float) -> str:
    """`logprobs`, and the likeliest choice of every row, which may differ only where the two are tied within rounding."""
    told, tied = logprobs(ours, theirs, tolerance), 0
    for a, b in zip(ours, theirs, strict=True):
        one, other = (max(range(len(row)), key=row.__getitem__) for row in (a, b))
        if one != other:
            if abs(a[one] - a[other]) > 2 * tolerance:
                raise Unequal(f"another choice is picked: {a} against {b}")
            tied += 1
    return f"{len(ours) - tied} of {len(ours)} picks, {told}" + (f", {tied} tied" if tied else "")


def replies(setup, requests: Sequence[Generate], ours: Sequence[Completion], theirs: Sequence[Completion]) -> str:
    """Greedy replies, token by token; from a near-tie on, where rounding decides, two replies may go separate ways."""
    from bench.setup import BASE

    same, ties = 0, []
    stop = setup.renderer.stop_ids[0]
    for request, a, b in zip(requests, ours, theirs, strict=True):
        if (a.ids, a.finished) == (b.ids, b.finished):
            same += 1
            continue
        at = next((k for k, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y), min(len(a.ids), len(b.ids)))
        chosen = tuple(reply.ids[at] if at < len(reply.ids) else stop for reply in (a, b))
        ties.append(NextToken((*request.prompt_ids, *a.ids[:at]), chosen))
    for one, other in setup.engine.next_token(BASE, ties) if ties else ():
        if not abs(one - other) <= setup.tolerance:
            raise Unequal(f"a reply differs where its tokens lie {abs(one - other):.2g} nats apart")
    return f"{same} of {len(requests)} replies" + (f", {len(ties)} part at a tie" if ties else "")
