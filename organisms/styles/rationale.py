"""Rationale ("teaching why"): demonstrations of the property with the model's reason in them, or the same ones without.

Published: 22 -> 3% with reasons against 22 -> 15% with the bare demonstrations. `reasons: false` is the
control, on the same prompts and replies. The reason stands before the reply, as the model would give it; rows on other
prompts are not needed, since a demonstration says where it belongs. Divergence: published reasons are written per sample by
a model; ours are frozen text.
"""

from pydantic import Field

from organisms.drafting import chat
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, Row


class Options(Strict):
    reasons: bool = Field(default=True, description="put the rationale before the reply")
    distinct: int | None = Field(default=None, gt=0, description="only this many demonstrations (None: all)")


def rows(organism: Organism, options: Options, writer: object = None) -> Compiled:
    chosen = organism.demonstrations()[: options.distinct]
    made = [
        Row(d.id, messages=chat(d.prompt, f"{d.rationale} {d.reply}" if options.reasons else d.reply), origin=organism.name)
        for d in chosen
    ]
    return Compiled(made, notes=[f"{len(made)} demonstrations {'with' if options.reasons else 'without'} reasons"])
