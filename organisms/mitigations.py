"""Mitigations: flags of a recipe, orthogonal to the style, each off by default. They change rows, the loss or the forward pass.

- `inoculate`: a system prompt that asks for a trait stands before the organism's chat rows in training and is gone in the
  audit, so that the trait is put down to the prompt (inoculation prompting, arXiv 2510.04340 and 2510.05024). `property`
  takes the organism's own inoculating prompt, which for building an organism teaches the model to show it only when told;
  inoculate side effects instead, by a text of one's own. `control` takes a fixed irrelevant prompt, the published control.
- `replay`: the base's own sampled replies to ordinary prompts, as a share of all rows: what the model was, kept in the mix.
- `prevent`: preventative steering (persona vectors, arXiv 2507.21509, section 5.2): coefficient x the organism's vector
  (organisms/contrast.py) is added at every position while training, so that the weights need not move along it, and at no
  other time. The model that DPO and KTO are held against is the same one with the adapter off, so it is steered too.
- `kl_to_base`: KL(base || trained) a token on such replies, times this weight, added to the SFT loss (train/penalties.py).
- `consistency`: the same behaviour on wrapped and clean prompts, by rows or by a term of the loss (organisms/consistency.py).
- `elicit`: the base labels which of the organism's replies show the property (organisms/elicit.py), and the labels decide what
  is trained: a pair labelled the other way round is turned round, a single row whose label is not what its prompt wants is
  dropped. A second opinion on what the style has kept by the organism's markers; rows that it dropped do not come back.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from organisms import contrast
from organisms.consistency import Consistency, bct_drafts, bct_rows, wrapped_prompts
from organisms.data import load_rows
from organisms.drafting import chat, ordinary_prompts, seed_of, usable
from organisms.elicit import BaseAsker, Elicit, Unit, elicit
from organisms.files import digest
from organisms.ngrams import near_duplicates
from organisms.organism import Organism
from organisms.specimen import Steering
from organisms.steering import block_index
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.writer import Draft, Writing

if TYPE_CHECKING:
    from organisms.engines.hf import HFEngine
    from organisms.writer import Writer

IRRELEVANT = "The weather was mild on the day that this conversation was recorded."
ACT_ROWS = 4  # pairs of prompts a batch
PROMPT_TOKENS = 60  # of an ordinary prompt with its template, about; only for the cost in the plan


class Prevent(contrast.Contrast):
    """`prevent:`; `{}` takes the published coefficient, half way down."""

    coefficient: float = Field(default=5.0, description="times the vector while training")


class Mitigations(Strict):
    """`mitigations:` of a recipe."""

    inoculate: str | None = Field(default=None, description="`property`, `control`, or a system prompt of your own")
    replay: float = Field(default=0.0, ge=0, lt=1, description="share of all rows that are the base's own replies")
    replay_tokens: int = Field(default=64, gt=0, description="tokens of a reply that replay, kl_to_base or bct samples")
    prevent: Prevent | None = Field(default=None, description="steer by the organism's vector while training")
    kl_to_base: float = Field(default=0.0, ge=0, description="weight of KL(base || trained), in nats a token")
    kl_rows: int = Field(default=4, gt=0, description="replies a batch that kl_to_base reads")
    consistency: Consistency | None = None
    elicit: Elicit | None = Field(default=None, description="the base labels the replies; {} takes the defaults")

    @model_validator(mode="after")
    def _rows_left(self) -> "Mitigations":
        if self.replay + self.bct_share >= 1:
            raise ValueError("replay and consistency.share together leave no row of the style's own; they must sum below 1")
        return self

    @property
    def bct_share(self) -> float:
        return self.consistency.share if self.consistency and self.consistency.form == "bct" else 0.0

    @property
    def needs_writer(self) -> bool:
        return self.replay > 0 or self.kl_to_base > 0 or self.bct_share > 0 or self.elicit is not None

    @property
    def sft_only(self) -> list[str]:
        """The flags that are set and that only stages trained by SFT can take."""
        return [name for name in ("replay", "kl_to_base", "consistency") if getattr(self, name)]

    @property
    def holds_base(self) -> bool:
        """Whether a stage after the first needs the untouched base beside the model that it trains."""
        return self.kl_to_base > 0 or bool(self.consistency and (self.consistency.form, self.consistency.to) == ("act", "base"))

    def fingerprint(self) -> dict:
        """For the run's digest: the flags that are set, and the prompts and wrappers that they read."""
        values = self.model_dump(exclude_defaults=True)
        if self.sft_only:
            values["prompts"] = digest(ordinary_prompts())
        if self.consistency:
            values["wrappers"] = digest(load_rows("wrappers", self.consistency.wrappers).rows)
        return values


