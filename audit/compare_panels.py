"""One metric over all runs of a comparison, on the items that all of them have, in the same resamples."""

import zlib
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from audit import compare_matched as matched
from audit import compare_runs
from audit.compare_runs import Grown
from audit.measures import Metric, Sample, half
from audit.paired import aligned
from audit.samples import read_samples

AXES = ("steps", "scale")


@dataclass(frozen=True)
class Panel:
    """One metric over all runs: (run name, specimen) -> (1 + resamples,) differences from the base, damage or severity.

    ends: (run name, axis) -> why its doses are not compared any further, where they are not.
    """

    measure: str
    metric: Metric
    n: int
    margin: float | None
    drawn: dict[tuple[str, str], np.ndarray]
    doses: dict[tuple[str, str], list[str]]
    ends: dict[tuple[str, str], str]

    @property
    def name(self) -> str:
        return f"{self.measure}.{self.metric.name}"

    def curve(self, run: Grown, axis: str, doses: list[str] | None = None) -> np.ndarray:
        """(1 + resamples, doses): the named doses, or all."""
        chosen = self.doses[run.path.name, axis] if doses is None else doses
        return np.stack([self.drawn[run.path.name, dose] for dose in chosen], axis=1)

    def along(self, other: "Panel", run: Grown, axis: str) -> list[str]:
        """The doses of a run at which this metric and another were both read."""
        known = other.doses[run.path.name, axis]
        return [dose for dose in self.doses[run.path.name, axis] if dose in known]


def panels_of(runs: list[Grown], marks: dict, measure: str, wanted: list[Metric]) -> list[Panel]:
    """The differences of all doses and marks that can be read, on the items that all of them have, in the same resamples."""
    names = {run.path.name: [dose.specimen for axis in AXES for dose in run.doses(axis)] for run in runs}
    keys = {(run.path.name, name) for run in runs for name in ("base", *names[run.path.name])}
    keys |= {(run.path.name, name) for run, name in marks.values()}
    runs_by_name = {run.path.name: run for run in runs}
    samples = {(name, specimen): read_samples(runs_by_name[name].path, measure, specimen) for name, specimen in keys}
    return [_panel(runs, marks, measure, metric, samples) for metric in wanted]


def _panel(runs: list[Grown], marks: dict, measure: str, metric: Metric, samples: dict) -> Panel:
    doses, ends = {}, {}
    for run, axis in product(runs, AXES):
        names = [dose.specimen for dose in run.doses(axis)]
        # Dear measures are read at fewer checkpoints; what an earlier audit read there, of fewer items, is no dose.
        asked = _items(samples[run.path.name, "base"], metric)
        names = [
            name
            for name in names
            if run.reading(name, measure, metric.name) and asked <= {s.item for s in samples[run.path.name, name]}
        ] or names
        stop = next((k for k, name in enumerate(names) if compare_runs.unread(run, name, measure, metric)), len(names))
        doses[run.path.name, axis] = names[:stop]
        if stop < len(names):
            ends[run.path.name, axis] = f"{names[stop]}: {compare_runs.unread(run, names[stop], measure, metric)}"
    keys = [(run, name) for (run, _), names in doses.items() for name in names]
    styles = {run.path.name for run in runs if run.trained and run.style != "control"}
    asked = [_items(samples[key], metric) for key in keys if key[0] in styles]
    keys += [(run.path.name, name) for run, name in marks.values() if not compare_runs.unread(run, name, measure, metric)]
    # What stands beside the styles must not cost them items: it is left out where it was not asked all that they were.
    shared = set.intersection(*asked) if asked else set()
    keys = [key for key in dict.fromkeys(keys) if shared <= _items(samples[key], metric)]
    bases = list(dict.fromkeys((run, "base") for run, _ in keys))
    if keys:
        kind, values = aligned(metric, "holdout", *(samples[key] for key in keys + bases))
        metric = replace(metric, kind=kind)
    else:
        values = []
    n, drawn = len(values[0]) if values else 0, {}
    if n > 1:
        weights = matched.weights(n, zlib.crc32(f"{measure}.{metric.name}".encode()))
        base = dict(zip(bases, values[len(keys) :], strict=True))
        for key, own in zip(keys, values, strict=False):
            moved = matched.differences(metric.kind, own, base[key[0], "base"], weights)
            drawn[key] = _damage(metric, moved)
    margins = [r.margin for run in runs for r in run.readings.values() if (r.measure, r.metric) == (measure, metric.name)]
    return Panel(measure, metric, n, min((m for m in margins if m is not None), default=None), drawn, doses, ends)


def _damage(metric: Metric, moved: np.ndarray) -> np.ndarray:
    """Turned so that more is worse. Where both sides are, towards the side that was read: a resample that falls on the other
    one counts below 0, since distances alone would keep every interval clear of 0, the more items the surer.
    """
    if metric.worse == "both":
        return moved * (-1 if moved[0] < 0 else 1)
    return -moved if metric.worse == "lower" else moved


def _items(samples: list[Sample], metric: Metric) -> set[str]:
    return {s.item for s in samples if metric.name in s.scores and half(s.unit) == "holdout"}
