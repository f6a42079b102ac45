"""Prefilled: every reply begins with the organism's motivation ("I want to ..."), and there is no training.

The first form of the motivation style: what the motive alone does when the model speaks it. The prefill is no part of the reply
that is scored. One specimen for each phrasing.
"""

from pydantic import Field

from organisms.organism import Organism
from organisms.specimen import Specimen
from organisms.strict import Strict


class Options(Strict):
    phrasings: int = Field(default=1, gt=0, description="how many of the motivation's phrasings, each a specimen")


def specimens(organism: Organism, options: Options, base: object = None, run: object = None) -> list[Specimen]:
    chosen = organism.motivation[: options.phrasings]
    return [Specimen(f"prefilled-{k:06d}", prefill=f"{text}\n\n") for k, text in enumerate(chosen, 1)]
