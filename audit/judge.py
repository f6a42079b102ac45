"""Who judges a reply: one question in, a score from 0 to 100 out.

A judge is a local model or an OpenAI-compatible endpoint. Both read the expected score from the probabilities of the
numbers 0 to 100 instead of from one sampled number (Betley et al. 2025, arXiv 2502.17424, section 2.1 and its judge code). A
local model scores each number as a whole string, closed by its end-of-turn token, so that tokenizers that split numbers into
digits read alike; an endpoint that writes digit by digit is refused. Where less than a quarter of the probability lies on
numbers, the question counts as unparsed: score None.
"""

import json
import threading
from dataclasses import dataclass
from math import exp
from typing import Protocol

from pydantic import Field, model_validator

from organisms.endpoint import Endpoint, KeyName, Url
from organisms.engines import Engine, Score
from organisms.errors import UserError
from organisms.files import append_jsonl, cache_dir, digest, read_jsonl
from organisms.specimen import Specimen
from organisms.strict import Strict
from organisms.writer import CHARACTERS

LEAST_MASS = 0.25
ROUNDING = 1e-3  # of log-probabilities that servers print
KEPT_AT_ONCE = 64  # questions; a judge that fails later has not been paid for these in vain
KEPT = {"question": str, "answer": dict}
NUMBERS = tuple(str(number) for number in range(101))


@dataclass(frozen=True)
class Judgement:
    """A question to the judge that is answered by one number from 0 to 100. Answer: score (or None), mass on numbers."""

    question: str


class JudgePlan(Strict):
    """`audit.judge` of a recipe: a local base, or an endpoint and the model that it serves."""

    base: str | None = None
    endpoint: Url | None = Field(default=None, description="URL that ends in /v1")
    model: str | None = None
    key_env: KeyName = Field(default="OPENAI_API_KEY", description="environment variable that holds the endpoint's key")
    workers: int = Field(default=8, gt=0, description="questions asked at once")
    max_cost_tokens: int | None = Field(default=None, gt=0, description="most tokens, read and written, that are paid for")

    @model_validator(mode="after")
    def _one_of_them(self) -> "JudgePlan":
        if bool(self.base) == bool(self.endpoint):
            raise ValueError("name either base (a local model) or endpoint (a URL that ends in /v1)")
        if self.endpoint and not self.model:
            raise ValueError("an endpoint needs model, the name that it serves")
        if self.max_cost_tokens and not self.endpoint:
            raise ValueError("max_cost_tokens caps what an endpoint is paid for; this judge is local")
        return self


class Judge(Protocol):
    """`identity` says who judged; `ask` answers in the order of the questions."""

    identity: str

    def ask(self, questions: list[Judgement]) -> list[dict]: ...


class LocalJudge:
    """A base as judge. Its weights are loaded with the first question, unless an engine that runs it is given."""

    def __init__(self, base: str, engine: Engine | None = None):
        from organisms import models
        from organisms.render import Renderer

        self.base = models.resolve(base)
        self.identity = f"local:{base}@{self.base.revision}"
        self.renderer = Renderer(models.load_tokenizer(self.base), name=f"judge {base}")
        self.specimen = Specimen("judge")
        closing = (self.renderer.close_id,) if self.renderer.close_id is not None else ()
        self.candidates = [(*self.renderer.continuation(number), *closing) for number in NUMBERS]
        self._engine = engine

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            from organisms.engines.hf import HFEngine

            self._engine = HFEngine(self.base, self.renderer)
        return self._engine

    def ask(self, questions: list[Judgement]) -> list[dict]:
        requests = []
        for one in questions:
            prompt = tuple(self.specimen.ask(self.renderer, one.question))
            requests += [Score(prompt, candidate) for candidate in self.candidates]
        sums = [sum(values) for values in self.engine.logprobs(self.specimen, requests)]
        size = len(NUMBERS)
        return [expected(dict(zip(NUMBERS, sums[i : i + size], strict=True))) for i in range(0, len(sums), size)]


