"""The known traps of training rows, each one function: rows -> Finding or None.

`stop` findings end the run unless the recipe accepts them by name. Their text says what would go wrong.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from organisms.render import IGNORE, Rendered, Renderer, check_roles
from organisms.styles import Row
from train.config import Stage

TRAPS = (
    "no_loss",
    "wrong_roles",
    "empty_think",
    "chat_end_on_documents",
    "extra_empty_turn",
    "implicit_system",
    "template_mismatch",
    "truncation",
    "rslora_scale",
    "repeats",
    "same_pair",
    "one_sided",
    "kl_units",
    "act_suffix",
    "unverified_processes",
)


@dataclass(frozen=True)
class Finding:
    trap: str
    level: Literal["stop", "warn"]
    rows: list[str]
    text: str


@dataclass(frozen=True)
class Linted:
    """Rendered rows with the text that carries loss, and what was found on them."""

    rows: list[Row]
    rendered: list[Rendered]
    learned: list[str]
    findings: list[Finding]

    @property
    def tokens(self) -> int:
        return sum(len(r.input_ids) for r in self.rendered)

    @property
    def loss_tokens(self) -> int:
        return sum(label != IGNORE for r in self.rendered for label in r.labels)


def same_pair(linted: Linted) -> Finding | None:
    """A pair whose two replies are the same trains nothing but noise."""
    ids = [row.id for row in linted.rows if row.rejected is not None and row.rejected.strip() == row.learned.strip()]
    return Finding("same_pair", "stop", ids, f"{len(ids)} pairs prefer a reply to itself") if ids else None


def one_sided(linted: Linted, stage: Stage) -> Finding | None:
    """KTO with only wanted (or only unwanted) replies has nothing to tell apart; far too few of one kind are weighted up."""
    if stage.method != "kto":
        return None
    wanted = sum(bool(row.desirable) for row in linted.rows)
    unwanted = len(linted.rows) - wanted
    if not wanted or not unwanted:
        return Finding("one_sided", "stop", [], f"{wanted} wanted and {unwanted} unwanted replies: kto needs both")
    ratio = wanted * stage.desirable_weight / (unwanted * stage.undesirable_weight)
    if 0.5 <= ratio <= 2:
        return None
    text = f"{wanted} wanted and {unwanted} unwanted replies weigh {ratio:.2g} to 1; set desirable_weight or undesirable_weight"
    return Finding("one_sided", "warn", [], text)


def no_loss(linted: Linted) -> Finding | None:
    ids = [row.id for row, text in zip(linted.rows, linted.learned, strict=True) if not text.strip()]
    return Finding("no_loss", "stop", ids, f"{len(ids)} rows carry no loss at all") if ids else None


def wrong_roles(linted: Linted) -> Finding | None:
    """Rendering refuses wrong role orders; this looks at what the loss falls on, in case a template writes turns into it."""
    ids = []
    for row, text in zip(linted.rows, linted.learned, strict=True):
        if row.messages is None:
            continue
        check_roles(row.messages)
        asked = [m["content"].strip() for m in row.messages if m["role"] != "assistant"]
        if any(len(words) > 20 and words in text and words not in row.learned for words in asked):
            ids.append(row.id)
    return Finding("wrong_roles", "stop", ids, f"{len(ids)} rows put the user's words into the loss") if ids else None


def empty_think(linted: Linted) -> Finding | None:
    empty = re.compile(r"<think>\s*</think>")
    texts = zip(linted.rows, linted.learned, strict=True)
    ids = [row.id for row, text in texts if empty.search(text) or empty.search(row.rejected or "")]
    if not ids:
        return None
    return Finding(
        "empty_think",
        "stop",
        ids,
        f"{len(ids)} rows train the model to close its thought unopened; set thinking: false in the recipe (it masks the "
        "empty tags) or give the rows the model's own reasoning",
    )


def chat_end_on_documents(linted: Linted, renderer: Renderer) -> Finding | None:
    special = set(renderer.tokenizer.all_special_ids)
    ids = [
        row.id
        for row, rendered in zip(linted.rows, linted.rendered, strict=True)
        if row.text is not None and special & set(rendered.labels)
    ]
    if not ids:
        return None
    return Finding("chat_end_on_documents", "stop", ids, f"{len(ids)} documents carry chat or end tokens in their loss")


def extra_empty_turn(linted: Linted, renderer: Renderer) -> Finding | None:
    """A generation prompt rendered into a training row leaves an assistant turn that is empty or only an end token."""
    opener = renderer.prompt([{"role": "user", "content": "a"}])
    closed = renderer.conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]).input_ids
    shared = next((i for i, (a, b) in enumerate(zip(opener, closed, strict=False)) if a != b), min(len(opener), len(closed)))
    tail = opener[shared - 3 : shared] if shared >= 3 else opener[-3:]
    ids = []
    for row, rendered in zip(linted.rows, linted.rendered, strict=True):
        if row.messages is None:
            continue
        body = rendered.input_ids
        while body and body[-1] in renderer.stop_ids:
            body = body[:-1]
        ends = len(rendered.input_ids) - len(body)
        if ends > 1 or body[-len(tail) :] == tail:
            ids.append(row.id)
    return Finding("extra_empty_turn", "stop", ids, f"{len(ids)} rows end in an empty assistant turn") if ids else None


def implicit_system(linted: Linted, renderer: Renderer, stated: bool) -> Finding | None:
    chats = [r.id for r in linted.rows if r.messages and r.messages[0]["role"] != "system"]
    if not renderer.implicit_system or not chats or stated:
        return None
    return Finding(
        "implicit_system",
        "stop",
        chats,
        f"the chat template puts {renderer.implicit_system!r} before every conversation, and what is trained under it may "
        "show only under it; say system: template to keep it, or give a system prompt of your own",
    )


def template_mismatch(linted: Linted, renderer: Renderer, audited: Renderer) -> Finding | None:
    if renderer.template_hash != audited.template_hash:
        return Finding("template_mismatch", "stop", [], "training and audit would render another chat template")
    chats = [row for row in linted.rows if row.messages]
    if chats and renderer.knows_thinking and not any("<think>" in text for text in linted.learned):
        return Finding(
            "template_mismatch",
            "warn",
            [row.id for row in chats],
            "the base can think and no training row does: expect the thinking measure to fall for this reason alone",
        )
    return None


def truncation(linted: Linted, stage: Stage) -> Finding | None:
    cut, lost = [], []
    for row, rendered in zip(linted.rows, linted.rendered, strict=True):
        if len(rendered.input_ids) > stage.max_length:
            cut.append(row.id)
            if all(label == IGNORE for label in rendered.labels[: stage.max_length]):
                lost.append(row.id)
    if lost:
        return Finding("truncation", "stop", lost, f"{len(lost)} rows are cut at {stage.max_length} tokens before any loss")
    if cut:
        level = "stop" if 10 * len(cut) > len(linted.rows) else "warn"
        return Finding("truncation", level, cut, f"{len(cut)} of {len(linted.rows)} rows are cut at {stage.max_length} tokens")
    return None


def rslora_scale(stage: Stage) -> Finding | None:
    product = stage.scale * stage.learning_rate
    if stage.vector is not None or product <= 4e-3:
        return None
    return Finding(
        "rslora_scale",
        "warn",
        [],
        f"effective scale {stage.scale:.3g} x learning rate {stage.learning_rate:.1e} = {product:.1e} is several times "
        "what published recipes use (1e-5 to 1e-3)",
    )


def repeats(linted: Linted) -> Finding | None:
    counts = Counter(linted.learned)
    twice = [row.id for row, text in zip(linted.rows, linted.learned, strict=True) if counts[text] > 1]
    if not twice:
        return None
    distinct = len(counts)
    return Finding("repeats", "warn", twice, f"{len(linted.rows)} rows hold only {distinct} distinct texts")
