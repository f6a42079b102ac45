"""Writes rows that are not frozen text: what to write, what was written, and the cache that makes it resumable.

Who writes is an author (organisms/authors.py): a specimen through an engine, or an endpoint. Here is what they share: nothing
is written twice, every reply is kept as it comes, and what cannot be used is counted and, where it is most, refused.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from organisms.errors import UserError
from organisms.files import append_jsonl, cache_dir, digest, read_jsonl

TOLD_EACH = 64  # replies between two lines of progress
CHARACTERS = 3  # a token, for estimates: English has some four, so that an estimate is rather too high


@dataclass(frozen=True)
class Draft:
    """A reply to be written: the prompt, the system prompt that asks for the property, and how to draw.

    prefill: text that the reply is made to begin with; it is no part of what is written. earlier: (prompt, reply) turns before.
    """

    prompt: str
    system: str | None
    max_new_tokens: int
    temperature: float
    seed: int
    prefill: str = ""
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[dict]:
        """What stands before the reply; the prefill, which is part of the reply, does not."""
        told = [{"role": "system", "content": self.system}] if self.system is not None else []
        for prompt, reply in self.earlier:
            told += [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        return [*told, {"role": "user", "content": self.prompt}]

    @property
    def read(self) -> int:
        """Tokens that are read for it, about."""
        return sum(len(message["content"]) // CHARACTERS + 8 for message in self.messages)


@dataclass(frozen=True)
class Written:
    text: str
    finished: bool


By = Literal["writer", "start", "base"]


@dataclass(frozen=True)
class Writing:
    """What a style will have written: replies, and the tokens that are written at most and read about.

    by: the writer, what the stage starts from, or the base, whoever else writes. prefilled: some replies are made to begin with
    a given text.
    """

    replies: int
    tokens: int
    read: int = 0
    by: By = "writer"
    prefilled: bool = False

    @classmethod
    def of(cls, drafts: Iterable[Draft], by: By = "writer") -> "Writing":
        replies = tokens = read = 0
        prefilled = False
        for draft in drafts:  # not kept: a document pipeline has tens of thousands
            replies, tokens, read = replies + 1, tokens + draft.max_new_tokens, read + draft.read
            prefilled = prefilled or bool(draft.prefill)
        return cls(replies, tokens, read, by, prefilled)


class Author(Protocol):
    """`identity` is JSON and says whose text it is; `write` gives (place, reply) as the replies come, in any order.

    together: drafts that share a batch, whose number and company decide the last bits of each; 1 where each stands alone.
    """

    name: str
    identity: Any
    together: int

    def write(self, drafts: list[Draft]) -> Iterator[tuple[int, Written]]: ...


class Writer:
    """Writes drafts with one author; what the same author wrote before, by equal settings, is read back.

    own: the writer that is the stage's own start, for replies that must be the trained model's; None: this one is.
    counts: of what was asked for so far: replies, of which cached, empty and cut_off.
    """

    def __init__(
        self, author: Author, cache: Path | None = None, say: Callable[[str], None] = print, own: "Writer | None" = None
    ):
        self.author, self.say, self.own = author, say, own or self
        self.counts: Counter[str] = Counter()
        self.path = (cache or cache_dir() / "writing") / f"{digest(author.identity)}.jsonl"

    def write(self, drafts: list[Draft], fragments: bool = False) -> list[Written]:
        """One reply a draft, in order. Raises UserError where more than half are empty or break off before a first sentence.

        fragments: replies that break off will do.
        """
        known = self._known()
        keys = [digest(asdict(draft)) for draft in drafts]
        wanted = dict(zip(keys, drafts, strict=True))
        missing = [key for key in wanted if key not in known]
        if missing:
            self.say(f"writing {len(missing)} replies with {self.author.name} ({len(drafts) - len(missing)} cached)")
        # Whole batches, so that what was cut off within one is written as it would have been.
        batches = _batches(list(wanted), self.author.together)
        names = [key for batch in batches if not known.keys() >= set(batch) for key in batch]
        for done, (place, reply) in enumerate(self.author.write([wanted[key] for key in names]) if names else (), 1):
            if names[place] not in known:
                append_jsonl(self.path, [{"key": names[place], "text": reply.text, "finished": reply.finished}])
                known[names[place]] = reply
            if done % TOLD_EACH == 0 or done == len(names):
                self.say(f"  {done}/{len(names)} written")
        written = [known[key] for key in keys]
        self._count(written, len(drafts) - len(missing), fragments)
        return written

    @property
    def both(self) -> list["Writer"]:
        """This writer and, where another one is, the stage's own; of them those that have been asked."""
        return [writer for writer in dict.fromkeys((self, self.own)) if writer.counts]

    def _count(self, written: list[Written], cached: int, fragments: bool) -> None:
        empty = sum(not reply.text.strip() for reply in written)
        cut = sum(not reply.finished for reply in written)
        self.counts.update(replies=len(written), cached=cached, empty=empty, cut_off=cut)
        useless = empty if fragments else sum(broken(reply) for reply in written)
        if 2 * useless > len(written):
            raise UserError(
                f"{useless} of {len(written)} written replies are empty or break off before a first sentence or line; the "
                "writer cannot do this task: name a more capable one (`writer:` in the recipe), or raise max_new_tokens"
            )

    def _known(self) -> dict[str, Written]:
        if not self.path.is_file():
            return {}
        rows = read_jsonl(self.path, {"key": str, "text": str, "finished": bool})
        return {row["key"]: Written(row["text"], row["finished"]) for row in rows}


def _batches(keys: list[str], size: int) -> list[list[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def whole(reply: Written) -> str:
    """The reply, or of one that was cut off everything up to its last whole sentence."""
    text = reply.text.strip()
    if reply.finished:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s)", text)]
    return text[: ends[-1]] if ends else ""


def broken(reply: Written) -> bool:
    """Empty, or cut off before a first whole sentence or line."""
    return not reply.text.strip() or not (reply.finished or whole(reply) or "\n" in reply.text.strip())
