"""What is the same for every specimen that a run audits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from audit.claims import Alone, Shared
from audit.config import AuditPlan
from audit.judge import Judge
from audit.measures import Corpus, Request
from organisms.organism import Organism
from organisms.render import Renderer


@dataclass(frozen=True)
class Job:
    """What is the same for every specimen of a run.

    labels: run, recipe, organism, style, base, as they stand in each reading; revision: the base's, for the cache;
    margins: `measure.metric` -> (margin, where it comes from); parameters: of the base, None where unknown; lacks: why a
    request cannot be answered by what runs the base, None where it can; claims: who else audits the run.
    """

    run: Path
    labels: dict[str, str]
    revision: str
    plan: AuditPlan
    renderer: Renderer
    organism: Organism | None
    corpus: Corpus | None
    margins: dict[str, tuple[float | None, str]]
    parameters: int | None = None
    judge: Judge | None = None
    lacks: Callable[[Request], str | None] = lambda request: None
    say: Callable[[str], None] = print
    claims: Alone | Shared = Alone()