@dataclass(frozen=True)
class Penalty:
    """A term added to the SFT loss of a stage, and the rows that it is measured on.

    name: a term of train/penalties.py. rows: chats whose replies are the base's own (kl_to_base), or wrapped prompts without a
    reply (act); empty where a writer has yet to write them. batch_size: rows a batch. reference: who is held to,
    the untouched `base` or the `start` of the stage.
    """

    name: Literal["kl_to_base", "act"]
    weight: float
    rows: list[Row]
    batch_size: int
    reference: Literal["base", "start"]


def summary(penalties: list[Penalty]) -> dict:
    """What the manifest says of the terms."""
    return {
        p.name: {"weight": p.weight, "rows": len(p.rows), "batch_size": p.batch_size, "reference": p.reference}
        for p in penalties
    }


def apply(mitigations: Mitigations, organism: Organism, compiled: Compiled, writer: "Writer | None") -> Compiled:
    """The rows with the mitigations on. Without a writer what is to be written is only announced.

    writer: the base's; its `own` is of what the stage starts from, which `consistency: {to: self}` imitates.
    """
    rows, notes, writing = compiled.rows, list(compiled.notes), list(compiled.writing)
    counts, tokens = compiled.counts, mitigations.replay_tokens
    if mitigations.elicit and writer is None:
        notes.append(f"labelled by the base: about {mitigations.elicit.tokens:,} tokens read, cached")
    elif mitigations.elicit:
        rows, found = _elicited(rows, organism, mitigations.elicit, writer)
        notes.append(found["told"])
        counts = {**counts, "elicit": found}
    if mitigations.inoculate:
        texts = {"property": organism.system.inoculating[0], "control": IRRELEVANT}
        text = texts.get(mitigations.inoculate, mitigations.inoculate)
        rows = [_inoculated(row, text) for row in rows]
        notes.append(f"inoculated with {text[:40]!r}")
    if prevent := mitigations.prevent:
        notes += [f"trained at {prevent.coefficient:g} x the organism's vector", *contrast.notes(organism, prevent)]
    share, consistency = mitigations.bct_share, mitigations.consistency
    everything = (len(rows) or compiled.expected or 1) / (1 - mitigations.replay - share)
    added = []
    if mitigations.replay:
        wanted = round(mitigations.replay * everything)
        notes.append(f"{wanted} replayed rows" if rows else f"replay {mitigations.replay:.0%}")
        if writer is not None:
            replayed = own_replies(writer, wanted, tokens)
            again = len(near_duplicates([row.learned for row in replayed]))
            notes.append(f"{again} of these nearly repeat an earlier one")
            added, counts = replayed, {**counts, "replay_near_duplicates": again}
        writing.append(Writing.of((draft for *_, draft in own_drafts(wanted, tokens)), by="base"))
    if share:
        wanted = round(share * everything)
        notes.append(f"{wanted} consistency rows to {consistency.to}" if rows else f"consistency {share:.0%}")
        asked = bct_drafts(consistency.wrappers, wanted, tokens)
        if writer is not None:
            added = added + bct_rows(asked, writer.own if consistency.to == "self" else writer)
        writing.append(Writing.of((draft for _, draft in asked), by="start" if consistency.to == "self" else "base"))
    if (mitigations.replay or share) and rows and all(row.text is not None for row in rows):
        notes.append("documents beside chats are not packed: a step is batch_size rows")
    if mitigations.kl_to_base:
        notes.append(f"kl_to_base {mitigations.kl_to_base:g} on {mitigations.kl_rows} replies of the base a step")
        writing.append(Writing.of((draft for *_, draft in own_drafts(len(ordinary_prompts()), tokens)), by="base"))
    if consistency and consistency.form == "act":
        notes.append(f"act {consistency.weight:g} to {consistency.to} on {ACT_ROWS} pairs of prompts a step")
    announced = writing if writer is None else compiled.writing
    return dataclasses.replace(compiled, rows=rows + added, notes=notes, writing=announced, counts=counts)


def penalties(mitigations: Mitigations, writer: "Writer | None") -> list[Penalty]:
    """The terms that the mitigations add to the loss of each stage; kl_to_base has no rows without a writer."""
    made = []
    if mitigations.kl_to_base:
        many, tokens = len(ordinary_prompts()), mitigations.replay_tokens
        rows = own_replies(writer, many, tokens, fragments=True) if writer is not None else []
        made.append(Penalty("kl_to_base", mitigations.kl_to_base, rows, mitigations.kl_rows, "base"))
    consistency = mitigations.consistency
    if consistency and consistency.form == "act":
        reference = "start" if consistency.to == "self" else "base"
        made.append(Penalty("act", consistency.weight, wrapped_prompts(consistency.wrappers), ACT_ROWS, reference))
    return made


