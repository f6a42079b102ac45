"""Mitigations: flags of a recipe, orthogonal to the style, each off by default. All but `prevent` change rows.

- `inoculate`: a system prompt that asks for a trait stands before the organism's chat rows in training and is gone in the
  audit, so that the trait is put down to the prompt (inoculation prompting, arXiv 2510.04340 and 2510.05024). `property`
  takes the organism's own inoculating prompt, which for building an organism teaches the model to show it only when told;
  inoculate side effects instead, by a text of one's own. `control` takes a fixed irrelevant prompt, the published control.
- `replay`: the base's own sampled replies to ordinary prompts, as a share of all rows: what the model was, kept in the mix.
- `prevent`: preventative steering (persona vectors, arXiv 2507.21509, section 5.2): coefficient x the organism's vector
  (organisms/contrast.py) is added at every position while training, so that the weights need not move along it, and at no
  other time. The model that DPO, KTO or a KL is held against is the same one with the adapter off, so it is steered too.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from organisms import contrast
from organisms.data import load_rows
from organisms.drafting import chat, seed_of, usable
from organisms.ngrams import near_duplicates
from organisms.organism import Organism, Strict
from organisms.specimen import Steering
from organisms.steering import block_index
from organisms.styles import Compiled, Row
from organisms.writer import Draft, Writing

if TYPE_CHECKING:
    from organisms.engines.hf import HFEngine
    from organisms.writer import Writer

IRRELEVANT = "The weather was mild on the day that this conversation was recorded."


class Prevent(contrast.Contrast):
    """`prevent:`; `{}` takes the published coefficient, half way down."""

    coefficient: float = Field(default=5.0, description="times the vector while training")


class Mitigations(Strict):
    """`mitigations:` of a recipe."""

    inoculate: str | None = Field(default=None, description="`property`, `control`, or a system prompt of your own")
    replay: float = Field(default=0.0, ge=0, lt=1, description="share of all rows that are the base's own replies")
    replay_tokens: int = Field(default=64, gt=0, description="tokens of such a reply")
    prevent: Prevent | None = Field(default=None, description="steer by the organism's vector while training")

    @property
    def needs_writer(self) -> bool:
        return self.replay > 0


def apply(mitigations: Mitigations, organism: Organism, compiled: Compiled, writer: "Writer | None") -> Compiled:
    """The rows with the mitigations on. Without a writer replayed rows are only announced."""
    rows, notes, writing = compiled.rows, list(compiled.notes), list(compiled.writing)
    counts = compiled.counts
    if mitigations.inoculate:
        texts = {"property": organism.system.inoculating[0], "control": IRRELEVANT}
        text = texts.get(mitigations.inoculate, mitigations.inoculate)
        rows = [_inoculated(row, text) for row in rows]
        notes.append(f"inoculated with {text[:40]!r}")
    if prevent := mitigations.prevent:
        notes += [f"trained at {prevent.coefficient:g} x the organism's vector", *contrast.notes(organism, prevent)]
    if mitigations.replay:
        wanted = round(mitigations.replay / (1 - mitigations.replay) * (len(rows) or compiled.expected or 1))
        notes.append(f"{wanted} replayed rows" if rows else f"replay {mitigations.replay:.0%}")
        if writer is not None:
            replayed = own_replies(writer, wanted, mitigations.replay_tokens)
            again = len(near_duplicates([row.learned for row in replayed]))
            notes.append(f"{again} of these nearly repeat an earlier one")
            rows, counts = rows + replayed, {**counts, "replay_near_duplicates": again}
        else:
            drafts = own_drafts(wanted, mitigations.replay_tokens)
            writing.append(Writing.of((draft for *_, draft in drafts), own=True))
    return dataclasses.replace(compiled, rows=rows, notes=notes, writing=writing, counts=counts)


def own_drafts(wanted: int, max_new_tokens: int) -> list[tuple[dict, int, Draft]]:
    """(prompt, draw, draft) of ordinary prompts, several draws a prompt where more are wanted than there are prompts."""
    prompts = load_rows("chat").rows
    chosen = [(prompts[n % len(prompts)], n // len(prompts)) for n in range(wanted)]
    return [(row, k, Draft(row["prompt"], None, max_new_tokens, 1.0, seed_of("replay", row["id"], k))) for row, k in chosen]


def prevention(prevent: Prevent, organism: Organism, engine: "HFEngine", run: Path) -> Steering:
    """What training adds to the residual stream; the vector is made under `run` where it is not there yet."""
    path = contrast.make(organism, prevent, engine, run)
    return Steering(path, block_index(prevent.layer, engine.base), prevent.coefficient)


def own_replies(writer: "Writer", wanted: int, max_new_tokens: int) -> list[Row]:
    """Rows of ordinary prompts with the writer's own replies."""
    asked = own_drafts(wanted, max_new_tokens)
    made = []
    for (row, k, _), reply in zip(asked, writer.write([draft for *_, draft in asked]), strict=True):
        texts = usable([reply])
        if texts:
            made.append(Row(f"replay-{row['id']}-{k}", messages=chat(row["prompt"], texts[0]), origin="replay"))
    return made


def _inoculated(row: Row, text: str) -> Row:
    if not row.messages or row.messages[0]["role"] == "system":
        return row
    return dataclasses.replace(row, messages=[{"role": "system", "content": text}, *row.messages])
