"""What a measure's file must hold, and what its `score` must return: a mistake is named before it reads as 'not applicable'."""

import difflib
from collections import Counter
from collections.abc import Iterable
from math import isfinite
from types import ModuleType
from typing import Any

from audit.kinds import RATIOS
from organisms.contract import options_fault, takes
from organisms.errors import UserError
from organisms.files import is_a, shown

GUIDE = "see 'Add a measure' in CONTRIBUTING.md"
FUNCTIONS = {
    "data": ("context",),
    "requests": ("context",),
    "score": ("context", "asked", "answers"),
    "follow_up": ("context", "asked", "answers"),
    "rounds": ("context",),
    "guard": ("context", "samples", "base"),
}
NEEDED = ("data", "requests", "score")


def check(module: ModuleType, name: str, kinds: tuple[str, ...]) -> None:
    """Raise UserError with all that a measure's file lacks. kinds: those a metric can have."""
    faults = []
    if getattr(module, "NAME", None) != name:
        faults.append(f"NAME is {shown(getattr(module, 'NAME', None))}, and must be the file's name, {name!r}")
    if not is_a(getattr(module, "VERSION", None), int):
        faults.append("VERSION must be a whole number, e.g. VERSION = 1")
    faults += _metrics(getattr(module, "METRICS", ()), kinds)
    for function, arguments in FUNCTIONS.items():
        if (function in NEEDED or hasattr(module, function)) and not takes(getattr(module, function, None), len(arguments)):
            faults.append(f"a function {function}({', '.join(arguments)}) is needed")
    faults += options_fault(module) if hasattr(module, "Options") else []
    if faults:
        raise UserError(f"audit/measures/{name}.py: {'; '.join(faults)} ({GUIDE})")


def _metrics(metrics: Any, kinds: tuple[str, ...]) -> list[str]:
    if not isinstance(metrics, tuple) or not metrics or not all(hasattr(metric, "headline") for metric in metrics):
        return ["METRICS must be a tuple of Metric, one or more"]
    faults = [
        f"metric {metric.name!r} is of kind {metric.kind!r}, known: {', '.join(kinds)}"
        for metric in metrics
        if metric.kind not in kinds
    ]
    twice = [name for name, number in Counter(metric.name for metric in metrics).items() if number > 1]
    faults += [f"METRICS holds {twice[0]!r} twice"] if twice else []
    headlines = sum(metric.headline for metric in metrics)
    return faults + (
        [] if headlines == 1 else [f"exactly one metric is the headline (headline=True), and here {headlines} are"]
    )


def check_samples(module: ModuleType, asked: Iterable[str], samples: list) -> None:
    """Raise UserError where samples are not what METRICS says, or an asked item has none.

    asked: the items. A measure whose samples are of other items than it asks about (pairs are asked, outcomes scored) says so
    with OWN_ITEMS = True. Values that are not finite pass: their reading is invalid and says why.
    """
    place = f"audit/measures/{module.NAME}.py"
    kinds = {metric.name: metric.kind for metric in module.METRICS}
    for sample in samples:
        for name, value in sample.scores.items():
            if name not in kinds:
                close = difflib.get_close_matches(name, kinds, n=1) or sorted(kinds)
                raise UserError(
                    f"{place} scores {name!r}, which METRICS does not hold; did you mean {close[0]!r}? "
                    "What is no metric belongs in a sample's notes"
                )
            if wrong := _value_fault(kinds[name], value):
                raise UserError(f"{place}: metric {name} of item {sample.item!r} is {shown(value)}; {wrong}")
    twice = [item for item, number in Counter(sample.item for sample in samples).items() if number > 1]
    if twice:
        raise UserError(f"{place}: score returns {len(twice)} items more than once, e.g. {twice[0]!r}; one sample an item")
    left = sorted(set(asked) - {sample.item for sample in samples})
    if left and not (samples and getattr(module, "OWN_ITEMS", False)):
        raise UserError(
            f"{place}: score returns no sample for {len(left)} of the items that were asked, e.g. {left[0]!r}; return one for "
            "each, without scores where there is nothing to say"
        )


def _value_fault(kind: str, value: Any) -> str:
    """What is wrong with a score of this kind; empty where nothing is."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(is_a(part, int | float) for part in value):
        if kind in RATIOS:
            inside = kind == "ratio" or not all(map(isfinite, value)) or 0 <= value[0] <= value[1]
            return "" if inside else "a share's numerator lies between 0 and its denominator"
    elif is_a(value, int | float) and kind not in RATIOS:
        return "" if kind != "rate" or not isfinite(value) or 0 <= value <= 1 else "a rate lies between 0 and 1"
    return f"a {kind} is {'[numerator, denominator]' if kind in RATIOS else 'one number (1.0, not True)'}"
