"""Tokens that a run generates, reads, trains on and has written, counted from its requests and rows without loading weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from audit.config import AuditPlan
from audit.measures import Corpus, NotApplicable, measure
from audit.suite import context_of
from organisms import models
from organisms.files import digest
from organisms.styles import style_module
from recipes import cost
from recipes.recipe import Resolved

NOT_WRITTEN = Corpus((), (), ())  # stands in for rows that are not there yet: the beginnings of documents are not counted
OF_ORGANISM = ("severity", "leakage")
SMALL = 0.5e9  # parameters below which knowledge and preferences are asked in another form


@dataclass(frozen=True)
class Measured:
    """What one measure asks of one specimen. generated: tokens at most; scored: tokens read; told: instead, why nothing is.

    share: of the specimens, at which it is read by the audit's cadence.
    """

    name: str
    requests: int = 0
    data: str = ""
    generated: int = 0
    scored: int = 0
    told: str = ""
    share: float = 1.0


@dataclass(frozen=True)
class Count:
    """Of one run. specimens: how many are audited; trained: tokens; written: (author's base, tokens at most) a stage.

    generated, scored: tokens a specimen, on average where the audit's cadence leaves measures out.
    """

    measures: tuple[Measured, ...]
    specimens: int
    trained: float
    written: tuple[tuple[str, int], ...] = ()

    def with_specimens(self, number: int) -> "Count":
        return replace(self, specimens=number)

    @property
    def generated(self) -> int:
        return round(sum(one.generated * one.share for one in self.measures))

    @property
    def scored(self) -> int:
        return round(sum(one.scored * one.share for one in self.measures))


@dataclass
class Counter:
    """Counts runs; a measure that asks the same in another run is counted once. A full suite takes half a minute to count."""

    known: dict[str, Measured] = field(default_factory=dict)

    def count(self, resolved: Resolved, found: list, corpus: Corpus | None) -> Count:
        """found: the stages' plans (recipes/plan.py); corpus: their rows, None where none is written yet."""
        recipe = resolved.recipe
        if corpus is None and found:
            corpus = NOT_WRITTEN
        measures = tuple(self._measured(resolved, name, corpus) for name in recipe.audit.measures)
        if found:
            specimens = 1 + sum(one.checkpoints for one in found)
        else:
            style = style_module(recipe.style)
            specimens = 1 + len(style.specimens(resolved.organism, resolved.options, resolved.base, Path(resolved.run_name)))
        measures = tuple(replace(one, share=1 - _left_out(recipe.audit, one.name, found) / specimens) for one in measures)
        trained = sum(cost.trained_tokens(one.stage, one.linted, one.steps) + one.steps * one.beside for one in found)
        written = [
            (recipe.writer.model if recipe.writer.model and asked.by == "writer" else recipe.base, asked.tokens)
            for one in found
            for asked in one.compiled.writing
            if asked.tokens and not (recipe.writer.endpoint and asked.by == "writer")
        ]
        return Count(measures, specimens, trained, tuple(written))

    def _measured(self, resolved: Resolved, name: str, corpus: Corpus | None) -> Measured:
        audit, renderer, organism = resolved.recipe.audit, resolved.renderer, resolved.organism
        parameters = models.parameter_count(resolved.base)
        thinking = renderer.thinking if renderer.knows_thinking else None
        asked_of = [str(resolved.base.directory), renderer.ask("Hello"), thinking]
        asked_of += [
            parameters is not None and parameters < SMALL,
            audit.suite,
            audit.limit,
            audit.data,
            audit.options.get(name),
        ]
        asked_of += [name, audit.judge is not None, organism.fingerprint() if name in OF_ORGANISM else ""]
        asked_of += [corpus and digest(list(corpus.documents)) if name == "leakage" else ""]
        key = digest(asked_of)
        if key not in self.known:
            self.known[key] = _asked(name, context_of(audit, renderer, organism, corpus, parameters=parameters))
        return self.known[key]


def _left_out(audit: AuditPlan, name: str, found: list) -> int:
    """Checkpoints at which a measure is not read."""
    places = [(place, place + 1 == one.checkpoints) for one in found for place in range(one.checkpoints)]
    return sum(name not in audit.due(place, last) for place, last in places)


def _asked(name: str, context) -> Measured:
    try:
        asked = measure(name).requests(context)
    except NotApplicable as reason:
        return Measured(name, told=str(reason) if name != "fluency" else "reads the generations of the others")
    generated, scored = cost.asked_tokens(asked)
    if name == "drift":  # its follow-up reads two replies an item, with the adapter and without
        scored += 4 * (generated + sum(len(one.request.prompt_ids) for one in asked))
    if hasattr(measure(name), "rounds"):
        generated, scored = (round(tokens * measure(name).rounds(context)) for tokens in (generated, scored))
    counted = Measured(name, len(asked), measure(name).data(context), generated, scored)
    if context.corpus is NOT_WRITTEN and name == "leakage":
        counted = replace(counted, data=f"{counted.data} (documents that are not written yet are not counted)")
    return counted
