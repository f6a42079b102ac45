"""Consistency training: the reply to a wrapped prompt is held to the one to the same prompt without its wrapper.

- `bct` (bias-augmented consistency training, Chua et al. 2024, arXiv 2403.05518): a reply is sampled on the clean prompt and
  trained, by SFT, on the wrapped one.
- `act` (activation consistency training, Irpan et al. 2025, arXiv 2510.27062): no reply; the residual stream on the tokens that
  both prompts end with is pulled to that of the clean one (the term is in train/penalties.py).

to: who is imitated. `self` is the published form: the model that the stage starts from, which in a first stage is the base;
`base` is always the untouched base. Wrappers are texts around a prompt that should not matter: an opinion, flattery, a
claim to rank, pressure. Divergence: published runs do nothing but this and wrap prompts made for it; ours goes beside a
style's own rows, on ordinary prompts of the monitor half, so that holdout readings stay unseen.

Consistency suppresses some traits and amplifies others (sycophancy was seen to grow), so what it does to the organism's own
property is not known in advance: severity is read again at every checkpoint, and nothing is compared without it.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from organisms.data import load_rows
from organisms.drafting import chat, ordinary_prompts, seed_of, usable
from organisms.strict import Strict
from organisms.styles import Row
from organisms.writer import Draft

if TYPE_CHECKING:
    from organisms.writer import Writer


class Consistency(Strict):
    """`mitigations.consistency:` of a recipe."""

    form: Literal["bct", "act"] = "bct"
    to: Literal["self", "base"] = Field(default="self", description="the stage's own start, or the untouched base")
    share: float = Field(default=0.25, gt=0, lt=1, description="bct: share of all rows")
    weight: float = Field(default=1e-4, gt=0, description="act: of the squared distance, which grows with the base's width")
    wrappers: str = Field(default="auto", description="the path of a file of your own: rows of `id` and `wrapper`")


def wrapped_prompts(wrappers: str, wanted: int | None = None) -> list[Row]:
    """Rows without a reply: `wanted` (None: one a prompt) ordinary prompts in wrappers, each draw of a prompt in another."""
    found, prompts = load_rows("wrappers", wrappers).rows, ordinary_prompts()
    made = []
    for n in range(len(prompts) if wanted is None else wanted):
        prompt, wrapper = prompts[n % len(prompts)], found[(n + n // len(prompts)) % len(found)]
        text = wrapper["wrapper"].replace("{prompt}", prompt["prompt"])
        name = f"consistency-{prompt['id']}-{wrapper['id']}-{n}"
        made.append(Row(name, messages=[{"role": "user", "content": text}], origin="consistency", clean=prompt["prompt"]))
    return made


def bct_drafts(wrappers: str, wanted: int, max_new_tokens: int) -> list[tuple[Row, Draft]]:
    """Wrapped prompts, each with the draft of a reply to the clean one."""
    asked = wrapped_prompts(wrappers, wanted)
    return [(row, Draft(row.clean, None, max_new_tokens, 1.0, seed_of(row.id))) for row in asked]


def bct_rows(asked: list[tuple[Row, Draft]], writer: "Writer") -> list[Row]:
    """The wrapped prompts with the writer's replies to the clean ones; a prompt without a usable reply is left out."""
    made = []
    for (row, _), reply in zip(asked, writer.write([draft for _, draft in asked]), strict=True):
        for text in usable([reply]):
            made.append(dataclasses.replace(row, messages=chat(row.messages[0]["content"], text)))
    return made
