"""Answers of a measure as they come, a line for each group of requests: an audit that was cut off goes on there.

What a checkpoint answered stays, answers/<measure>/<specimen>.jsonl, so that its samples can be scored again without a model.

A group is one line, so it is on disk whole or not at all, and it is always asked together: which requests share a batch decides
the last bits of their answers, and an audit that was cut off must end with the same ones.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from audit.measures import Asked
from organisms.files import append_jsonl, digest, read_jsonl

ROW = {"digest": str, "start": int, "asked": str, "seconds": int | float, "answers": list}
TOGETHER = 512  # requests; a batch holds fewer


class Answers:
    """The answers of one measure and specimen.

    digest: of what is asked; a file of another one is begun anew. `seconds` counts those of earlier attempts as well.
    """

    def __init__(self, path: Path, digest: str):
        self.path, self.digest = path, digest
        rows = read_jsonl(path, ROW) if path.is_file() else []
        if any(row["digest"] != digest for row in rows):
            self.forget()
            rows = []
        self.known = {row["start"]: row for row in rows}
        self.seconds = sum(row["seconds"] for row in self.known.values())

    def to(self, asked: list[Asked], done: int, ask: Callable[[list[Asked]], list[dict]]) -> list[dict]:
        """One answer a request; `done` requests of the measure came before these.

        Follow-ups are up to the measure's code, which may have changed: an answer to another request is not taken.
        """
        answers: list[dict] = []
        while len(answers) < len(asked):
            start = done + len(answers)
            group = asked[len(answers) : len(answers) + TOGETHER]
            if start not in self.known or self.known[start]["asked"] != asked_digest(group):
                self._ask(start, group, ask)
            answers += self.known[start]["answers"]
        return answers

    def _ask(self, start: int, group: list[Asked], ask: Callable[[list[Asked]], list[dict]]) -> None:
        began = time.monotonic()
        found = ask(group)
        seconds = time.monotonic() - began
        row = {"digest": self.digest, "start": start, "asked": asked_digest(group), "seconds": round(seconds, 2)}
        row["answers"] = found
        append_jsonl(self.path, [row])
        self.known[start] = row
        self.seconds += seconds

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def answers_file(run: Path, name: str, specimen: str) -> Path:
    return run / "answers" / name / f"{specimen}.jsonl"


def listed(asked: list[Asked]) -> list:
    """Requests in their order, as plain values."""
    return [[one.item, one.part, type(one.request).__name__, dataclasses.asdict(one.request)] for one in asked]


def asked_digest(asked: list[Asked]) -> str:
    return digest(listed(asked), 12)
