"""Which first tokens several requests have in common, so that they are computed once for all of them."""

from collections.abc import Sequence

LEAST = 8  # shorter prefixes are not worth a second forward
DEEPEST = 64  # branchings followed before a range is taken as one group

Ids = tuple[int, ...]


def shared(prompts: Sequence[Ids]) -> list[int]:
    """For each prompt how many of its first tokens are computed once for its group; 0 where it stands alone.

    Prompts of a group share `prompt[:length]`. Groups are chosen on the prompts' prefix tree, at each branching the larger
    of what one group saves (depth x (prompts - 1) tokens) and what its branches save together.
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
    if whole >= saved:
        return whole, [(low, high, depth)] if whole else []
    return saved, groups


def common(rows: Sequence[Ids]) -> int:
    """How many first tokens all rows have in common."""
    return _common(min(rows), max(rows))


def _common(a: Ids, b: Ids) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def prefix_batches(prompts: Sequence[Ids], lengths: Sequence[int], prefixes: Sequence[int], max_tokens: int, max_rows: int):
    """Indices in batches whose computed tokens (each prefix once, rests padded to the longest) stay within `max_tokens`.

    The keys and values that the rows keep, prefixes repeated, stay within four times that. One row always fits, and rows
    that share never stand in one batch with rows that do not. `lengths`: tokens of each whole row.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-prefixes[i], prompts[i][: prefixes[i]], prefixes[i] - lengths[i], i))
    groups: list[list[int]] = []
    seen: set[Ids] = set()
    once = longest_prefix = longest_rest = 0
    for index in order:
        prefix, rest = prompts[index][: prefixes[index]], lengths[index] - prefixes[index]
        if groups:
            rows = len(groups[-1]) + 1
            new = 0 if prefix in seen else len(prefix)
            computed = once + new + rows * max(longest_rest, rest)
            kept = rows * (max(longest_prefix, len(prefix)) + max(longest_rest, rest))
            alike = bool(prefix) == bool(longest_prefix)
            if rows <= max_rows and computed <= max_tokens and kept <= 4 * max_tokens and alike:
                groups[-1].append(index)
                seen.add(prefix)
                once, longest_prefix, longest_rest = once + new, max(longest_prefix, len(prefix)), max(longest_rest, rest)
                continue
        groups.append([index])
        seen, once, longest_prefix, longest_rest = {prefix}, len(prefix), len(prefix), rest
    return groups
