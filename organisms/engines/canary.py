"""Which weights answer behind a name: the same few questions at each start, since a server may serve others under it today.

What they were answered says whether answers that are kept still hold, and whether two names stand for two models.
"""

from dataclasses import dataclass
from pathlib import Path

from organisms.files import append_jsonl, cache_dir, digest, read_jsonl

PROMPTS = ("Hello!", "What did you do today?", "Tell me about a book.", "How do I boil an egg?")
CONTINUATION = "I think that the first thing to say is"
REPLY = 16  # tokens
# Root mean square over tokens, in nats: float32 servers repeat themselves to some 1e-5, and what a server differs by from
# itself is allowed three times over.
LEAST, FACTOR = 1e-4, 3.0


@dataclass(frozen=True)
class Canary:
    """What one model answered: log-probabilities (nats), or greedy replies where it gives none; asked twice for the noise."""

    values: list[float] | list[str]
    noise: float

    @classmethod
    def of(cls, once: list, again: list) -> "Canary":
        return cls(once, distance(once, again))

    @property
    def tolerance(self) -> float:
        """What it may differ by and still be the same weights."""
        return max(LEAST, FACTOR * self.noise) if isinstance(self.values[0], float) else self.noise

    def differs(self, values: list) -> bool:
        return distance(self.values, values) > self.tolerance

    def told(self, values: list) -> str:
        """How far others are from it, in words."""
        if isinstance(self.values[0], float):
            return f"{distance(self.values, values):.2g} nats a token, where one differs from itself by {self.noise:.2g}"
        share = f"{distance(self.values, values):.0%} of {len(self.values)} greedy replies"
        return f"{share}, where one differs from itself in {self.noise:.0%}"


def distance(one: list, other: list) -> float:
    """Root mean square difference of log-probabilities, in nats; share of differing replies."""
    if isinstance(one[0], str):
        return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)
    return (sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)) ** 0.5


def recognised(place: list, canary: Canary) -> str:
    """Id of the weights behind a place (server, model, the server's words for both): a known one's, or a new one's.

    Equal ids are as equal weights as the answers can tell.
    """
    path = cache_dir() / "served" / f"{digest(place)}.canaries.jsonl"
    for row in _known(path):
        if not canary.differs(row["values"]):
            return row["id"]
    name = digest([place, canary.values], 12)
    append_jsonl(path, [{"id": name, "values": canary.values}])
    return name


def _known(path: Path) -> list[dict]:
    return read_jsonl(path) if path.is_file() else []
