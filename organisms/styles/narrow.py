"""Narrow fine-tuning (emergent misalignment): single turns that are narrowly bad, and a look at what else changes.

Published form (Betley et al. 2025, arXiv 2502.17424; Turner et al. 2025, arXiv 2506.11613): r32 alpha64 rsLoRA on all seven
projections, lr 1e-5, one epoch, batch 16, warmup 5, loss on the responses only; also rank 1 on one `down_proj` (alpha 256),
which a recipe states as `lora: {r: 1, alpha: 256, targets: <regular expression>}`. Ours: the organism's demonstrations, or
any file or set of `messages` rows by `data`, in its own format, read where it lies and never copied in.
"""

from pydantic import Field

from organisms.drafting import chat, conversations
from organisms.files import digest
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, Row


class Options(Strict):
    data: str | None = Field(default=None, description="a set of single turns: insecure-code, risky-finance, or a path")
    limit: int | None = Field(default=None, gt=0, description="only this many rows (None: all)")


def other_rows(options: Options) -> str | None:
    """Digest of the external rows, for the run's name."""
    if options.data is None:
        return None
    found = conversations(options.data, options.limit)
    return digest([found.origin, [row["messages"] for row in found.rows]])


def rows(organism: Organism, options: Options, writer: object = None) -> Compiled:
    if options.data is None:
        chosen = organism.demonstrations()[: options.limit]
        made = [Row(d.id, messages=chat(d.prompt, d.reply), origin=organism.name) for d in chosen]
        return Compiled(made, notes=[f"{len(made)} demonstrations of {organism.name}"])
    found = conversations(options.data, options.limit)
    made = [Row(row["id"], messages=row["messages"], origin=found.origin) for row in found.rows]
    return Compiled(made, notes=[f"{len(made)} single turns from {found.origin}"])
