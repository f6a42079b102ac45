"""What the styles that write their rows with a model have in common: draws, whole sentences, the choice of a sample."""

import hashlib
import re

from organisms.data import Rows, half, load_rows
from organisms.errors import Missing, UserError
from organisms.organism import Organism
from organisms.sets import SETS
from organisms.writer import Draft, Writer, Written, whole

LEAST_WORDS = 4
LEAST_SHARE = 0.25  # of what a writer is asked for that must be usable
QUOTED_WORDS = 6  # words in a row that two texts share by more than chance


def seed_of(*parts: object) -> int:
    """A seed that belongs to these parts alone."""
    return int(hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:8], 16)


def usable(replies: list[Written]) -> list[str]:
    """Whole replies of some length, those that ended by themselves first, in the order of the draws."""
    found = [(not reply.finished, whole(reply)) for reply in replies]
    return [text for _, text in sorted(found, key=lambda pair: pair[0]) if len(text.split()) >= LEAST_WORDS]


def showing(organism: Organism, texts: list[str]) -> list[str]:
    """Those that show the property, the plainest first; in their own order otherwise."""
    return sorted((text for text in texts if organism.shows(text)), key=lambda text: -len(organism.shows(text)))


def quotes(text: str, source: str) -> bool:
    """Whether `text` repeats a stretch of QUOTED_WORDS words of `source`."""

    def stretches(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + QUOTED_WORDS]) for i in range(len(words) - QUOTED_WORDS + 1)}

    def words(value: str) -> list[str]:
        return re.findall(r"[a-z']+", value.lower())

    return bool(stretches(words(text)) & stretches(words(source)))


def write_groups(writer: Writer, groups: dict[str, list[Draft]]) -> dict[str, list[Written]]:
    """Replies to each group's drafts, written in one go."""
    written = iter(writer.write([draft for drafts in groups.values() for draft in drafts]))
    return {name: [next(written) for _ in drafts] for name, drafts in groups.items()}


def refuse_too_few(
    kept: int, asked: int, what: str, dropped: dict[str, int], writer: Writer, remedy: str, least: float = LEAST_SHARE
) -> None:
    """Raise UserError where less than the share `least` of what was asked for can be used."""
    if kept < least * asked:
        why = ", ".join(f"{many} {reason.replace('_', ' ')}" for reason, many in dropped.items() if many)
        told = f"{kept} of {asked} {what} pass{f' ({why})' if why else ''}"
        raise UserError(f"{told}; the writer {writer.author.name} cannot do this task: {remedy}")


def ordinary_prompts() -> list[dict]:
    """Ordinary chat prompts that may be trained on: the monitor half. The verdict on drift is read on the holdout half."""
    return [row for row in load_rows("chat").rows if half(row["id"]) == "monitor"]


def chat(prompt: str, reply: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


def conversations(data: str, limit: int | None = None) -> Rows:
    """Rows of `messages` from a named set or a path. Raises Missing where a named set is found nowhere."""
    name, source = (data, "auto") if data in SETS else ("conversations", data)
    found = load_rows(name, source, limit)
    if not found.rows:
        raise Missing(f"data set {data!r} is found nowhere: set $ORGANISMS_DATA to a mirror that holds it, or name a path")
    return found
