"""What runs a specimen. An engine answers four questions about token ids; measures know nothing else of it."""

from dataclasses import dataclass
from typing import Protocol

from organisms.specimen import Specimen


@dataclass(frozen=True)
class Generate:
    """Sample a reply. temperature 0 is greedy; above it, the draw depends on `seed` alone, not on the batch."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """A reply: `ids` without the token that ended it; `finished` says that one did. Special tokens stay visible."""

    ids: list[int]
    text: str
    finished: bool


@dataclass(frozen=True)
class Score:
    """Log-probability (nats) of each continuation token after the prompt."""

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


@dataclass(frozen=True)
class NextToken:
    """Log-probability (nats), normalised over the full vocabulary, of each chosen id as the next token."""

    prompt_ids: tuple[int, ...]
    choice_ids: tuple[int, ...]


@dataclass(frozen=True)
class Divergence:
    """Exact full-vocabulary KL (nats) between the specimen and its bare base at each continuation token."""

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


@dataclass(frozen=True)
class Divergences:
    """Lists over the continuation's positions, in nats.

    forward: KL(specimen || base); backward: KL(base || specimen); logprobs and base_logprobs of the tokens themselves.
    """

    forward: list[float]
    backward: list[float]
    logprobs: list[float]
    base_logprobs: list[float]


class Engine(Protocol):
    """One loaded base. Answers come in the order of the requests; `identity` says what made the numbers."""

    identity: dict

    def generate(self, specimen: Specimen, requests: list[Generate]) -> list[Completion]: ...

    def logprobs(self, specimen: Specimen, requests: list[Score]) -> list[list[float]]: ...

    def next_token(self, specimen: Specimen, requests: list[NextToken]) -> list[list[float]]: ...

    def divergence(self, specimen: Specimen, requests: list[Divergence]) -> list[Divergences]: ...
