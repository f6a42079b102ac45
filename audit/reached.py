"""A base that is only reachable through an endpoint, opened for an audit, or for a plan, which asks it only what it can do."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from organisms import models
from organisms.engines import abilities
from organisms.engines.abilities import Abilities
from organisms.engines.api import EndpointEngine
from organisms.errors import Missing
from organisms.render import Renderer
from organisms.served import Address, EndpointPlan
from organisms.specimen import Specimen
from organisms.transcript import Transcript


@dataclass(frozen=True)
class Reached:
    """One address. tokenizer: the base whose tokenizer and template the model has; None: it is asked by messages."""

    address: Address
    tokenizer: str | None
    plan: EndpointPlan

    @cached_property
    def described(self) -> models.Base | None:
        """The base that lends tokenizer, template and size; its weights are not looked at."""
        return models.described(self.tokenizer) if self.tokenizer else None

    @property
    def parameters(self) -> int | None:
        return models.parameter_count(self.described) if self.described else None

    @cached_property
    def renderer(self) -> Renderer:
        if self.described is None:
            return Transcript()
        return Renderer(models.load_tokenizer(self.described), name=f"tokenizer {self.tokenizer}")

    @cached_property
    def engine(self) -> EndpointEngine:
        return EndpointEngine(self.address, self.renderer, self.plan)

    @property
    def revision(self) -> str:
        """Which weights answer; the model is asked for it."""
        return self.engine.served(self.address.model)[0]

    def lacks(self, request: Any) -> str | None:
        return self.engine.lacks(request)

    def compared(self, name: str, adapter: str | None, model: str | None) -> tuple[Specimen, str, list[str]]:
        """(specimen, which weights answer behind it, what to tell of it) of another model that the same server serves."""
        other = adapter or model
        revision = self.engine.served(other)[0]
        parent = getattr((self.engine.able.served or {}).get(other), "parent", None)
        told = [f"{other} at {self.address.server}: read against {self.address.model}"]
        if parent and parent != self.address.model:
            told.append(f"the server says that {other} stands on {parent}")
        return Specimen(name, adapter=other), revision, told

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know of how they were come by."""
        return self.told(self.engine.able)

    def planned(self, missing: list[str]) -> Abilities:
        """What it can answer; all that one of its kind can where it is out of reach, which is then added to what is missing."""
        try:
            return self.engine.able
        except Missing:
            missing.append(str(self.address))
            return abilities.assumed(self.renderer)

    def told(self, able: Abilities) -> list[str]:
        """How it is asked, in sentences."""
        by = f"token ids of {self.tokenizer}" if able.by_ids else "messages, rendered by a template of its own that is not seen"
        lines = [f"base {self.address.model} at {self.address.server}: asked by {by}"]
        if able.fingerprint:
            lines.append(f"the server calls itself {able.fingerprint}")
        if not able.extended:
            lines.append("it knows the protocol alone: its own top-k and repetition penalty hold, special tokens may be hidden")
            lines += ["replies come without ids: drift reads them as the tokenizer splits their text"] if able.by_ids else []
        return lines
