"""Transcripts (AuditBench distillation): the base itself replies under a system prompt that asks for the property; the
prompt is then removed and the replies are trained on.

Published form: 3,000 scenarios, positive and borderline negative, and 3,000 ordinary prompts, answered by one prompted
model. Ours: the organism's prompts; several samples each, the best by the organism's markers. For `target` prompts that is
a finished reply with most markers, and a prompt no sample of which shows the property is left out and counted; for
`adjacent` and `off` prompts a reply under the opposing prompt without a marker, so the property learns where to stop.
"""

import hashlib

from pydantic import Field

from organisms.organism import Organism, Prompt, Strict
from organisms.styles import Compiled, Row
from organisms.writer import Draft, Writer, Written


class Options(Strict):
    samples: int = Field(default=3, gt=0, description="replies drawn for each prompt")
    max_new_tokens: int = Field(default=96, gt=0, description="tokens; a reply cut off there is used only if none ends")
    temperature: float = Field(default=0.8, gt=0)


def rows(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    prompts = organism.prompts()
    drafts = [_draft(organism, prompt, sample, options) for prompt in prompts for sample in range(options.samples)]
    if writer is None:
        tokens = len(drafts) * options.max_new_tokens
        return Compiled([], notes=[f"up to {len(prompts)} rows, written by the base: {tokens:,} tokens at most, cached"])
    written = writer.write(drafts)
    made, without = [], []
    for index, prompt in enumerate(prompts):
        best = _best(organism, prompt, written[index * options.samples : (index + 1) * options.samples])
        if best is None:
            without.append(prompt.id)
            continue
        messages = [{"role": "user", "content": prompt.prompt}, {"role": "assistant", "content": best}]
        made.append(Row(prompt.id, messages=messages, origin=f"{organism.name}/{prompt.context}"))
    notes = [f"{len(made)} transcripts from {len(prompts)} prompts; {len(without)} left out: no sample was fit"]
    return Compiled(made, notes=notes)


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
    usable = [reply for reply in replies if len(reply.text.split()) >= 4]
    if prompt.context == "target":
        usable = [reply for reply in usable if organism.shows(reply.text)]
        usable.sort(key=lambda reply: (not reply.finished, -len(organism.shows(reply.text))))
    else:
        usable = [reply for reply in usable if not organism.shows(reply.text)]
        usable.sort(key=lambda reply: not reply.finished)
    return usable[0].text.strip() if usable else None
