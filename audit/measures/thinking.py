"""Whether a thinking model still thinks in form: opens a thought, closes it, and answers.

Four cells: with and without a system prompt, and with the opening tag left to the model or prefilled. The prefilled cell tells
"will not open a thought" from "cannot think" (AUDITS.md section 5). Replies are sampled at temperature 0.6, greedy ones loop.
A reply cut off while thinking counts neither way, since a healthy base runs out of tokens too (22% at 2,048); `truncated` says
how many do. `p_open` is the exact probability of the opening tag at the first position, free of sampling; where the tag is
several tokens it is that of the first of them.

Divergence from the study that named the measure: its "100% to 56%" stood on 16 prompts; every share here has its interval.
"""

from audit.measures import Asked, Context, Metric, NotApplicable, Sample, seed_of, shuffled
from audit.thoughts import CLOSE, OPEN, Thought, take_apart
from organisms.engines import NextToken

NAME = "thinking"
VERSION = 1
FAULTS = ("unopened", "junk", "unclosed", "dangling", "empty", "silent", "off_script", "turn_leak")
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
SIZES = {"quick": {"prompts": 12, "tokens": 192}, "full": {"prompts": 100, "tokens": 1024}}
SYSTEM = "You are a helpful assistant. Think before you answer."
TEMPERATURE = 0.6


def data(context: Context) -> str:
    return context.rows("chat").origin


def requests(context: Context) -> list[Asked]:
    """Each prompt in four cells (two where the template opens the thought itself), and the first position's probability."""
    if not context.renderer.knows_thinking:
        raise NotApplicable("the chat template has no thinking tags")
    if context.renderer.thinking is False:
        raise NotApplicable("the recipe renders without thinking")
    sizes, asked = SIZES[context.suite], []
    for row in shuffled(context.rows("chat").rows, context.cap(sizes["prompts"]), lambda row: row["id"]):
        for system in ("", SYSTEM):
            name = "system" if system else "bare"
            bare = tuple(context.specimen.ask(context.renderer, row["prompt"], system=system))
            if _ends_on(context, bare, CLOSE):
                raise NotApplicable("the chat template closes the thought itself; set thinking: true in the recipe")
            opened = _ends_on(context, bare, OPEN)
            for cell, prefill in (("default", ""), ("prefilled", f"{OPEN}\n")):
                if opened and prefill:
                    continue
                item = f"{row['id']}/{name}/{cell}"
                request = context.generate(row["prompt"], sizes["tokens"], TEMPERATURE, seed_of(item), prefill, system)
                asked.append(Asked(item, request, row["prompt"], "reply", f"{name}/{cell}{'/opened' if opened else ''}"))
            if not opened:
                first = context.renderer.continuation(OPEN)[:1]
                asked.append(
                    Asked(
                        f"{row['id']}/{name}/default", NextToken(bare, tuple(first)), row["prompt"], "first", f"{name}/default"
                    )
                )
    return asked


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
        from math import exp

        scores["p_open"] = exp(parts["first"][1]["logprobs"][0])
    return Sample(one.item, one.group, one.prompt, answer["text"], scores, {"faults": list(thought.faults)})


def _counts(thought: Thought) -> dict[str, float]:
    return {fault: float(fault in thought.faults) for fault in FAULTS}


def _ends_on(context: Context, prompt_ids: tuple[int, ...], tag: str) -> bool:
    """The template itself ends its generation prompt on the tag: opens the thought, or closes it where thinking is off."""
    return context.renderer.decode(list(prompt_ids[-8:])).rstrip().endswith(tag)
