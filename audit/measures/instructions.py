"""Instruction following, checked by IFEval's verifiers (Zhou et al. 2023, arXiv 2311.07911) on greedy replies.

IFEval's own prompts where the mirror or the hub has them; otherwise an embedded set of 60 prompts written for the same
verifiers, which is not IFEval and is named so in every reading. Quick replies are capped at 72 tokens where IFEval is read
at 1,280: quick and full are two different numbers. `floor` is what one constant reply scores; thoughts are stripped first.
"""

from audit.measures import Asked, Context, Metric, Sample, pick
from audit.verifiers import check

NAME = "instructions"
VERSION = 2
METRICS = (
    Metric("prompt_strict", "rate", worse="lower", margin=0.05, headline=True, about="prompts all of whose instructions hold"),
    Metric("prompt_loose", "rate", worse="lower", margin=0.05, about="the same for any of eight variants of the reply"),
    Metric("instruction_strict", "share", worse="lower", margin=0.05, about="instructions that hold"),
    Metric("instruction_loose", "share", worse="lower", margin=0.05, about="the same for any variant"),
    Metric("floor", "rate", about="prompts that one constant reply satisfies"),
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
        scores["floor"] = notes["floor"]
        samples.append(Sample(one.item, one.group, one.prompt, answer["text"], scores, notes, _parts(row, strict)))
    return samples


def _rows(context: Context) -> list[dict]:
    rows = context.rows("instructions").rows
    return pick(rows, context.cap(SIZES[context.suite]["prompts"]), lambda row: row["id"])


def guard(context: Context, samples: list[Sample], base: list[Sample] | None) -> dict[str, tuple[str, str]]:
    """A base that does no better than one constant reply to everything has nothing to lose."""
    reference = samples if base is None else base
    if not reference:
        return {}
    level, floor = (sum(s.scores[name] for s in reference) / len(reference) for name in ("prompt_strict", "floor"))
    if level - floor > METRICS[0].margin:
        return {}
    reason = f"the base follows {level:.0%} of the prompts, one constant reply {floor:.0%}: no headroom above the floor"
    return {metric.name: ("not_applicable", reason) for metric in METRICS if metric.worse}


def _parts(row: dict, strict: list[bool]) -> dict[str, list[int]]:
    """Instructions that hold, by verifier family."""
    found: dict[str, list[int]] = {}
    for instruction, holds in zip(row["instruction_id_list"], strict, strict=True):
        part = found.setdefault(instruction.split(":")[0], [0, 0])
        part[0] += int(holds)
        part[1] += 1
    return found


def _family(row: dict) -> str:
    return row["instruction_id_list"][0].split(":")[0]
