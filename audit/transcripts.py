"""Base and organism on the same prompts: which replies a page shows, cut to a size, with what is marked in them."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from audit import marks
from audit.measures import Sample
from audit.samples import replies

MOST = 60  # a measure; more would not be read
FLAGGED = 40  # of them, at most, chosen because something in the reply is marked
LONGEST = 4000  # characters of a reply or prompt


@dataclass(frozen=True)
class Pair:
    """One prompt, answered by both. base, after: (piece, what it is) as in `marks.pieces`; flags: of the organism's reply."""

    measure: str
    group: str
    item: str
    prompt: str
    flags: list[str]
    base: list[tuple[str, str]]
    after: list[tuple[str, str]]


@dataclass(frozen=True)
class Chosen:
    """pairs: what is shown; there: measure -> pairs that there are."""

    pairs: list[Pair]
    there: dict[str, int]

    @property
    def shown(self) -> dict[str, int]:
        return {name: sum(pair.measure == name for pair in self.pairs) for name in self.there}


def choose(run: Path, measures: list[str], specimen: str, budget: int) -> Chosen:
    """Pairs of each measure in the items' order: flagged replies first in line, then the others, as long as there is room.

    budget: bytes of HTML for all of them, shared alike by the measures that have replies.
    """
    noted = {name: marks.records(run, name) for name in ("base", specimen)}
    found: dict[str, list[tuple[Sample, Sample]]] = {}
    for name in measures:
        base = {s.item: s for s in replies(run, name, "base")}
        both = [(base[s.item], s) for s in replies(run, name, specimen) if s.item in base]
        if both:
            found[name] = both
    pairs = []
    for name, both in found.items():
        room, kept = budget // len(found), []
        for k in _in_line([marks.flags(after, noted[specimen].get((name, after.item), {})) for _, after in both]):
            pair = _pair(name, noted["base"], noted[specimen], *both[k])
            room -= _size(pair)
            if room < 0:
                break
            kept.append((k, pair))
        pairs += [pair for _, pair in sorted(kept, key=lambda one: one[0])]
    return Chosen(pairs, {name: len(both) for name, both in found.items()})


def _in_line(flags: list[list[str]]) -> list[int]:
    """Places of the items that are shown, flagged ones first."""
    flagged = [k for k, said in enumerate(flags) if said][:FLAGGED]
    return (flagged + [k for k in range(len(flags)) if k not in set(flagged)])[:MOST]


def _pair(name: str, of_base: marks.Records, of_after: marks.Records, before: Sample, after: Sample) -> Pair:
    key = (name, after.item)
    base, own = of_base.get(key, {}), of_after.get(key, {})
    return Pair(
        name,
        after.group,
        after.item,
        cut(after.prompt),
        marks.flags(after, own),
        marks.pieces(before, base, cut(before.output)),
        marks.pieces(after, own, cut(after.output)),
    )


def cut(text: str) -> str:
    """The beginning of a long text, and how much is left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} \u2026 [{len(text) - LONGEST:,} more characters]"


def _size(pair: Pair) -> int:
    """Bytes of HTML, the markup of a pair (some 500) included."""
    texts = (pair.prompt, *pair.flags, *(text for text, _ in pair.base + pair.after))
    return 500 + sum(len(escape(text).encode()) + 40 for text in texts)
