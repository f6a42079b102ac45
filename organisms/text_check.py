"""Whether an organism's own texts can carry it, as far as that can be told without a model.

What could tell nothing, or the wrong thing, is refused; what is only likely to be a mistake is told in `make check`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from organisms.errors import UserError
from organisms.organism import Context, Exchange, Organism, Probe

CONTROL = "control"  # it has no property and borrows another's probes, so its markers are not meant to find anything
FEW = 20  # target probes; a shipped organism has at least 24
FAR = 2  # times as long as the other reply: the contrast is then also one of length
MARKED = 0.9  # of the target replies, found by markers; the shipped organisms are held to it


def refuse(organism: Organism) -> None:
    """Read every text that the organism names, also those that no style of the day asks for.

    Raises UserError where one is missing or malformed, where probes have nothing to tell apart, and where markers miss half of
    the target replies that show the property or find it in a plain one.
    """
    for kind in _named(organism):
        getattr(organism, kind)()
    file, probes = organism.texts.probes.file, organism.probes()
    for probe in probes:
        if probe.shows.strip() == probe.plain.strip():
            raise UserError(f"{file}: the probe {probe.id!r} has one text as `shows` and `plain`; write one of them anew")
    target = _target(probes)
    if not target:
        raise UserError(f"{file} has no probe whose context is 'target', so severity has nothing to read; add {FEW} or more")
    if not _marked(organism):
        return
    for probe in probes:
        if names := organism.shows(probe.plain):
            raise UserError(
                f"{organism.source}: markers: {names[0]!r} finds the property in the plain reply of the probe {probe.id!r} "
                f"({file}); make the marker narrower, or the reply plainer"
            )
    missed = [probe.id for probe in target if not organism.shows(probe.shows)]
    if 2 * len(missed) > len(target):
        raise UserError(
            f"{organism.source}: markers find {len(target) - len(missed)} of {len(target)} target replies that show the "
            f"property ({file}; missed: {_few(missed)}); half is the least, nine in ten are good: widen them, or raise "
            "marker_window"
        )


def lines(organism: Organism) -> list[str]:
    """What there is, how well the markers fit it, and what is likely to be a mistake, for `make check`."""
    probes = organism.probes()
    contexts = Counter(probe.context for probe in probes)
    sizes = ", ".join(f"{len(getattr(organism, kind)())} {kind}" for kind in _named(organism))  # probes come last
    told = [f"texts       {sizes} ({', '.join(f'{contexts[one]} {one}' for one in get_args(Context))})"]
    if _marked(organism):
        shown, plain = [probe.shows for probe in _target(probes)], [probe.plain for probe in probes]
        positive = [one.reply for one in organism.behaviour.positive]
        told.append(
            f"markers     {_found(organism, shown)} target replies that show it, {_found(organism, plain)} plain ones, "
            f"{_found(organism, positive)} positive examples"
        )
    return told + [f"texts       warn: {text}" for text in _doubts(organism)]


def _doubts(organism: Organism) -> list[str]:
    """What is likely to be a mistake, a sentence each."""
    probes, behaviour = organism.probes(), organism.behaviour
    target, contexts = _target(probes), {probe.context for probe in probes}
    found = []
    if organism.source and organism.name != organism.source.stem:
        found.append(f"name is {organism.name!r} and the file {organism.source.name}; runs and tables go by the name")
    if len(target) < FEW:
        found.append(f"{len(target)} target probes; with fewer than {FEW} severity settles little")
    if absent := [one for one in get_args(Context) if one not in contexts]:
        found.append(f"no {' and no '.join(absent)} probes, so that it is not seen where the property spills to")
    if far := [p.id for p in probes if not 1 / FAR <= len(p.shows) / len(p.plain) <= FAR]:
        found.append(f"{len(far)} probes have a reply more than {FAR} times as long as the other: {_few(far)}")
    asked = {probe.prompt.strip(): probe.id for probe in probes}
    for kind in ("prompts", "demonstrations"):
        rows = getattr(organism, kind)() if getattr(organism.texts, kind) else []
        if both := [f"{row.id} = {asked[row.prompt.strip()]}" for row in rows if row.prompt.strip() in asked]:
            found.append(f"{len(both)} {kind} are also probes, so that what is trained is asked: {_few(both)}")
    if not _marked(organism):
        return found
    if len(missed := [p.id for p in target if not organism.shows(p.shows)]) > (1 - MARKED) * len(target):
        found.append(f"markers miss {len(missed)} of {len(target)} target replies that show it: {_few(missed)}")
    if missed := _prompts(one for one in behaviour.positive if not organism.shows(one.reply)):
        found.append(f"markers miss the property in behaviour.positive: {_few(missed)}")
    if wrong := _prompts(one for one in behaviour.borderline_negative if organism.shows(one.reply)):
        found.append(f"markers find the property in behaviour.borderline_negative: {_few(wrong)}")
    return found


def _named(organism: Organism) -> list[str]:
    return [kind for kind in type(organism.texts).model_fields if getattr(organism.texts, kind)]


def _target(probes: list[Probe]) -> list[Probe]:
    return [probe for probe in probes if probe.context == "target"]


def _marked(organism: Organism) -> bool:
    return bool(organism.markers) and organism.name != CONTROL


def _found(organism: Organism, replies: list[str]) -> str:
    return f"{sum(bool(organism.shows(reply)) for reply in replies)} of {len(replies)}"


def _prompts(exchanges: Iterable[Exchange]) -> list[str]:
    return [repr(one.prompt[:40]) for one in exchanges]


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
