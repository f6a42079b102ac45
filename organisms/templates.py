"""What writers are asked for: the templates of texts/writing.yaml, and lists read out of replies."""

import re
from functools import cache
from pathlib import Path

from organisms.files import digest
from organisms.strict import read_yaml
from organisms.writer import Written

FILE = Path(__file__).parent / "texts" / "writing.yaml"
ITEM = re.compile(r"^\s*(?:\d+\s*[.):]|[-*\u2022])\s*(.+)$")


@cache
def templates() -> dict[str, str]:
    return read_yaml(FILE)


def fill(name: str, **fields: object) -> str:
    return templates()[name].format(**fields)


def wording() -> str:
    """Digest of all templates, for the digest of a run whose rows are written by them."""
    return digest(templates())


def listed(reply: Written, wanted: int) -> list[str]:
    """The first `wanted` distinct items of a numbered or bulleted list, one a line; the line that was cut off is none."""
    lines = reply.text.strip().splitlines()
    lines = lines if reply.finished else lines[:-1]
    items = [match.group(1).strip().strip("*\"'\u201c\u201d ") for line in lines if (match := ITEM.match(line))]
    distinct: dict[str, str] = {}
    for item in items:
        distinct.setdefault(item.lower(), item)
    return [item for item in distinct.values() if item][:wanted]
