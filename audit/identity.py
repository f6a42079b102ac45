"""What decides an answer: the digest of a measure's samples, and the place of answers that later runs can use again."""

import dataclasses
from pathlib import Path

from audit.answers import TOGETHER, listed
from audit.job import Job
from audit.measures import Asked, Context, source
from organisms.engines import Engine
from organisms.files import cache_dir, digest


def samples_digest(job: Job, engine: Engine, module, context: Context, asked: list[Asked]) -> str:
    """Digest of what decides a measure's samples: its version, what it asks, the engine, and the corpus it compares with.

    What the answers are worth is up to the measure's code besides: `scored_by`.
    """
    requests = [[one.item, one.part, dataclasses.asdict(one.request)] for one in asked] + _grouped(asked)
    earlier = sorted(context.earlier) if reads_replies(module) else []
    corpus = digest([list(job.corpus.texts), list(job.corpus.held_out)]) if job.corpus and module.NAME == "leakage" else ""
    rules = job.organism.scoring_rules() if job.organism and module.NAME in ("severity", "leakage") else []
    return digest([*_identity(job, engine, module, context), requests, earlier, corpus, rules], 12)


def scored_by(module, context: Context) -> str:
    """Digest of the code that makes samples of answers: the measure's file, and those of the measures whose replies it reads.

    It stands apart from `samples_digest`, since other code asks nothing anew and most of it, a comment, changes no number.
    """
    return digest([source(name) for name in [module.NAME, *(context.earlier if reads_replies(module) else [])]], 12)


def _identity(job: Job, engine: Engine, module, context: Context) -> list:
    """Who answers what: base and what steers it, template, engine, judge, and the measure with its options."""
    options = context.option(module.NAME).model_dump() if hasattr(module, "Options") else {}
    judge = job.judge.identity if job.judge else None
    steering = context.specimen.steering.identity() if context.specimen.steering else []
    return [job.revision, job.renderer.template_hash, engine.identity, judge, module.NAME, module.VERSION, options, *steering]


def answer_cache(job: Job, engine: Engine, module, context: Context, asked: list[Asked]) -> Path | None:
    """Where the answers of a specimen that changes no weights are kept; None where nothing is asked."""
    if not asked:
        return None
    # Follow-ups depend on nothing but these and the size of the suite.
    requests = listed(asked) + _grouped(asked)
    key = digest([*_identity(job, engine, module, context), requests, job.plan.suite, job.plan.limit], 24)
    return cache_dir() / "readings" / f"{module.NAME}-{key}.json"


def _grouped(asked: list[Asked]) -> list:
    """How requests are asked together, where that is not all at once: it decides the last bits of their answers."""
    return [["together", TOGETHER]] if len(asked) > TOGETHER else []


def reads_replies(module) -> bool:
    """Whether a measure looks at what the specimen replied to the measures before it."""
    return getattr(module, "READS_REPLIES", False)