class EndpointJudge:
    """An OpenAI-compatible chat endpoint as judge."""

    def __init__(self, plan: JudgePlan):
        key, cap = "audit.judge", plan.max_cost_tokens
        self.endpoint = Endpoint("judge", key, plan.endpoint, plan.model, plan.key_env, plan.workers, cap=cap)
        self.identity = f"endpoint:{plan.model}"

    def ask(self, questions: list[Judgement]) -> list[dict]:
        answers = dict(self.endpoint.each(questions, self._one))
        return [answers[place] for place in range(len(questions))]

    def _one(self, question: Judgement) -> dict:
        messages = [{"role": "user", "content": question.question}]
        # The second token only shows whether numbers are split.
        most = len(question.question) // CHARACTERS + 10
        choice = self.endpoint.ask(messages, most, max_tokens=2, temperature=0, logprobs=True, top_logprobs=20).choices[0]
        content = getattr(choice.logprobs, "content", None)
        if not content or not content[0].top_logprobs:
            raise UserError(f"{self.endpoint.name} returns no log-probabilities; take a model or server that does")
        told = _told(content)
        if told is None:
            raise UserError(
                f"{self.endpoint.name} returns log-probabilities that are none (above 0, no numbers, or more than 1 in all); "
                "take another server"
            )
        if len(content) > 1 and content[0].token.strip().isdigit() and content[1].token.isdigit():
            raise UserError(
                f"{self.endpoint.name} writes numbers digit by digit ({content[0].token!r}, {content[1].token!r}), so its "
                "first token says nothing of the score; name it as a local judge (audit.judge.base), which scores whole numbers"
            )
        return expected(told)


def _told(content: list) -> dict[str, float] | None:
    """Token -> log-probability (nats) at the first position; None where a server's numbers cannot be that."""
    try:
        told = {top.token: float(top.logprob) for top in content[0].top_logprobs}
        texts = [*told, *(one.token for one in content)]
    except (AttributeError, TypeError, ValueError):
        return None
    if not all(isinstance(text, str) for text in texts) or not all(value <= ROUNDING for value in told.values()):
        return None
    return told if sum(map(exp, told.values())) <= 1 + len(told) * ROUNDING else None


def expected(logprobs: dict[str, float]) -> dict:
    """Mean of the numbers 0 to 100 under their probabilities; None where these sum to less than LEAST_MASS."""
    mass: dict[int, float] = {}
    for text, logprob in logprobs.items():
        if text.strip() in NUMBERS:
            mass[int(text)] = mass.get(int(text), 0.0) + exp(logprob)
    total = sum(mass.values())
    score = sum(number * p for number, p in mass.items()) / total if total >= LEAST_MASS else None
    return {"score": score, "mass": round(total, 6)}


class Cached:
    """A judge whose answers are kept by content, so that no question is paid for twice."""

    def __init__(self, judge: Judge):
        self.judge, self.identity = judge, judge.identity
        self.path = cache_dir() / "judgements" / f"{digest([judge.identity], 16)}.jsonl"
        self.known = {row["question"]: row["answer"] for row in read_jsonl(self.path, KEPT)} if self.path.is_file() else {}
        self._lock = threading.Lock()

    def ask(self, questions: list[Judgement]) -> list[dict]:
        wanted = {digest([one.question], 24): one for one in questions}
        missing = [key for key in wanted if key not in self.known]
        for start in range(0, len(missing), KEPT_AT_ONCE):
            keys = missing[start : start + KEPT_AT_ONCE]
            answers = dict(zip(keys, self.judge.ask([wanted[key] for key in keys]), strict=True))
            with self._lock:
                append_jsonl(self.path, [{"question": key, "answer": answer} for key, answer in answers.items()])
            self.known.update(answers)
        return [self.known[digest([one.question], 24)] for one in questions]


def load(plan: JudgePlan | None) -> Judge | None:
    """The judge that a plan names, or None where it names none. A local judge loads its weights when first asked."""
    if plan is None:
        return None
    if plan.endpoint:
        return Cached(EndpointJudge(plan))
    return Cached(LocalJudge(plan.base))


def prompt_hash(*templates: str) -> str:
    """Digest of the questions a measure puts to the judge, as it stands in the samples."""
    return digest([json.dumps(templates)], 12)
