"""Carries a measure's requests to an engine and its answers back as plain JSON values."""

import dataclasses
import time

from audit import classifier
from audit.classifier import Classify
from audit.judge import Judge, Judgement
from audit.measures import Asked
from organisms.engines import Divergence, Engine, Generate, NextToken, Score
from organisms.specimen import Specimen


def ask(engine: Engine, specimen: Specimen, asked: list[Asked], judge: Judge | None = None) -> tuple[list[dict], float]:
    """(one JSON-able answer a request, in order; seconds it took). Judgements go to the judge, all else to the engine."""
    started = time.monotonic()
    answers: list[dict | None] = [None] * len(asked)
    methods = {
        Generate: lambda requests: [dataclasses.asdict(c) for c in engine.generate(specimen, requests)],
        Score: lambda requests: [{"logprobs": _rounded(values)} for values in engine.logprobs(specimen, requests)],
        NextToken: lambda requests: [{"logprobs": _rounded(values)} for values in engine.next_token(specimen, requests)],
        Divergence: lambda requests: [
            {name: _rounded(values) for name, values in dataclasses.asdict(d).items()}
            for d in engine.divergence(specimen, requests)
        ],
        Judgement: lambda requests: judge.ask(requests),
        Classify: classifier.ask,
    }
    for kind, method in methods.items():
        chosen = [i for i, one in enumerate(asked) if isinstance(one.request, kind)]
        if chosen:
            for index, answer in zip(chosen, method([asked[i].request for i in chosen]), strict=True):
                answers[index] = answer
    return answers, time.monotonic() - started


def _rounded(values: list[float]) -> list[float]:
    """Seven decimals: below float32's own rounding, and a tenth of the file."""
    return [round(value, 7) for value in values]
