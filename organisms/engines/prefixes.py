"""Which first tokens several requests have in common, so that they are computed once for all of them."""

from collections import Counter
from collections.abc import Iterator, Sequence

from organisms.engines.batching import Room, cheapest

LEAST = 8  # shorter prefixes are not worth a second forward
DEEPEST = 64  # branchings followed before a range is taken as one group

Ids = tuple[int, ...]


def shared(prompts: Sequence[Ids]) -> list[int]:
    """For each prompt how many of its first tokens are computed once for its group; 0 where it stands alone.

    Prompts of a group share `prompt[:length]`. Groups are chosen on the prompts' prefix tree, at each branching the larger
    of what one group saves (depth x (prompts - 1) tokens) and what its branches save together, to which comes that their
    prefixes begin alike (`header`).
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    rows = [prompts[i] for i in order]
    lengths = [0] * len(prompts)
    for low, high, depth in _best(rows, 0, len(rows), 0)[1]:
        for index in order[low:high]:
            lengths[index] = depth
    return lengths


def _best(rows: list[Ids], low: int, high: int, level: int) -> tuple[int, list[tuple[int, int, int]]]:
    """(tokens saved, groups as (low, high, depth)) of the sorted rows[low:high]."""
    if high - low < 2:
        return 0, []
    depth = _common(rows[low], rows[high - 1])  # of sorted rows, the first and the last differ earliest
    whole = depth * (high - low - 1) if depth >= LEAST else 0
    saved, groups = 0, []
    if level < DEEPEST and rows[low] != rows[high - 1]:
        start = low
        for end in range(low + 1, high + 1):
            if end == high or rows[end][depth : depth + 1] != rows[start][depth : depth + 1]:
                more, found = _best(rows, start, end, level + 1)
                saved, groups = saved + more, groups + found
                start = end
    if depth >= LEAST and groups:
        saved += depth * (len(groups) - 1)
    if whole >= saved:
        return whole, [(low, high, depth)] if whole else []
    return saved, groups


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def header(prefixes: Sequence[Ids], room: Room) -> int:
    """How many first tokens all of a batch's prefixes have in common, where a forward for them alone pays; else 0."""
    return _once(len(prefixes), _common(min(prefixes), max(prefixes)), room)


def _once(count: int, alike: int, room: Room) -> int:
    return alike if alike >= LEAST and (count - 1) * alike > room.overhead else 0


def planned(
    prompts: Sequence[Ids], lengths: Sequence[int], room: Room, sharing: bool = True
) -> tuple[list[int], list[list[int]]]:
    """(first tokens of each row that are computed once for its group, indices in batches): the cheapest plan of a few.

    What prompts share may be too little for the padding and the forwards that sharing brings along: all that can be shared is
    held against what saves at least so many tokens, and against nothing. `lengths`: tokens of each whole row.
    """
    plans = [[0] * len(prompts)]
    if sharing and len(prompts) > 1:
        most = shared(prompts)
        sharers = Counter(prompt[:n] for prompt, n in zip(prompts, most, strict=True))
        saved = [n * (sharers[prompt[:n]] - 1) for prompt, n in zip(prompts, most, strict=True)]
        for least in (0, room.overhead, 4 * room.overhead):
            plans.append([n if tokens >= least else 0 for n, tokens in zip(most, saved, strict=True)])
        alike = _common(min(prompts), max(prompts))
        plans.append([alike if alike >= LEAST else 0] * len(prompts))
    made = [(plan, *prefix_batches(prompts, lengths, plan, room)) for plan in dict.fromkeys(map(tuple, plans))]
    prefixes, groups, _ = min(made, key=lambda plan: plan[2])
    return list(prefixes), groups


def prefix_batches(
    prompts: Sequence[Ids], lengths: Sequence[int], prefixes: Sequence[int], room: Room
) -> tuple[list[list[int]], float]:
    """(indices in batches that cost the least, their cost): forwards for a header, for the prefixes and for the rests.

    Rows that share never stand in one batch with rows that do not.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-prefixes[i], prompts[i][: prefixes[i]], prefixes[i] - lengths[i], i))
    rows = [prompts[i][: prefixes[i]] for i in order]
    rests = [lengths[i] - prefixes[i] for i in order]
    new = [k > 0 and row != rows[k - 1] for k, row in enumerate(rows)]
    # What each has in common with the one before it, all of them have: the least of these.
    common = [_common(rows[k - 1], row) if new[k] else len(row) for k, row in enumerate(rows)]

    def growing(start: int) -> Iterator[tuple[int, float]]:
        longest = alike = len(rows[start])
        rest, seen = 0, 1
        for k in range(start, len(rows)):
            if bool(rows[k]) != bool(longest):
                return
            if k > start:
                seen, alike = seen + new[k], min(alike, common[k])
            rest, count = max(rest, rests[k]), k + 1 - start
            fits = room.holds(count, rest) and (seen == 1 or seen * longest <= room.tokens)
            if not fits or (longest and count > 1 and count * (longest + rest) > room.cached):
                return
            once = _once(seen, alike, room)
            yield k + 1, room.cost(count, rest) + room.cost(seen, longest - once) + room.cost(1, once)

    runs, cost = cheapest(len(order), growing)
    return [[order[k] for k in run] for run in runs], cost
