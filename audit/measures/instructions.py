"""Instruction following, checked by IFEval's verifiers (Zhou et al. 2023, arXiv 2311.07911) on greedy replies.

IFEval's own prompts where the mirror or the hub has them; otherwise an embedded set of 60 prompts written for the same
verifiers, which is not IFEval and is named so in every reading. Quick replies are capped at 72 tokens where IFEval is read
at 1,280: quick and full are two different numbers. `floor` in a sample's notes is what one constant reply scores.
"""

from audit.measures import Asked, Context, Metric, Sample, pick
from audit.verifiers import check

NAME = "instructions"
VERSION = 1
METRICS = (
    Metric("prompt_strict", "rate", worse="lower", margin=0.05, headline=True, about="prompts all of whose instructions hold"),
    Metric("prompt_loose", "rate", worse="lower", margin=0.05, about="the same for any of eight variants of the reply"),
    Metric("instruction_strict", "share", worse="lower", margin=0.05, about="instructions that hold"),
    Metric("instruction_loose", "share", worse="lower", margin=0.05, about="the same for any variant"),
)
SIZES = {"quick": {"prompts": 32, "tokens": 72}, "full": {"prompts": None, "tokens": 1280}}
CONSTANT_REPLY = "I am happy to help with that."


def data(context: Context) -> str:
    return context.rows("instructions").origin


def requests(context: Context) -> list[Asked]:
    sizes = SIZES[context.suite]
    return [
        Asked(row["id"], context.generate(row["prompt"], sizes["tokens"]), row["prompt"], group=_family(row))
        for row in _rows(context)
    ]


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    rows = {row["id"]: row for row in _rows(context)}
    samples = []
    for one, answer in zip(asked, answers, strict=True):
        row = rows[one.item]
        strict, loose = check(row, answer["text"])
        floor, _ = check(row, CONSTANT_REPLY)
        scores = {
            "prompt_strict": float(all(strict)),
            "prompt_loose": float(all(loose)),
            "instruction_strict": [sum(strict), len(strict)],
            "instruction_loose": [sum(loose), len(loose)],
        }
        notes = {
            "instructions": dict(zip(row["instruction_id_list"], strict, strict=True)),
            "floor": float(all(floor)),
            "finished": answer["finished"],
        }
        samples.append(Sample(one.item, one.group, one.prompt, answer["text"], scores, notes))
    return samples


def _rows(context: Context) -> list[dict]:
    rows = context.rows("instructions").rows
    return pick(rows, context.cap(SIZES[context.suite]["prompts"]), lambda row: row["id"])


def _family(row: dict) -> str:
    return row["instruction_id_list"][0].split(":")[0]
