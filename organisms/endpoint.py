"""An OpenAI-compatible chat endpoint, as judges and writers ask it; its key is in no error, no identity and no file."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from organisms.errors import UserError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Endpoint:
    """A client of one model at one URL. Retries, back-off and timeouts are the client library's.

    role: who it is in errors (`judge`, `writer`); key: the recipe's key that configures it, named where the mistake is there.
    """

    def __init__(self, role: str, key: str, url: str, model: str, key_env: str, workers: int, timeout: float = 60):
        try:
            from openai import OpenAI, Timeout
        except ImportError:
            raise UserError(f"a {role} at an endpoint needs the openai client: .venv/bin/pip install openai") from None
        secret = os.environ.get(key_env)
        if not secret and not any(host in url for host in ("//localhost", "//127.0.0.1", "//[::1]")):
            raise UserError(f"{key}: the environment variable {key_env} is not set; it must hold the endpoint's key")
        self.client = OpenAI(base_url=url, api_key=secret or "no-key", max_retries=5, timeout=Timeout(timeout, connect=10))
        self.model, self.workers, self.name = model, workers, f"the {role} endpoint:{model}"

    def ask(self, messages: list[dict], **options: Any) -> Any:
        """One chat completion. Raises UserError where the endpoint fails or does not answer with a completion."""
        from openai import APIError

        try:
            reply = self.client.chat.completions.create(model=self.model, messages=messages, **options)
        except APIError as error:
            told = error.message.replace(self.client.api_key, "***")[:200]  # servers quote the key that they refuse
            raise UserError(f"{self.name} failed: {type(error).__name__}: {told}") from None
        if isinstance(reply, str):  # what is no JSON, a web page for one, the client hands on as text
            raise UserError(f"{self.name} answers with a page, not a completion; its endpoint must end in /v1")
        if not reply.choices:
            raise UserError(f"{self.name} answers without a choice: {str(reply)[:200]}")
        return reply

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