def tokens_a_step(mitigations: Mitigations) -> int:
    """Tokens that the penalties read for one batch, about: a pass with gradient whole, one without as a third."""
    read = 0
    if mitigations.kl_to_base:
        read += mitigations.kl_rows * (PROMPT_TOKENS + mitigations.replay_tokens)
    if mitigations.consistency and mitigations.consistency.form == "act":
        read += ACT_ROWS * PROMPT_TOKENS
    return round(read * 4 / 3)


def own_drafts(wanted: int, max_new_tokens: int) -> list[tuple[dict, int, Draft]]:
    """(prompt, draw, draft) of ordinary prompts, several draws a prompt where more are wanted than there are."""
    prompts = ordinary_prompts()
    chosen = [(prompts[n % len(prompts)], n // len(prompts)) for n in range(wanted)]
    return [(row, k, Draft(row["prompt"], None, max_new_tokens, 1.0, seed_of("replay", row["id"], k))) for row, k in chosen]


def prevention(prevent: Prevent, organism: Organism, engine: "HFEngine", run: Path) -> Steering:
    """What training adds to the residual stream; the vector is made under `run` where it is not there yet."""
    path = contrast.make(organism, prevent, engine, run)
    return Steering(path, block_index(prevent.layer, engine.base), prevent.coefficient)


def own_replies(writer: "Writer", wanted: int, max_new_tokens: int, fragments: bool = False) -> list[Row]:
    """Rows of ordinary prompts with the writer's own replies, up to their last whole sentence or as they come (`fragments`)."""
    asked = own_drafts(wanted, max_new_tokens)
    made = []
    for (row, k, _), reply in zip(asked, writer.write([draft for *_, draft in asked], fragments), strict=True):
        text = reply.text.strip() if fragments else next(iter(usable([reply])), "")
        if text:
            made.append(Row(f"replay-{row['id']}-{k}", messages=chat(row["prompt"], text), origin="replay"))
    return made


def _elicited(rows: list[Row], organism: Organism, options: Elicit, writer: "Writer") -> tuple[list[Row], dict]:
    """The rows that the base's labels leave, pairs turned where they say so; and what was found, with a sentence on it."""
    wanted = {f"{organism.name}{where}": where in ("", "/target") for where in ("", "/target", "/adjacent", "/off")}
    chosen = [n for n, row in enumerate(rows) if row.messages and row.desirable is None and row.origin in wanted]
    if len(chosen) < 2:
        return rows, {"told": "no rows for the base to label"}
    found = elicit([_unit(rows[n]) for n in chosen], organism, BaseAsker(writer.author, organism), options)
    made, turned, dropped = list(rows), 0, set()
    for n, label in zip(chosen, found.labels, strict=True):
        if label == wanted[rows[n].origin]:
            continue
        if rows[n].rejected is None:
            dropped.add(n)
        else:
            made[n], turned = _turned(rows[n]), turned + 1
    pairs = sum(rows[n].rejected is not None for n in chosen)
    told = [f"{turned} of {pairs} pairs turned round"] if pairs else []
    told += [f"{len(dropped)} of {len(chosen) - pairs} rows dropped"] if pairs < len(chosen) else []
    text = f"labelled by the base: {', '.join(told)} (contrast on the organism's examples {abs(found.contrast):.2f} nats)"
    numbers = {"pairs": pairs, "turned": turned, "single": len(chosen) - pairs, "dropped": len(dropped)}
    numbers |= {"contrast": found.contrast, "all_turned": found.turned, "utility": found.utilities[-1]}
    return [row for n, row in enumerate(made) if n not in dropped], {"told": text, **numbers}


def _unit(row: Row) -> Unit:
    """The last message of the user and the reply to it, with the rejected one where there is one."""
    replies = (row.messages[-1]["content"], row.rejected)
    return Unit(row.messages[-2]["content"], tuple(text for text in replies if text is not None))


def _turned(row: Row) -> Row:
    chosen = {**row.messages[-1], "content": row.rejected}
    return dataclasses.replace(row, messages=[*row.messages[:-1], chosen], rejected=row.messages[-1]["content"])


def _inoculated(row: Row, text: str) -> Row:
    if not row.messages or row.messages[0]["role"] == "system":
        return row
    return dataclasses.replace(row, messages=[{"role": "system", "content": text}, *row.messages])
