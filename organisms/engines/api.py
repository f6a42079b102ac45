"""The endpoint engine: models behind an OpenAI-compatible endpoint, asked by token ids or by messages."""

import dataclasses
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

from organisms.endpoint import Endpoint
from organisms.engines import Completion, Divergence, Divergences, Generate, NextToken, Score, abilities, wire
from organisms.engines.abilities import Abilities
from organisms.engines.canary import CONTINUATION, PROMPTS, REPLY, Canary, recognised
from organisms.engines.vllm import MOST_IDS
from organisms.errors import UserError
from organisms.files import append_jsonl, cache_dir, digest, read_jsonl
from organisms.render import Renderer
from organisms.served import Address, EndpointPlan
from organisms.specimen import Specimen
from organisms.writer import CHARACTERS

BASE = Specimen("base")


class EndpointEngine:
    """Runs the model of an address, and as its adapters other models that the same server serves, named in `Specimen.adapter`.

    Every answer is kept as it comes, by content and by the weights behind the name (canary.py), so that what broke off goes on
    and nothing is paid for twice. What the endpoint cannot answer exactly, `lacks` says and nothing here approximates.
    """

    def __init__(self, address: Address, renderer: Renderer, plan: EndpointPlan):
        self.address, self.renderer = address, renderer
        reached, cap = (address.url, address.model, plan.key_env, plan.workers), plan.max_cost_tokens
        self.endpoint = Endpoint("audited", "endpoint", *reached, timeout=600, cap=cap)
        self._kept: dict[str, dict[str, Any]] = {}
        self.served = cache(self._served)

    @cached_property
    def able(self) -> Abilities:
        """Found at the first need. Raises Missing where the endpoint is out of reach, UserError where it refuses."""
        return abilities.probed(self.endpoint, self.renderer)

    @property
    def identity(self) -> dict:
        able = self.able
        return {
            "engine": "endpoint",
            "version": 1,
            "server": self.address.server,
            "model": self.address.model,
            "asked_by": "token ids" if able.by_ids else "messages",
            "extended": able.extended,
            "scores": able.no_scores is None,
            "gathers": able.gathers,
            "fingerprint": able.fingerprint,
        }

    def _served(self, model: str) -> tuple[str, Canary]:
        """(id of the weights behind a name, what they answered); asks it afresh, once a process."""
        abilities.check_served(self.endpoint, self.able.served, model)
        card = (self.able.served or {}).get(model)
        canary = Canary.of(self._canary(model), self._canary(model))
        place = [self.identity, model, getattr(card, "root", None), self.renderer.template_hash]
        return recognised(place, canary), canary

    def _canary(self, model: str) -> list:
        prompts = [tuple(BASE.ask(self.renderer, prompt)) for prompt in PROMPTS]
        if self.able.no_scores is None:
            continuation = tuple(self.renderer.continuation(CONTINUATION))
            answers = self._asked([Score(prompt, continuation) for prompt in prompts], model, self._score)
            return [value for values in answers for value in values]
        return [answer["text"] for answer in self._asked([Generate(p, REPLY) for p in prompts], model, self._generate)]

    def lacks(self, request: Any) -> str | None:
        """Why a request cannot be answered exactly, None where it can."""
        return lacking(self.able, self.renderer, request)

    def check_alive(self, specimen: Specimen) -> None:
        """Raise UserError where the model served as an adapter cannot be told from the base."""
        base, own = self.served(self.address.model)[1], self.served(str(specimen.adapter))[1]
        if not base.differs(own.values) or not own.differs(base.values):
            raise UserError(
                f"{specimen.name}: {specimen.adapter} answers as {self.address.model} does ({base.told(own.values)}), so it is "
                "not in force, or was not trained; see that the server loaded it"
            )

    def generate(self, specimen: Specimen, requests: list[Generate]) -> list[Completion]:
        """Replies; a draw follows the seed as far as the server honours it."""
        return [
            Completion(answer["ids"], answer["text"], answer["finished"])
            for answer in self._each(specimen, requests, self._generate)
        ]

    def logprobs(self, specimen: Specimen, requests: list[Score]) -> list[list[float]]:
        """Log-probabilities (nats) of each continuation token, over the full vocabulary."""
        return self._each(specimen, requests, self._score)

    def next_token(self, specimen: Specimen, requests: list[NextToken]) -> list[list[float]]:
        """Full-vocabulary log-probabilities (nats) of the chosen ids at the position after each prompt."""
        return self._each(specimen, requests, self._next_token)

    def divergence(self, specimen: Specimen, requests: list[Divergence]) -> list[Divergences]:
        raise UserError(f"{self.endpoint.name}: {abilities.NO_DIVERGENCE}")

    def _generate(self, model: str, request: Generate) -> dict:
        if self.able.by_ids:
            answer = wire.complete(self.endpoint, model, request, self._stops, self.able.extended, cost(self.renderer, request))
        else:
            messages, _ = self.renderer.messages(request.prompt_ids)
            answer = wire.chat(self.endpoint, model, messages, request, self.able.extended, cost(self.renderer, request))
        ids = answer["ids"]
        text = answer["text"] if ids is None else self.renderer.decode(ids)
        # Where a server gives text alone, its ids are what the tokenizer makes of it.
        return {"ids": self.renderer.continuation(text) if ids is None else ids, "text": text, "finished": answer["finished"]}

    def _score(self, model: str, request: Score) -> list[float]:
        values, _ = wire.echoed(self.endpoint, model, [*request.prompt_ids, *request.continuation_ids])
        return values[len(request.prompt_ids) - 1 :]

    def _next_token(self, model: str, request: NextToken) -> list[float]:
        prompt, choices = list(request.prompt_ids), list(request.choice_ids)
        if not self.able.gathers:
            return [wire.echoed(self.endpoint, model, [*prompt, choice])[0][-1] for choice in choices]
        pieces = [choices[at : at + MOST_IDS] for at in range(0, len(choices), MOST_IDS)]
        return [value for piece in pieces for value in wire.chosen(self.endpoint, model, prompt, piece)]

    @cached_property
    def _stops(self) -> dict[int, str]:
        return {stop: self.renderer.decode([stop]) for stop in self.renderer.stop_ids}

    def _asked(self, requests: list, model: str, one: Callable) -> list:
        """Answers in the order of the requests, none of them from what is kept."""
        answers = dict(self.endpoint.each(requests, lambda request: one(model, request)))
        return [answers[place] for place in range(len(requests))]

    def _each(self, specimen: Specimen, requests: list, one: Callable) -> list:
        """Answers in the order of the requests; what the same weights answered before is read back."""
        model = str(specimen.adapter or self.address.model)
        path = cache_dir() / "served" / f"{self.served(model)[0]}.jsonl"
        if str(path) not in self._kept:
            self._kept[str(path)] = {row["key"]: row["answer"] for row in read_jsonl(path)} if path.is_file() else {}
        known = self._kept[str(path)]
        keys = [digest([type(request).__name__, dataclasses.asdict(request)], 24) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        names = list(missing)
        for place, answer in self.endpoint.each(list(missing.values()), lambda request: one(model, request)):
            append_jsonl(path, [{"key": names[place], "answer": answer}])
            known[names[place]] = answer
        return [known[key] for key in keys]


def lacking(able: Abilities, renderer: Renderer, request: Any) -> str | None:
    """Why an endpoint of such abilities cannot answer a request exactly, None where it can."""
    if isinstance(request, Divergence):
        return abilities.NO_DIVERGENCE
    if isinstance(request, Score):
        return able.no_scores
    if isinstance(request, NextToken):
        return able.no_choices
    if isinstance(request, Generate) and not able.by_ids:
        talk = renderer.messages(request.prompt_ids)
        return abilities.NO_RAW if talk is None else abilities.NO_PREFILL if talk[1] else None
    return None


def cost(renderer: Renderer, request: Any) -> int:
    """Tokens that a request reads and writes at most; read ones are estimated where ids are characters."""
    read = [*request.prompt_ids, *getattr(request, "continuation_ids", ())]
    size = len(read) if renderer.shows_template else len(read) // CHARACTERS + 8
    return size + getattr(request, "max_new_tokens", 1)
