"""One file a measure: `requests(context)` says what is asked, `score(context, asked, answers)` what the answers are worth.

A new measure is a new file here with NAME, VERSION, METRICS, `data`, `requests` and `score`, and its name in
MEASURES below (audit/contract.py holds it against that). `score` sees only what was stored, so samples are scored again without
a model where the file has changed. Optional: `READS_REPLIES`, `OWN_ITEMS` (CONTRIBUTING.md);
`Options`, what a recipe may set under `audit.options.<measure>`; `follow_up(context, asked, answers)`, requests that
depend on the answers so far, called until it returns none; `rounds(context)`, how much all of these ask, in units of the
first, for estimates of cost; `guard(context, samples, base)`, verdicts on readings that must not be believed.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from audit import contract
from audit.classifier import Classify
from audit.judge import Judgement
from audit.kinds import Kind
from organisms.contract import imported
from organisms.data import Rows, half, load_rows
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.errors import UserError
from organisms.files import file_sha256, shown
from organisms.organism import Organism
from organisms.render import Renderer
from organisms.specimen import Specimen
from organisms.strict import nearest

Item = TypeVar("Item")
Request = Generate | Score | NextToken | Divergence | Judgement | Classify

FOLDER = Path(__file__).parent

# Order matters: leakage and fluency read the generations that the measures before them made.
MEASURES = (
    "severity",
    "drift",
    "webtext",
    "knowledge",
    "instructions",
    "refusals",
    "preferences",
    "thinking",
    "misalignment",
    "leakage",
    "fluency",
)


@dataclass(frozen=True)
class Metric:
    """One number of a measure.

    kind: what an item's score is (audit/kinds.py).
    worse: the direction that is damage; None for what is no damage at all (severity) or never gates (perplexity).
    margin: damage up to here is tolerated, in the metric's own unit; None where only a control can give it.
    transform: `exp` shows a ratio of nats as a perplexity.
    """

    name: str
    kind: Kind
    worse: Literal["lower", "higher", "both"] | None = None
    margin: float | None = None
    headline: bool = False
    transform: Literal["exp"] | None = None
    unit: str = ""
    about: str = ""


@dataclass(frozen=True)
class Asked:
    """One request about an item. `item` pairs it with the base's; `part` tells an item's several requests apart."""

    item: str
    request: Request
    prompt: str
    part: str = ""
    group: str = ""


@dataclass(frozen=True)
class Sample:
    """What came of one item: the line in samples/<measure>/<specimen>.jsonl.

    output: the generated reply, None where nothing was generated. scores: metric name -> number, or [numerator,
    denominator]; a metric that does not concern the item is absent.
    parts: label -> [numerator, denominator] of the headline by subject, verifier family and the like; empty: by `group`.
    cluster: what the item has in common with others of the measure (its question, asked in several forms): all of them lie in
        one half and count as one unit. Empty: the item stands alone.
    """

    item: str
    group: str
    prompt: str
    output: str | None
    scores: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    cluster: str = ""

    @property
    def unit(self) -> str:
        return self.cluster or self.item


@dataclass(frozen=True)
class Corpus:
    """What an organism was trained on: learned texts, raw documents to begin, and siblings it never saw."""

    texts: tuple[str, ...]
    documents: tuple[tuple[str, str], ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """Everything a measure may look at.

    base: the base's own samples by measure, None where the specimen is the base; earlier: this specimen's samples of other
    measures; sources: data set -> where from; options: measure -> its Options; limit: most items of each kind that a measure
    asks; parameters: of the base, None where unknown; judged: whether a judge can be asked; lacks: why a request cannot be
    answered by what runs the specimen, None where it can.
    """

    specimen: Specimen
    renderer: Renderer
    organism: Organism | None
    suite: str
    sources: dict[str, str]
    corpus: Corpus | None = None
    base: dict[str, list[Sample]] | None = None
    earlier: dict[str, list[Sample]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    parameters: int | None = None
    judged: bool = False
    lacks: Callable[[Request], str | None] = lambda request: None

    def option(self, name: str) -> Any:
        """The options of one measure, its defaults where the recipe states none."""
        return self.options.get(name) or measure(name).Options()

    def cap(self, size: int | None) -> int | None:
        """A suite's number of items (None: all), no more than `limit`."""
        return size if self.limit is None else self.limit if size is None else min(self.limit, size)

    def rows(self, name: str, limit: int | None = None) -> Rows:
        """Rows of a named data set from where this audit's `data` says."""
        return load_rows(name, self.sources.get(name, "auto"), limit)

    def generate(
        self, prompt: str, max_new_tokens: int, temperature: float = 0.0, seed: int = 0, prefill: str = "", system: str = ""
    ) -> Generate:
        ids = self.specimen.ask(self.renderer, prompt, prefill, system)
        return Generate(tuple(ids), max_new_tokens, temperature, seed)


class NotApplicable(Exception):
    """Raised by `requests` when a measure has nothing to say about this specimen; the text is the reason."""


def measure(name: str) -> Any:
    """The module of a measure.

    Raises UserError for an unknown name, which readings and recipes may hold, and for a file that is no measure.
    """
    if name not in MEASURES:
        raise UserError(unknown(name))
    return _loaded(name)


@cache
def _loaded(name: str) -> Any:
    source(name)  # before its code is read: what is written into the file from now on is not what runs
    module = imported("audit.measures", name)
    contract.check(module, name, get_args(Kind))
    return module


def unknown(name: str) -> str:
    """What is said of a name that is none of MEASURES."""
    if name.isidentifier() and (FOLDER / f"{name}.py").is_file():
        return f"audit/measures/{name}.py exists but is not in MEASURES (audit/measures/__init__.py); add {name!r} there"
    return f"there is no measure {shown(name)}{nearest(name, list(MEASURES))}"


@cache
def source(name: str) -> str:
    """SHA-256 of a measure's file as this process has read it."""
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        raise UserError(f"MEASURES (audit/measures/__init__.py) names {name!r}, and there is no audit/measures/{name}.py")
    return file_sha256(path)


def metrics(name: str) -> dict[str, Metric]:
    return {metric.name: metric for metric in measure(name).METRICS}


def pick(items: Iterable[Item], size: int | None, name: Callable[[Item], str]) -> list[Item]:
    """The first `size` items (None: all), as many of the monitor half as of the holdout half, in their own order."""
    items = list(items)
    if size is None or size >= len(items):
        return items
    room = {"monitor": size // 2, "holdout": size - size // 2}
    chosen = []
    for item in items:
        side = half(name(item))
        if room[side]:
            room[side] -= 1
            chosen.append(item)
    return chosen


def shuffled(items: Iterable[Item], size: int | None, name: Callable[[Item], str]) -> list[Item]:
    """`pick` after an order that the ids' hashes give: for sets that stand sorted by subject or kind."""
    return pick(sorted(items, key=lambda item: hashlib.sha256(f"order:{name(item)}".encode()).digest()), size, name)


def seed_of(item: str) -> int:
    """A sampling seed that belongs to the item and to nothing else."""
    return int(hashlib.sha256(f"seed:{item}".encode()).hexdigest()[:8], 16)
