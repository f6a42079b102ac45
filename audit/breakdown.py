"""A measure's headline by subject, verifier family, kind of prompt: where a difference comes from. No verdicts: n is small."""

import dataclasses
from dataclasses import dataclass

from audit import statistics
from audit.measures import Sample, metrics
from audit.paired import aligned
from audit.statistics import Interval


@dataclass(frozen=True)
class Part:
    """One label: units, the base's value, the specimen's, and their paired difference (None for the base alone)."""

    label: str
    n: int
    base: float | None
    value: float
    delta: Interval | None


def parts(measure: str, samples: list[Sample], base: list[Sample] | None) -> list[Part]:
    """Parts of a measure's headline, in alphabetical order; empty where all items are of one kind.

    A sample's own `parts` (IFEval: instructions by family) come before its `group`.
    """
    metric = next(m for m in metrics(measure).values() if m.headline)
    if metric.kind in ("pairs", "constant"):
        return []
    in_parts = any(sample.parts for sample in samples)
    metric = dataclasses.replace(metric, kind="share") if in_parts else metric
    own, others = (_by_label(rows, metric.name, in_parts) for rows in (samples, base or []))
    found = []
    for label in sorted(own):
        kind, (values, *against) = aligned(metric, None, own[label], *([] if base is None else [others.get(label, [])]))
        if not len(values):
            continue
        if base is None:
            found.append(Part(label, len(values), None, statistics.estimate(kind, values), None))
            continue
        levels = statistics.estimate(kind, against[0]), statistics.estimate(kind, values)
        found.append(Part(label, len(values), *levels, statistics.paired(kind, values, against[0])))
    return found if len(found) > 1 else []


def _by_label(samples: list[Sample], metric: str, in_parts: bool) -> dict[str, list[Sample]]:
    """label -> samples whose score is what they hold of it; a sample without parts of its own tells nothing where others do."""
    labelled: dict[str, list[Sample]] = {}
    for sample in samples:
        if metric in sample.scores:
            for label, score in (sample.parts if in_parts else {sample.group: sample.scores[metric]}).items():
                if label:
                    labelled.setdefault(label, []).append(dataclasses.replace(sample, scores={metric: score}))
    return labelled
