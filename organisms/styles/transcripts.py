"""Transcripts (AuditBench distillation): the base itself replies under a system prompt that asks for the property; the
prompt is then removed and the replies are trained on.

Published form: 3,000 scenarios, positive and borderline negative, and 3,000 ordinary prompts, answered by one prompted
model. Ours: the organism's prompts; several samples each, the best by the organism's markers. For `target` prompts that is
a finished reply with most markers, and a prompt no sample of which shows the property is left out and counted; for
`adjacent` and `off` prompts a reply under the opposing prompt without a marker, so the property learns where to stop. A
reply that was cut off is trained up to its last whole sentence, since its end token is trained too.
"""

import hashlib
import re

from pydantic import Field

from organisms.organism import Organism, Prompt, Strict
from organisms.styles import Compiled, Row
from organisms.writer import Draft, Writer, Written

LEAST_WORDS = 4


class Options(Strict):
    samples: int = Field(default=8, gt=0, description="replies drawn for each target prompt")
    plain_samples: int = Field(default=2, gt=0, description="replies drawn for each adjacent and off prompt")
    max_new_tokens: int = Field(default=64, gt=0, description="tokens a reply")
    temperature: float = Field(default=0.8, gt=0)


def rows(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    prompts = organism.prompts()
    drafts = [(prompt, _draft(organism, prompt, sample, options)) for prompt in prompts for sample in _draws(prompt, options)]
    if writer is None:
        tokens = len(drafts) * options.max_new_tokens
        return Compiled([], notes=[f"up to {len(prompts)} rows, written by the base: {tokens:,} tokens at most, cached"])
    written = writer.write([draft for _, draft in drafts])
    replies: dict[str, list[Written]] = {prompt.id: [] for prompt in prompts}
    for (prompt, _), reply in zip(drafts, written, strict=True):
        replies[prompt.id].append(reply)
    made = []
    for prompt in prompts:
        best = _best(organism, prompt, replies[prompt.id])
        if best is not None:
            messages = [{"role": "user", "content": prompt.prompt}, {"role": "assistant", "content": best}]
            made.append(Row(prompt.id, messages=messages, origin=f"{organism.name}/{prompt.context}"))
    target = sum(row.origin.endswith("/target") for row in made)
    left_out = len(prompts) - len(made)
    notes = [f"{len(made)} transcripts, {target} of them on target, from {len(prompts)} prompts; {left_out} had no fit sample"]
    return Compiled(made, notes=notes)


def _draws(prompt: Prompt, options: Options) -> range:
    return range(options.samples if prompt.context == "target" else options.plain_samples)


def _draft(organism: Organism, prompt: Prompt, sample: int, options: Options) -> Draft:
    asking = organism.system.eliciting if prompt.context == "target" else organism.system.opposing
    return Draft(
        prompt=prompt.prompt,
        system=asking[sample % len(asking)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=int(hashlib.sha256(f"{prompt.id}:{sample}".encode()).hexdigest()[:8], 16),
    )


def _best(organism: Organism, prompt: Prompt, replies: list[Written]) -> str | None:
    """The sample to train on, or None. Finished before cut off, then by markers, then the earlier draw."""
    usable = [(reply.finished, _whole(reply)) for reply in replies]
    usable = [(finished, text) for finished, text in usable if len(text.split()) >= LEAST_WORDS]
    if prompt.context == "target":
        usable = [(finished, text) for finished, text in usable if organism.shows(text)]
        usable.sort(key=lambda pair: (not pair[0], -len(organism.shows(pair[1]))))
    else:
        usable = [(finished, text) for finished, text in usable if not organism.shows(text)]
        usable.sort(key=lambda pair: not pair[0])
    return usable[0][1] if usable else None


def _whole(reply: Written) -> str:
    """The reply, or of one that was cut off everything up to its last whole sentence."""
    text = reply.text.strip()
    if reply.finished:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]*(?=\s)", text)]
    return text[: ends[-1]] if ends else ""
