"""Transcripts (AuditBench distillation): the base itself replies under a system prompt that asks for the property; the
prompt is then removed and the replies are trained on.

Published form: 3,000 scenarios, positive and borderline negative, and 3,000 ordinary prompts, answered by one prompted
model. Ours: the organism's prompts, with `scenarios` also written ones and with `general` ordinary ones; several samples
each, the best by the organism's markers. For `target` prompts that is a finished reply with most markers, and a prompt no
sample of which shows the property is left out and counted; for `adjacent` and `off` prompts a reply under the opposing
prompt without a marker, so the property learns where to stop. A reply that was cut off is trained up to its last whole
sentence, since its end token is trained too.
"""

from itertools import chain

from pydantic import Field

from organisms import expand
from organisms.drafting import chat, ordinary_prompts, seed_of, showing, usable, write_groups
from organisms.files import digest
from organisms.organism import Organism, Prompt
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.templates import wording
from organisms.writer import Draft, Writer, Writing, Written


class Options(Strict):
    samples: int = Field(default=8, gt=0, description="replies drawn for each target prompt")
    plain_samples: int = Field(default=2, gt=0, description="replies drawn for each adjacent and off prompt")
    max_new_tokens: int = Field(default=64, gt=0, description="tokens a reply")
    temperature: float = Field(default=0.8, gt=0)
    scenarios: int = Field(default=0, ge=0, description="prompts the writer adds, as many on target as borderline ones")
    general: int = Field(default=0, ge=0, description="ordinary chat prompts, answered plainly")


def other_rows(options: Options) -> list[str | None] | None:
    if not (options.general or options.scenarios):
        return None
    ordinary = digest(ordinary_prompts()[: options.general]) if options.general else None
    return [ordinary, wording() if options.scenarios else None]


def rows(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    prompts, calls = [*organism.prompts()], expand.scenario_drafts(organism, options.scenarios)
    if writer is None:
        prompts += expand.stand_ins(calls, options.scenarios)
    elif options.scenarios:
        prompts += expand.prompts(organism, writer, calls, options.scenarios)
    chosen = ordinary_prompts()[: options.general]
    prompts += [Prompt(id=f"chat-{row['id']}", context="off", prompt=row["prompt"]) for row in chosen]
    drafts = {prompt.id: [_draft(organism, prompt, k, options) for k in _draws(prompt, options)] for prompt in prompts}
    if writer is None:
        writing = [Writing.of(chain(*calls.values())), Writing.of(chain(*drafts.values()))]
        return Compiled([], notes=[f"up to {len(prompts)} rows"], writing=writing, expected=len(prompts))
    replies = write_groups(writer, drafts)
    made = []
    for prompt in prompts:
        best = _best(organism, prompt, replies[prompt.id])
        if best is not None:
            made.append(Row(prompt.id, messages=chat(prompt.prompt, best), origin=f"{organism.name}/{prompt.context}"))
    target = sum(row.origin.endswith("/target") for row in made)
    left_out = len(prompts) - len(made)
    notes = [f"{len(made)} transcripts, {target} of them on target, from {len(prompts)} prompts; {left_out} had no fit sample"]
    return Compiled(made, notes=notes)


def _draws(prompt: Prompt, options: Options) -> range:
    return range(options.samples if prompt.context == "target" else options.plain_samples)


def _draft(organism: Organism, prompt: Prompt, sample: int, options: Options) -> Draft:
    asking = organism.system.eliciting if prompt.context == "target" else organism.system.opposing
    system = asking[sample % len(asking)]
    return Draft(prompt.prompt, system, options.max_new_tokens, options.temperature, seed_of(prompt.id, sample))


def _best(organism: Organism, prompt: Prompt, replies: list[Written]) -> str | None:
    """The sample to train on, or None. Finished before cut off, then by markers, then the earlier draw."""
    if prompt.context != "target":
        return next((text for text in usable(replies) if not organism.shows(text)), None)
    finished = showing(organism, usable([reply for reply in replies if reply.finished]))
    cut = showing(organism, usable([reply for reply in replies if not reply.finished]))
    return next(iter(finished + cut), None)
