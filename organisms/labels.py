"""Which token ids stand for an answer's label, found where the answer will really stand."""

from organisms.errors import UserError
from organisms.render import Renderer

SPELLINGS = ("{}", " {}")
LEAST_MASS, MOST_SHORT = 0.5, 0.05


def label_ids(renderer: Renderer, prompt_ids: list[int], labels: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """label -> ids of its spellings (`A`, ` A`) that are one token right after this prompt.

    The end of the prompt and the label are tokenised together, so that no id is taken that cannot occur there (a study of
    preferences once read fused ids with 3.5e-5 of the mass). Raises UserError where a label has no spelling of one token.
    """
    tail = prompt_ids[-16:]
    text = renderer.decode(tail)
    before = renderer.continuation(text)
    found = {}
    for label in labels:
        spelled = [renderer.continuation(text + spelling.format(label)) for spelling in SPELLINGS]
        ids = [row[-1] for row in spelled if len(row) == len(before) + 1 and row[:-1] == before]
        if not ids:
            raise UserError(f"the label {label!r} is not one token after {text[-20:]!r}: labels cannot be asked of this base")
        found[label] = tuple(dict.fromkeys(ids))
    return found


def flat(labels: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """All ids, label by label: the `choice_ids` of a NextToken request."""
    return tuple(i for ids in labels.values() for i in ids)


def masses(labels: dict[str, tuple[int, ...]], logprobs: list[float]) -> dict[str, float]:
    """label -> probability, summed over its spellings, from the answer to a request with `flat(labels)`."""
    from math import exp

    values = iter(logprobs)
    return {label: sum(exp(next(values)) for _ in ids) for label, ids in labels.items()}


def short_of_mass(masses: list[float]) -> str | None:
    """A reason where more than 5% of the items put less than half of the probability on their labels, else None."""
    short = sum(not value >= LEAST_MASS for value in masses)  # what is no number holds nothing
    if not masses or short <= MOST_SHORT * len(masses):
        return None
    return f"{short} of {len(masses)} items put less than {LEAST_MASS:.0%} of the probability on the labels"
