"""A measure's headline by subject, verifier family, kind of prompt: where a difference comes from. No verdicts: n is small."""

from dataclasses import dataclass

import numpy as np

from audit import statistics
from audit.measures import Sample, metrics
from audit.statistics import Interval


@dataclass(frozen=True)
class Part:
    """One label: items, the base's value, the specimen's, and their paired difference (None for the base alone)."""

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
    own, others = _by_label(samples, metric.name), _by_label(base or [], metric.name)
    kind = "share" if any(sample.parts for sample in samples) else metric.kind
    found = []
    for label in sorted(own):
        items = sorted(own[label].keys() & others.get(label, {}).keys()) if base is not None else sorted(own[label])
        if not items or kind in ("pairs", "constant"):
            continue
        values = np.array([own[label][item] for item in items], float)
        if base is None:
            found.append(Part(label, len(items), None, statistics.estimate(kind, values), None))
            continue
        against = np.array([others[label][item] for item in items], float)
        levels = statistics.estimate(kind, against), statistics.estimate(kind, values)
        found.append(Part(label, len(items), *levels, statistics.paired(kind, values, against)))
    return found if len(found) > 1 else []


def _by_label(samples: list[Sample], metric: str) -> dict[str, dict[str, float | list[float]]]:
    labelled: dict[str, dict] = {}
    for sample in samples:
        if metric not in sample.scores:
            continue
        for label, score in (sample.parts or {sample.group: sample.scores[metric]}).items():
            if label:
                labelled.setdefault(label, {})[sample.item] = score
    return labelled
