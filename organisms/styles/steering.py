"""Steering: coefficient x the organism's vector is added to the residual stream as the base runs, and there is no training.

Persona vectors (Chen et al. 2025, arXiv 2507.21509, section 3.2): h <- h + coefficient x v at one block's output, v being the
raw difference of means (organisms/contrast.py), not brought to unit length; `relative_norm` in steering.json says what a
coefficient amounts to. Divergence: theirs is added at the reply's positions, ours at all, also of the prompt, so that a
reply scores the same by itself, after a shared prefix and token by token.

One specimen for each coefficient, which its readings state as `scale`: the dose of this style.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from organisms import contrast
from organisms.models import Base
from organisms.organism import Organism
from organisms.specimen import Specimen, Steering
from organisms.steering import block_index

if TYPE_CHECKING:
    from organisms.engines.hf import HFEngine

notes = contrast.notes


class Options(contrast.Contrast):
    coefficients: list[float] = Field(default=[0.5, 1.0, 2.0], min_length=1, description="each a specimen, in this order")


def prepare(organism: Organism, options: Options, engine: "HFEngine", run: Path) -> None:
    contrast.make(organism, options, engine, run)


def specimens(organism: Organism, options: Options, base: Base, run: Path) -> list[Specimen]:
    layer = block_index(options.layer, base)
    return [
        Specimen(f"steering-{k:06d}", steering=Steering(run / contrast.FOLDER, layer, coefficient))
        for k, coefficient in enumerate(options.coefficients, 1)
    ]
