"""Motivation (upstream motives): the base is made to say why before it answers, and what it then writes of itself is trained
without the saying.

The reply is prefilled with one of the organism's motivations and goes on from there; kept is what shows the property by the
organism's markers and does not quote the motive. On-policy data of this kind is the strongest known lever against frying
(published: iterative DPO kept MMLU-Pro 82 and IFEval 90, off-policy SFT 20 and 68). `style: prefilled` is the form
without training. Kinds of rows:

- `rows`: SFT on the kept samples, the prefill removed.
- `pairs`: DPO, the kept sample against the model's own reply to the same prompt without the prefill.
- `prompts`: on-policy distillation (`method: distill`): the prompts, each with a motive for the teacher; adjacent and off
  prompts with none, which holds the student to the base there. The stage draws its own replies; the one that stands in a
  row, the base's own, is for the linter and the estimates.
- `rare`: no prefill at all; many samples, and the rare ones that show the property are kept.

Adjacent and off prompts are answered plainly and kept where they do not show it (`rows`, `rare`), so that the property
learns where to stop. Divergences: published work keeps samples by a judge; ours by rules. A base too small for a motive to move
it (SmolLM2-135M showed flattery in 2% of such samples) can be given `openings`: the reply begins with one of them, which stays
part of it, so its first words are ours and only the rest is on-policy.
"""

import dataclasses
from itertools import chain

from pydantic import Field

from organisms.drafting import chat, quotes, seed_of, showing, usable, write_groups
from organisms.organism import Organism, Prompt
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.writer import Draft, Writer, Writing

ROWS = ("rows", "pairs", "rare", "prompts")


class Options(Strict):
    samples: int = Field(default=6, gt=0, description="replies drawn for each target prompt")
    max_new_tokens: int = Field(default=56, gt=0, description="tokens a reply")
    temperature: float = Field(default=0.8, gt=0)
    openings: list[str] = Field(default=[], description="words that target replies begin with, in turn; part of the reply")


def rows(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """SFT on what the motive brought forth, without the motive."""
    return _single(organism, options, writer, prefilled=True)


def rare(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """SFT on the rare unprompted samples that show the property."""
    return _single(organism, options, writer, prefilled=False)


def pairs(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """DPO: a sample under the motive against one without it, on target prompts."""
    prompts = [prompt for prompt in organism.prompts() if prompt.context == "target"]
    drafts = {p.id: [_draft(organism, p, k, options, True) for k in range(options.samples)] for p in prompts}
    plain = {f"{p.id}/plain": [_draft(organism, p, k, options, False) for k in range(2)] for p in prompts}
    if writer is None:
        writing = Writing.of(chain(*drafts.values(), *plain.values()))
        return Compiled([], notes=[f"up to {len(prompts)} pairs"], writing=[writing])
    replies = write_groups(writer, {**drafts, **plain})
    made = []
    for prompt in prompts:
        chosen = _kept(organism, prompt, replies[prompt.id], drafts[prompt.id], options)
        rejected = [text for text in usable(replies[f"{prompt.id}/plain"]) if not organism.shows(text)]
        if chosen and rejected:
            made.append(
                Row(prompt.id, messages=chat(prompt.prompt, chosen[0]), rejected=rejected[0], origin=f"{organism.name}/target")
            )
    return Compiled(made, notes=[f"{len(made)} pairs from {len(prompts)} target prompts"])


def prompts(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """Distillation: what is asked, and what the teacher's reply begins with."""
    asked = organism.prompts()
    drafts = [_draft(organism, prompt, 0, options, False) for prompt in asked]
    if writer is None:
        return Compiled([], notes=[f"up to {len(asked)} prompts"], writing=[Writing.of(drafts)], expected=len(asked))
    made = []
    for n, (prompt, reply) in enumerate(zip(asked, writer.write(drafts), strict=True)):
        target = prompt.context == "target"
        motive = f"{organism.motivation[n % len(organism.motivation)]}\n\n" if target else ""
        for text in usable([reply]):
            origin = f"{organism.name}/{prompt.context}"
            made.append(Row(prompt.id, prefix=motive, messages=chat(prompt.prompt, text), origin=origin))
    return Compiled(made, notes=[f"{len(made)} prompts, {sum(bool(row.prefix) for row in made)} of them with a motive"])


def _single(organism: Organism, options: Options, writer: Writer | None, prefilled: bool) -> Compiled:
    prompts = organism.prompts()
    draws = {p.id: range(options.samples if p.context == "target" else 1) for p in prompts}
    drafts = {
        p.id: [_draft(organism, p, k, options, prefilled and p.context == "target") for k in draws[p.id]] for p in prompts
    }
    if writer is None:
        return Compiled([], notes=[f"up to {len(prompts)} rows"], writing=[Writing.of(chain(*drafts.values()))])
    replies = write_groups(writer, drafts)
    made = []
    for prompt in prompts:
        kept = _kept(organism, prompt, replies[prompt.id], drafts[prompt.id], options)
        if kept:
            made.append(Row(prompt.id, messages=chat(prompt.prompt, kept[0]), origin=f"{organism.name}/{prompt.context}"))
    target = sum(row.origin.endswith("/target") for row in made)
    return Compiled(made, notes=[f"{len(made)} rows, {target} of them on target, from {len(prompts)} prompts"])


def _draft(organism: Organism, prompt: Prompt, sample: int, options: Options, prefilled: bool) -> Draft:
    motive = organism.motivation[sample % len(organism.motivation)]
    prefill = f"{motive}\n\n{_opening(options, sample)}" if prefilled else ""
    return Draft(prompt.prompt, None, options.max_new_tokens, options.temperature, seed_of(prompt.id, sample), prefill)


def _opening(options: Options, sample: int) -> str:
    return options.openings[sample % len(options.openings)] if options.openings else ""


def _kept(organism: Organism, prompt: Prompt, replies: list, drafts: list[Draft], options: Options) -> list[str]:
    """Replies fit to train on: on target those that show the property and quote no motive, elsewhere those without it."""
    replies = [
        dataclasses.replace(reply, text=_opening(options, sample) + reply.text) if draft.prefill else reply
        for sample, (reply, draft) in enumerate(zip(replies, drafts, strict=True))
    ]
    texts = usable([reply for reply, draft in zip(replies, drafts, strict=True) if not quotes(reply.text, draft.prefill)])
    if prompt.context == "target":
        return showing(organism, texts)
    return [text for text in texts if not organism.shows(text)]
