"""Which first tokens several requests have in common, so that they are computed once for all of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def distinct(prompts: Sequence[Ids]) -> int:
    """Tokens to compute where every beginning that prompts have in common is computed once, as by vLLM's prefix cache."""
    rows = sorted(prompts)
    return sum(len(row) - _common(before, row) for before, row in zip([(), *rows], rows, strict=False))


@dataclass(frozen=True)
class Plan:
    """Which tokens are computed once, and in which batches the rests are computed.

    prefixes: of each row, how many first tokens; blocks: indices in batches, which go one after the other while what their
    prefixes left in the cache is kept; cost: by `Room.cost`.
    """

    prefixes: list[int]
    blocks: list[list[list[int]]]
    cost: float

    @property
    def batches(self) -> list[list[int]]:
        return [batch for block in self.blocks for batch in block]


def planned(prompts: Sequence[Ids], lengths: Sequence[int], room: Room, sharing: bool = True) -> Plan:
    """The cheapest of a few plans. `lengths`: tokens of each whole row.

    What prompts share may be too little for the padding and the forwards that sharing brings along: all that can be shared is
    held against what saves at least so many tokens, and against nothing.
    """
    choices = [[0] * len(prompts)]
    if sharing and len(prompts) > 1:
        most = shared(prompts)
        sharers = Counter(prompt[:n] for prompt, n in zip(prompts, most, strict=True))
        saved = [n * (sharers[prompt[:n]] - 1) for prompt, n in zip(prompts, most, strict=True)]
        for least in (0, room.overhead, 4 * room.overhead):
            choices.append([n if tokens >= least else 0 for n, tokens in zip(most, saved, strict=True)])
        alike = _common(min(prompts), max(prompts))
        choices.append([alike if alike >= LEAST else 0] * len(prompts))
    plans = [plan(prompts, lengths, prefixes, room) for prefixes in map(list, dict.fromkeys(map(tuple, choices)))]
    return min(plans, key=lambda one: one.cost)


def plan(prompts: Sequence[Ids], lengths: Sequence[int], prefixes: list[int], room: Room) -> Plan:
    """The plan for prefixes of these lengths: what is kept is computed as planned itself, then the rests of a block."""
    sharers: dict[Ids, list[int]] = {}
    for i, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
        sharers.setdefault(prompt[:prefix], []).append(i)
    order = sorted(sharers, key=lambda one: (-len(one), one))
    rests = [sum(lengths[i] - prefixes[i] for i in sharers[one]) for one in order]
    once = _common(min(order), max(order))
    blocks, cost = [], 0.0
    for run in cheapest(len(order), lambda start: _growing_block(order, rests, start, room, once))[0]:
        kept = [order[k] for k in run]
        rows = [i for one in kept for i in sharers[one]]
        batches, more = _batches(rows, [lengths[i] - prefixes[i] for i in rows], len(kept[0]), room)
        blocks.append(batches)
        cost += more + (planned(kept, list(map(len, kept)), room).cost if kept[0] else 0)
    return Plan(prefixes, blocks, cost)


def _growing_block(prefixes: list[Ids], rests: list[int], start: int, room: Room, once: int) -> Iterator[tuple[int, float]]:
    """(end, cost) of blocks prefixes[start:end], the longest first, whose keys and values may be kept together.

    A block costs a forward more, computes again the `once` tokens that all prefixes begin with, and has rests attend to padding
    up to its longest prefix. rests: tokens behind each prefix. Rows without one are a block of their own.
    """
    longest, behind = len(prefixes[start]), 0
    for k in range(start, len(prefixes)):
        if k > start and (not prefixes[k] or (k + 1 - start) * longest > room.cached):
            return
        behind += rests[k]
        yield k + 1, room.overhead + once + behind * longest / room.attended


def _batches(rows: list[int], rests: list[int], prefix: int, room: Room) -> tuple[list[list[int]], float]:
    """(rows in batches, their cost), those with the longest rests first. prefix: tokens that are cached before each rest."""
    order = sorted(range(len(rows)), key=lambda k: (-rests[k], rows[k]))

    def growing(start: int) -> Iterator[tuple[int, float]]:
        longest = rests[order[start]]
        for end in range(start + 1, len(order) + 1):
            count = end - start
            if not room.holds(count, longest) or (prefix and count > 1 and count * (prefix + longest) > room.cached):
                return
            yield end, room.cost(count, longest, prefix)

    runs, cost = cheapest(len(order), growing)
    return [[rows[order[k]] for k in run] for run in runs], cost
