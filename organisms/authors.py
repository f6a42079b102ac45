"""Who writes: `writer:` of a recipe, and the authors behind it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from organisms import models
from organisms.endpoint import Endpoint, KeyName, Url
from organisms.engines import Engine, Generate
from organisms.errors import UserError
from organisms.files import digest, file_sha256, named_path
from organisms.render import Renderer
from organisms.specimen import Specimen
from organisms.strict import Strict
from organisms.writer import Draft, Writer, Writing, Written

CHUNK = 64  # replies that a specimen writes between two saves


class WriterPlan(Strict):
    """Who writes rows that are not frozen text: `base`, `self` (what the stage starts from), or a mapping with one of
    `adapter` (another specimen of the same base), `model` (another local model), or `endpoint` and the `model` it serves."""

    specimen: Literal["base", "self"] | None = None
    adapter: str | None = None
    model: str | None = None
    endpoint: Url | None = Field(default=None, description="URL that ends in /v1")
    key_env: KeyName = Field(default="OPENAI_API_KEY", description="environment variable that holds the endpoint's key")
    workers: int = Field(default=8, gt=0, description="replies asked of the endpoint at once")
    max_cost_tokens: int | None = Field(default=None, gt=0, description="most tokens, read and written, that are paid for")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"specimen": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_them(self) -> "WriterPlan":
        named = [bool(self.specimen), bool(self.adapter), bool(self.model or self.endpoint)]
        if sum(named) != 1:
            raise ValueError("name one writer: base, self, {adapter: DIR}, {model: ID} or {endpoint: URL, model: NAME}")
        if self.endpoint and not self.model:
            raise ValueError("an endpoint needs model, the name that it serves")
        if self.max_cost_tokens and not self.endpoint:
            raise ValueError("max_cost_tokens caps what an endpoint is paid for; this writer is local")
        return self

    @property
    def name(self) -> str:
        if self.endpoint:
            return f"endpoint:{self.model}@{urlsplit(self.endpoint).hostname}"
        return {"base": "the base", "self": "what the stage starts from"}.get(self.specimen) or self.adapter or self.model

    def identity(self) -> Any:
        """Whose text it is, for the run's digest: no key, no port, no number of workers, no cap.

        Raises UserError where an adapter or a model is not there.
        """
        if self.adapter:
            return {"adapter": adapter_fingerprint(named_path(self.adapter))}
        if self.model and not self.endpoint:
            return {"model": models.resolve(self.model).revision}
        return self.specimen or self.name


def adapter_fingerprint(directory: Path) -> str:
    """Digest of an adapter's configuration and tensors. Raises UserError where the directory holds none."""
    files = [directory / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    missing = next((file for file in files if not file.is_file()), None)
    if missing:
        raise UserError(f"writer.adapter {directory}: no {missing.name} there; name the directory of a PEFT adapter")
    return digest([file_sha256(file) for file in files])


class LocalAuthor:
    """A specimen that writes through an engine, in chunks."""

    def __init__(self, engine: Engine, renderer: Renderer, specimen: Specimen, revision: str):
        self.engine, self.renderer, self.specimen, self.name = engine, renderer, specimen, specimen.name
        self.together = CHUNK
        adapter = adapter_fingerprint(specimen.adapter) if specimen.adapter else None
        self.identity = [revision, renderer.template_hash, specimen.standing(), adapter, engine.identity]

    def write(self, drafts: list[Draft]) -> Iterator[tuple[int, Written]]:
        for start in range(0, len(drafts), CHUNK):
            requests = [self._request(draft) for draft in drafts[start : start + CHUNK]]
            for place, completion in enumerate(self.engine.generate(self.specimen, requests), start):
                yield place, Written(completion.text, completion.finished)

    def _request(self, draft: Draft) -> Generate:
        ids = self.renderer.prompt(draft.messages, draft.prefill)
        return Generate(tuple(ids), draft.max_new_tokens, draft.temperature, draft.seed)


class EndpointAuthor:
    """An OpenAI-compatible chat endpoint that writes, each reply handed on as it comes.

    A chat endpoint opens the assistant's turn itself, so drafts with a prefill are refused. No reply is asked for that could
    lead beyond the cap.
    """

    def __init__(self, plan: WriterPlan):
        self.name, self.identity, self.together = plan.name, plan.identity(), 1
        self.endpoint = Endpoint(
            "writer", "writer", plan.endpoint, plan.model, plan.key_env, plan.workers, timeout=600, cap=plan.max_cost_tokens
        )

    def write(self, drafts: list[Draft]) -> Iterator[tuple[int, Written]]:
        refuse(self.name, self.endpoint.cap, [Writing.of(drafts)], self.endpoint.spent)
        return self.endpoint.each(drafts, self._one)

    def _one(self, draft: Draft) -> Written:
        options = {"max_tokens": draft.max_new_tokens, "temperature": draft.temperature, "seed": draft.seed}
        reply = self.endpoint.ask(draft.messages, draft.read + draft.max_new_tokens, **options)
        choice = reply.choices[0]
        text = (choice.message.content or "").encode("utf-8", "replace").decode()  # half a surrogate pair becomes ?
        return Written(text, choice.finish_reason == "stop")


def refuse(name: str, cap: int | None, writing: list[Writing], spent: int = 0) -> None:
    """Raise UserError where an endpoint cannot write this, or where it could cost more tokens than the cap."""
    if any(one.prefilled for one in writing):
        raise UserError(
            f"the writer {name} is a chat endpoint, which cannot be made to begin a reply with a given text, and this style "
            "does that: take a local writer (base, self, adapter, model), or for style character style_options.thought=false"
        )
    cost = sum(one.tokens + one.read for one in writing)
    if cap and spent + cost > cap:
        raise UserError(
            f"writing {sum(one.replies for one in writing)} replies with {name} may cost {cost:,} tokens"
            + (f" beside {spent:,} spent already" if spent else "")
            + f", more than writer.max_cost_tokens={cap}; raise it, or ask for less"
        )


def check(plan: WriterPlan, writing: list[Writing]) -> None:
    """What `load` and the author would refuse, before anything is loaded or paid for."""
    others = [one for one in writing if one.by == "writer"]
    if plan.endpoint and others:
        refuse(plan.name, plan.max_cost_tokens, others)
        EndpointAuthor(plan)


def load(plan: WriterPlan, engine: Engine, renderer: Renderer, revision: str, start: Specimen) -> Writer:
    """The writer of a stage that starts from `start`, a specimen of the base that `engine` runs."""

    def local(specimen: Specimen) -> LocalAuthor:
        return LocalAuthor(engine, renderer, specimen, revision)

    own = Writer(local(start))
    if plan.specimen == "self" or (plan.specimen == "base" and start.adapter is None):
        return own
    if plan.endpoint:
        return Writer(EndpointAuthor(plan), own=own)
    if plan.model:
        return Writer(_other_model(plan.model, renderer.thinking), own=own)
    specimen = Specimen("base") if plan.specimen else Specimen(plan.name, adapter=named_path(plan.adapter))
    return Writer(local(specimen), own=own)


def _other_model(name: str, thinking: bool | None) -> LocalAuthor:
    """Another local model, under its own template; its weights are loaded beside the base's."""
    from organisms.engines.hf import HFEngine

    found = models.resolve(name)
    renderer = Renderer(models.load_tokenizer(found), thinking=thinking, name=f"writer {name}")
    return LocalAuthor(HFEngine(found, renderer), renderer, Specimen(name), found.revision)
