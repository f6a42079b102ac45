"""What all rows share: the loaded base, and how large the work is."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from organisms import models
from organisms.engines import NextToken, Score
from organisms.files import cache_dir
from organisms.render import Renderer
from organisms.specimen import Specimen

Size = Literal["small", "normal", "full"]
BASE = Specimen("base")
ROUNDS = 3


@dataclass(frozen=True)
class Setup:
    """size: `small` only shows that the rows work, `normal` keeps each within some four minutes on two cores."""

    name: str = models.EMBEDDED
    size: Size = "normal"

    @cached_property
    def base(self) -> models.Base:
        return models.resolve(self.name)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(models.load_tokenizer(self.base))

    @cached_property
    def engine(self) -> Any:
        """The transformers engine, never given an adapter by a row."""
        from organisms.engines.hf import HFEngine

        return HFEngine(self.base, self.renderer)

    @cached_property
    def model(self) -> Any:
        """The same weights once more as transformers runs them, for the peers; the engine has its own attend another way."""
        return models.load_model(self.base, self.engine.dtype, self.engine.device)

    @property
    def tolerance(self) -> float:
        """Nats by which two ways of computing the same log-probability may differ: rounding, and nothing else."""
        return 2e-3 if self.engine.dtype == "float32" else 0.15

    def of(self, small: int, normal: int, full: int | None = None) -> int:
        """The number that belongs to this size."""
        return {"small": small, "normal": normal, "full": normal if full is None else full}[self.size]


def parts(items: list, count: int = ROUNDS) -> list[list]:
    """Items in `count` runs of nearly equal length."""
    ends = [round(k * len(items) / count) for k in range(count + 1)]
    return [items[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def tokens(requests: list[Score | NextToken]) -> int:
    return sum(len(r.prompt_ids) + len(getattr(r, "continuation_ids", ())) for r in requests)


@contextlib.contextmanager
def own_cache() -> Iterator[Path]:
    """A cache without answers of earlier runs, which would be read instead of asked; only converted models are shared."""
    models_folder = cache_dir() / "models"
    models_folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("ORGANISMS_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(models_folder.resolve())
        os.environ["ORGANISMS_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("ORGANISMS_CACHE")
            if before is not None:
                os.environ["ORGANISMS_CACHE"] = before
