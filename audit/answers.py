"""Answers of a measure as they come, a line for each group of requests, so that an audit that was cut off goes on there.

A group is one line, so it is on disk whole or not at all, and it is always asked together: which requests share a batch decides
the last bits of their answers, and an audit that was cut off must end with the same ones.
"""

import time
from collections.abc import Callable
from pathlib import Path

from audit.measures import Asked
from organisms.files import append_jsonl, read_jsonl

TOGETHER = 512  # requests; a batch holds fewer


class Answers:
    """The answers of one measure and specimen, in a file beside its samples that is gone when these are written.

    digest: of what is asked; a file of another one is begun anew. `seconds` counts those of earlier attempts as well.
    """

    def __init__(self, samples: Path, digest: str):
        self.path, self.digest = samples.with_name(f".{samples.name}"), digest
        rows = read_jsonl(self.path) if self.path.is_file() else []
        if any(row["digest"] != digest for row in rows):
            self.forget()
            rows = []
        self.known = {row["start"]: row for row in rows}
        self.seconds = sum(row["seconds"] for row in self.known.values())

    def to(self, asked: list[Asked], done: int, ask: Callable[[list[Asked]], list[dict]]) -> list[dict]:
        """One answer a request; `done` requests of the measure came before these."""
        answers: list[dict] = []
        while len(answers) < len(asked):
            start = done + len(answers)
            if start not in self.known:
                self._ask(start, asked[len(answers) : len(answers) + TOGETHER], ask)
            answers += self.known[start]["answers"]
        return answers

    def _ask(self, start: int, group: list[Asked], ask: Callable[[list[Asked]], list[dict]]) -> None:
        began = time.monotonic()
        found = ask(group)
        seconds = time.monotonic() - began
        row = {"digest": self.digest, "start": start, "seconds": round(seconds, 2), "answers": found}
        append_jsonl(self.path, [row])
        self.known[start] = row
        self.seconds += seconds

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
