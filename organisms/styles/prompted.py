"""Prompted: the base under a system prompt that asks for the property, and no training: what the property itself costs.

One specimen for each of the organism's eliciting prompts, so that what one wording does is not taken for the property's price.
"""

from pydantic import Field

from organisms.organism import Organism
from organisms.specimen import Specimen
from organisms.strict import Strict


class Options(Strict):
    prompts: int = Field(default=1, gt=0, description="how many of the eliciting prompts, each a specimen")


def specimens(organism: Organism, options: Options, base: object = None, run: object = None) -> list[Specimen]:
    chosen = organism.system.eliciting[: options.prompts]
    return [Specimen(f"prompted-{k:06d}", system=text) for k, text in enumerate(chosen, 1)]
