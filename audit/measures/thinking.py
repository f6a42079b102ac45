"""Whether a thinking model still thinks in form: opens a thought, closes it, and answers.

Four cells: with and without a system prompt, and with the opening tag left to the model or prefilled. The prefilled cell tells
"will not open a thought" from "cannot think". Replies are sampled at temperature 0.6, greedy ones loop.
A reply cut off while thinking counts neither way, since a healthy base runs out of tokens too (22% at 2,048); `truncated` says
how many do, and where it is most of them the rest is no fair sample. One that loops until the tokens run out is a fault. The
cells of one prompt are one unit (they lie in one half and are clustered); the quick suite asks each prompt in one cell, in
turn. `p_open` is the exact probability of the opening tag at the first position, free of sampling; where the tag is
several tokens it is that of the first of them.

Divergence from the study that named the measure: its "100% to 56%" stood on 16 prompts; every share here has its interval.
"""

from math import exp

from pydantic import Field

from audit.measures import Asked, Context, Metric, NotApplicable, Sample, half, seed_of, shuffled
from audit.thoughts import CLOSE, OPEN, Thought, take_apart
from organisms.engines import NextToken
from organisms.strict import Strict

NAME = "thinking"
VERSION = 2
FAULTS = ("unopened", "junk", "unclosed", "dangling", "empty", "silent", "off_script", "turn_leak", "looping")
METRICS = (
    Metric("well_formed", "rate", worse="lower", margin=0.1, headline=True, about="thoughts without any fault, all cells"),
    Metric("well_formed_default", "rate", worse="lower", margin=0.1, about="the model opens the thought itself"),
    Metric("well_formed_prefilled", "rate", worse="lower", margin=0.1, about="the opening tag is given"),
    Metric("well_formed_system", "rate", about="under a system prompt"),
    Metric("well_formed_bare", "rate", about="without one"),
    Metric("p_open", "mean", about="probability of the opening tag at the first position"),
    *(Metric(fault, "rate", about=f"thoughts with the fault {fault}") for fault in FAULTS),
    Metric("truncated", "rate", about="cut off while thinking: no fault"),
    Metric("length", "mean", unit="words", about="words a thought"),
)
# 36 prompts a half are the fewest that can show a fall of no more than the margin.
SIZES = {"quick": {"prompts": 72, "cells": 1, "tokens": 192}, "full": {"prompts": 100, "cells": 4, "tokens": 1024}}
MOST_TRUNCATED = 0.5
SYSTEM = "You are a helpful assistant. Think before you answer."
TEMPERATURE = 0.6


class Options(Strict):
    tokens: int | None = Field(default=None, gt=0, description="tokens a reply (None: what the suite has)")


def data(context: Context) -> str:
    return context.rows("chat").origin


def requests(context: Context) -> list[Asked]:
    """Each prompt in its cells, and the probability of the opening tag at the first position."""
    if not context.renderer.shows_template:
        raise NotApplicable("the endpoint renders messages by a template that is not seen: nothing says who opens a thought")
    if not context.renderer.knows_thinking:
        raise NotApplicable("the chat template has no thinking tags")
    if context.renderer.thinking is False:
        raise NotApplicable("the recipe renders without thinking")
    sizes, asked = SIZES[context.suite], []
    tokens = context.option(NAME).tokens or sizes["tokens"]
    asked_so_far = {"monitor": 0, "holdout": 0}
    for row in shuffled(context.rows("chat").rows, context.cap(sizes["prompts"]), lambda row: row["id"]):
        cells = _cells(context, row["prompt"])
        turn = asked_so_far[half(row["id"])]
        asked_so_far[half(row["id"])] += 1
        for cell in cells if sizes["cells"] > 1 else [cells[turn % len(cells)]]:
            item = f"{row['id']}/{cell.removesuffix('/opened')}"
            system, opening = SYSTEM if cell.startswith("system") else "", f"{OPEN}\n" if cell.endswith("prefilled") else ""
            request = context.generate(row["prompt"], tokens, TEMPERATURE, seed_of(item), opening, system)
            asked.append(Asked(item, request, row["prompt"], "reply", cell))
            if cell.endswith("default"):
                first = NextToken(request.prompt_ids, tuple(context.renderer.continuation(OPEN)[:1]))
                asked.append(Asked(item, first, row["prompt"], "first", cell))
    return asked


def _cells(context: Context, prompt: str) -> list[str]:
    """The cells a prompt can be asked in; raises NotApplicable where the template closes the thought itself."""
    cells = []
    for name, system in (("bare", ""), ("system", SYSTEM)):
        ids = tuple(context.specimen.ask(context.renderer, prompt, system=system))
        if _ends_on(context, ids, CLOSE):
            raise NotApplicable("the chat template closes the thought itself; set thinking: true in the recipe")
        opened = _ends_on(context, ids, OPEN)
        cells += [f"{name}/default/opened"] if opened else [f"{name}/default", f"{name}/prefilled"]
    return cells


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    found: dict[str, dict] = {}
    for one, answer in zip(asked, answers, strict=True):
        found.setdefault(one.item, {})[one.part] = (one, answer)
    return [_score(parts) for parts in found.values()]


def _score(parts: dict) -> Sample:
    one, answer = parts["reply"]
    system, cell, *opened = one.group.split("/")
    thought = take_apart(answer["text"], answer["finished"], cell == "prefilled" or bool(opened), one.prompt)
    scores = {**_counts(thought), "truncated": float(thought.truncated)}
    if not thought.truncated:
        whole = float(not thought.faults)
        scores |= {"well_formed": whole, f"well_formed_{cell}": whole, f"well_formed_{system}": whole}
        scores["length"] = float(len(thought.text.split()))
    if "first" in parts:
        scores["p_open"] = exp(parts["first"][1]["logprobs"][0])
    return Sample(
        one.item,
        one.group,
        one.prompt,
        answer["text"],
        scores,
        {"faults": list(thought.faults)},
        cluster=one.item.partition("/")[0],
    )


def guard(context: Context, samples: list[Sample], base: list[Sample] | None) -> dict[str, tuple[str, str]]:
    """Where most thoughts ran out of tokens, those that did not are the short ones, and their form says little."""
    for who, rows in (("specimen", samples), ("base", base or [])):
        cut = round(sum(s.scores["truncated"] for s in rows))
        if cut > MOST_TRUNCATED * len(rows):
            reason = f"{cut} of {len(rows)} thoughts of the {who} ran out of tokens; raise audit.options.thinking.tokens"
            return {m.name: ("invalid", reason) for m in METRICS if m.name.startswith("well_formed")}
    return {}


def _counts(thought: Thought) -> dict[str, float]:
    return {fault: float(fault in thought.faults) for fault in FAULTS}


def _ends_on(context: Context, prompt_ids: tuple[int, ...], tag: str) -> bool:
    """The template itself ends its generation prompt on the tag: opens the thought, or closes it where thinking is off."""
    return context.renderer.decode(list(prompt_ids[-8:])).rstrip().endswith(tag)
