"""An OpenAI-compatible endpoint, as judges, writers and audits ask it; its key is in no error, no identity and no file."""

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from organisms.errors import Missing, UserError
from organisms.files import is_a
from organisms.strict import SECRET

Item = TypeVar("Item")
Answer = TypeVar("Answer")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST = 200  # characters a token of a reply; more than any tokenizer packs into one, over a whole reply


def _key_name(name: str) -> str:
    if not re.fullmatch("[A-Z][A-Z0-9_]*", name):  # a key has small letters: it is refused, and not shown
        raise PydanticCustomError(SECRET, "must be the name of an environment variable (OPENAI_API_KEY), never the key itself")
    return name


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        plain = False
    if url and not plain:
        raise ValueError("not a URL; an endpoint is one that begins with http:// or https:// and ends in /v1")
    if url and (parts.username or parts.password or parts.query or parts.fragment):
        raise PydanticCustomError(SECRET, "holds a name, a password or a query; put the key into the variable of key_env")
    return url


KeyName = Annotated[str, AfterValidator(_key_name)]
Url = Annotated[str, AfterValidator(_url)]


class Refused(UserError):
    """The server does not take this kind of request, however often it is asked."""


class Endpoint:
    """A client of one model at one URL. Retries, back-off and timeouts are the client library's.

    role: who it is in errors (`judge`, `writer`); key: the configuration's key, named where the mistake is there; timeout: in
    seconds; cap: most tokens, read and written, that are paid for in this process, None where there is no bound. `spent` counts
    them as the server reports them.
    """

    def __init__(
        self,
        role: str,
        key: str,
        url: str,
        model: str,
        key_env: str,
        workers: int,
        timeout: float = 60,
        cap: int | None = None,
    ):
        try:
            from openai import OpenAI, Timeout
        except ImportError:
            raise UserError(f"a {role} at an endpoint needs the openai client: .venv/bin/pip install openai") from None
        secret = os.environ.get(key_env)
        if not secret and urlsplit(url).hostname not in LOOPBACK:
            raise UserError(f"{key}: the environment variable {key_env} is not set; it must hold the endpoint's key")
        self.client = OpenAI(base_url=url, api_key=secret or "no-key", max_retries=5, timeout=Timeout(timeout, connect=10))
        self.key, self.key_env, self.timeout, self.cap = key, key_env, timeout, cap
        self.model, self.workers, self.name = model, workers, f"the {role} endpoint:{model}"
        self.spent = self._reserved = 0
        self._lock = threading.Lock()

    def ask(self, messages: list[dict], most: int, **options: Any) -> Any:
        """One chat completion, whose first choice has a message. most: tokens that it may cost, about; held against the cap.

        Raises UserError where the endpoint fails, does not answer with a completion, or the cap could be passed; Refused where
        it does not take such a request, and Missing where it cannot be reached.
        """
        reply = self._paid(self.client.chat.completions.create, most, messages=messages, **options)
        message = getattr(_first(reply), "message", None)
        if message is None:
            raise UserError(f"{self.name} answers without a choice: {self._told(reply)}; is {self.key}.model a chat model?")
        self._sound(getattr(message, "content", None), options["max_tokens"])
        return reply

    def complete(self, prompt: list[int], most: int, **options: Any) -> Any:
        """One completion of a prompt of token ids; else as `ask`."""
        reply = self._paid(self.client.completions.create, most, prompt=prompt, **options)
        if not hasattr(_first(reply), "text"):
            raise UserError(f"{self.name} answers without a choice: {self._told(reply)}")
        self._sound(_first(reply).text, options["max_tokens"] + len(prompt))  # `echo` gives the prompt back
        return reply

    def served(self) -> dict[str, Any] | None:
        """Name -> description of the models that it says it serves, None where it does not say. Raises as `ask`.

        The first thing that it is asked, so one that is not there is not waited for.
        """
        client = self.client.with_options(max_retries=1, timeout=20)
        try:
            return {card.id: card for card in self._called(lambda: list(client.models.list()))}
        except Refused:
            return None

    def _paid(self, create: Callable, most: int, **options: Any) -> Any:
        with self._lock:
            if self.cap and self.spent + self._reserved + most > self.cap:
                raise UserError(
                    f"{self.name} has been paid for {self.spent:,} tokens and the next reply could lead beyond "
                    f"{self.key}.max_cost_tokens={self.cap}; what is answered is kept: raise it and run the same command again"
                )
            self._reserved += most
        paid = 0
        try:
            reply = self._called(lambda: create(**{"model": self.model, **options}))
            used = getattr(getattr(reply, "usage", None), "total_tokens", None)
            paid = used if is_a(used, int) and used >= 0 else most
        finally:
            with self._lock:
                self._reserved -= most
                self.spent += paid
        if isinstance(reply, str):  # what is no JSON, a web page for one, the client hands on as text
            raise UserError(f"{self.name} answers with a page, not a completion; its endpoint must end in /v1")
        return reply

    def _sound(self, text: Any, tokens: int) -> None:
        if not isinstance(text, str | None) or len(text or "") > LONGEST * tokens:
            told = f"{len(text):,} characters for {tokens} tokens" if isinstance(text, str) else "no text"
            raise UserError(f"{self.name} answers with {told}; it does not keep to the protocol, take another server")

    def _told(self, said: Any) -> str:
        """What the server says, on one line and without the key, which servers quote when they refuse it."""
        return " ".join(str(said).replace(self.client.api_key, "***").split())[:200]

    def _called(self, call: Callable[[], Answer]) -> Answer:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        try:
            return call()
        except APIError as error:
            told = self._told(error.message)
            status = error.status_code if isinstance(error, APIStatusError) else None
            kind, remedy = UserError, ""
            if isinstance(error, APITimeoutError):
                remedy = f"; no answer in {self.timeout:.0f} s: ask it for fewer at once, {self.key}.workers={self.workers} now"
            elif isinstance(error, APIConnectionError):
                kind, remedy = Missing, f"; start the server, or mend the URL {self.client.base_url}"
            elif status in (401, 403):
                remedy = f"; the environment variable {self.key_env} must hold a key that it takes"
            elif status == 429:
                remedy = f"; it takes fewer at once than {self.key}.workers={self.workers}, or its quota is used up"
            elif status in (400, 404, 405, 422, 501):
                kind = Refused
            raise kind(f"{self.name} failed: {type(error).__name__}: {told}{remedy}") from None
        except ValueError as error:  # a body that says it is JSON and is not
            raise UserError(f"{self.name} answers with broken JSON ({self._told(error)}); see its log") from None

    def each(self, items: Sequence[Item], one: Callable[[Item], Answer]) -> Iterator[tuple[int, Answer]]:
        """(place, answer) as they come, at most `workers` asked at once.

        After a failure nothing new is asked; what is under way, and paid for, is handed on before the failure is raised.
        """
        stopped = threading.Event()
        failure: BaseException | None = None

        def answered(place: int) -> tuple[int, Answer] | None:
            if stopped.is_set():
                return None
            try:
                return place, one(items[place])
            except BaseException:
                stopped.set()
                raise

        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for done in as_completed([pool.submit(answered, place) for place in range(len(items))]):
                    if done.exception() is not None:
                        failure = failure or done.exception()
                    elif (answer := done.result()) is not None:
                        yield answer
            finally:  # also where the reader stops
                stopped.set()
        if failure is not None:
            raise failure


def _first(reply: Any) -> Any:
    choices = getattr(reply, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None
