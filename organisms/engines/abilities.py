"""What an endpoint can answer, found by some eight small requests before anything else is asked of it."""

from dataclasses import dataclass, field
from math import exp
from typing import Any

from organisms.endpoint import Endpoint, Refused
from organisms.engines import Generate, wire
from organisms.errors import UserError
from organisms.render import Renderer
from organisms.strict import nearest
from organisms.transcript import Transcript

TEXT = "The heron stands still for a long time."
OTHERS = (" It", " Water", " seven")
SAME = 0.05  # nats: what bfloat16 makes of one prompt in two batches; a wrong normalisation is off by more
NO_TEXT = "a chat endpoint gives no log-probabilities of a given text"
NO_CHOICES = "a chat endpoint gives log-probabilities of the likeliest tokens alone, and labels need not be among them"
NO_PREFILL = "a chat endpoint opens the reply itself, so none can be begun for the model"
NO_RAW = "a chat endpoint takes messages, and this is text without any"
NO_DIVERGENCE = "an endpoint hands out no distributions over the whole vocabulary"


@dataclass(frozen=True)
class Abilities:
    """by_ids: prompts are token ids, messages otherwise; extended: it knows the fields beside the protocol (wire.py).

    no_scores: why it gives no log-probabilities of a given text, None where it does; gathers: it gives those of chosen next
    tokens. fingerprint: the server's name for its configuration; served: model name -> what it says of it, None where it says
    nothing.
    """

    by_ids: bool
    extended: bool = True
    no_scores: str | None = None
    gathers: bool = True
    fingerprint: str | None = None
    served: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def no_choices(self) -> str | None:
        """Why it gives no log-probabilities of chosen next tokens; one that scores texts scores each of them as a text."""
        if self.gathers or self.no_scores is None:
            return None
        return self.no_scores if self.by_ids else NO_CHOICES


def assumed(renderer: Renderer) -> Abilities:
    """For plans where the endpoint is out of reach: all that one of its kind can do."""
    return Abilities(True) if renderer.shows_template else Abilities(False, no_scores=NO_TEXT, gathers=False)


def probed(endpoint: Endpoint, renderer: Renderer) -> Abilities:
    """Ask. Raises UserError where the model is not served, cannot be asked in this way, or reads the ids as other tokens."""
    served = endpoint.served()
    check_served(endpoint, served, endpoint.model)
    if isinstance(renderer, Transcript):
        talk, request = [{"role": "user", "content": "Hello!"}], Generate((), 2)
        extended, answer = _either(lambda extended: wire.chat(endpoint, endpoint.model, talk, request, extended, 20))
        return Abilities(False, extended, NO_TEXT, False, answer["fingerprint"], served)
    return _probed_by_ids(endpoint, renderer, served)


def check_served(endpoint: Endpoint, served: dict[str, Any] | None, model: str) -> None:
    """Raise UserError where the server says what it serves and the model is not among it."""
    if served is not None and model not in served:
        raise UserError(f"{endpoint.client.base_url} serves no model {model!r}{nearest(model, list(served))}")


def _probed_by_ids(endpoint: Endpoint, renderer: Renderer, served: dict[str, Any] | None) -> Abilities:
    ids, request = renderer.continuation(TEXT), Generate(tuple(renderer.continuation(TEXT)), 4)
    stops = {stop: renderer.decode([stop]) for stop in renderer.stop_ids}
    try:
        extended, answer = _either(lambda extended: wire.complete(endpoint, endpoint.model, request, stops, extended, 20))
    except Refused as refused:
        raise UserError(f"{refused}. It takes no prompts of token ids; without tokenizer= it is asked by messages") from None
    if answer["read"] not in (None, len(ids)):
        raise UserError(f"{endpoint.name} reads {answer['read']} tokens in a prompt of {len(ids)} ids, so ids cannot ask it")
    if answer["ids"] is None:
        extended = False  # a server may take fields that it does not know, and leave them aside
    else:
        _check_tokens(endpoint, renderer.decode(answer["ids"]), answer["text"])
    others = [renderer.continuation(TEXT + other)[len(ids)] for other in OTHERS]
    try:
        scores, no_scores = [_echoed(endpoint, renderer, [*ids, other])[-1] for other in others], None
    except Refused as refused:
        scores, no_scores = None, str(refused)
    gathers = extended and _gathers(endpoint, ids, others, scores)
    return Abilities(True, extended, no_scores, gathers, answer["fingerprint"], served)


def _either(ask) -> tuple[bool, dict]:
    """(whether the fields beside the protocol are taken, the answer); a server may refuse a request for a field it lacks."""
    try:
        return True, ask(True)
    except Refused:
        return False, ask(False)


def _echoed(endpoint: Endpoint, renderer: Renderer, ids: list[int]) -> list[float]:
    values, text = wire.echoed(endpoint, endpoint.model, ids)
    _check_tokens(endpoint, renderer.decode(ids), text)
    if max(values) > 1e-4:
        raise Refused(f"{endpoint.name} calls numbers above 0 log-probabilities")
    return values


def _gathers(endpoint: Endpoint, ids: list[int], others: list[int], scores: list[float] | None) -> bool:
    """Whether log-probabilities of chosen tokens come back, normalised as those of a text are: over the full vocabulary."""
    try:
        values = wire.chosen(endpoint, endpoint.model, ids, others)
    except Refused:
        return False
    if scores is None:
        return sum(map(exp, values)) < 1.001
    return all(abs(value - score) < SAME for value, score in zip(values, scores, strict=True))


def _check_tokens(endpoint: Endpoint, ours: str, theirs: str) -> None:
    """Raise UserError unless the server's text begins with ours; half a character, which servers hold back, says nothing."""
    if "\ufffd" not in ours and not theirs.strip().startswith(ours.strip()):
        raise UserError(
            f"{endpoint.name} reads the ids of {ours[:60]!r} as {theirs[:60]!r}: tokenizer= names another model's tokenizer"
        )
