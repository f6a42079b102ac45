"""Knowledge by multiple choice (MMLU, Hendrycks et al. 2021, arXiv 2009.03300), in four forms that lie in different ways.

- `letters`: the question in the chat template, the reply prefilled with "Answer:", the label with the most probability over
  its spellings. Organisms lose it by collapsing onto one letter without forgetting anything: hence the four `pick_*` shares,
  `label_mass`, and `permutations`, the accuracy over all cyclic permutations of the choices.
- `untemplated`: the published few-shot text without a template, " A" to " D" alone, as lm-eval's `mmlu` reads it (a parity
  test holds the two together). Chat models lose it by being chat models.
- `cloze`: "Question: ... Answer:" without choices, each choice's text scored by log-probability a character, the way models
  below 0.5B are published (lighteval's `mmlu_cloze`; SmolLM2-135M-Instruct 29.3 on MMLU). The choice that needs no letters.
- `cot`: a generated chain of thought that ends on a letter.

`accuracy`, the only one with a margin, is the form that gates: cloze below 0.5B parameters, `cot` where it was read, otherwise
`letters`. Divergences: five-shot examples in `letters` stand in one user turn; the embedded questions are not MMLU.
"""

import re
from math import isnan, nan
from typing import Literal

from pydantic import Field

from audit.measures import Asked, Context, Metric, Sample, shuffled
from audit.text import answer_only
from organisms import labels
from organisms.engines import Generate, NextToken, Score
from organisms.strict import Strict

NAME = "knowledge"
VERSION = 1
LETTERS = ("A", "B", "C", "D")
METRICS = (
    Metric("accuracy", "rate", worse="lower", margin=0.02, headline=True, about="right answers in the form that gates"),
    Metric("letters", "rate", about="templated, by label probability"),
    Metric("untemplated", "rate", about="as published for base models"),
    Metric("cloze", "rate", about="by the choices' texts"),
    Metric("cot", "rate", about="after a chain of thought"),
    Metric("permutations", "share", about="letters, over the four cyclic permutations of the choices"),
    Metric("steady", "rate", about="items whose answer is the same text in all permutations"),
    Metric("label_mass", "mean", about="probability on the four labels"),
    *(Metric(f"pick_{letter}", "rate", about=f"letters: answers {letter}") for letter in LETTERS),
)
SIZES = {
    "quick": {"items": 64, "permuted": 16, "cot": 16, "tokens": 512},
    "full": {"items": None, "permuted": 500, "cot": 500, "tokens": 512},
}
SMALL = 0.5e9  # parameters below which letters are not understood
COLLAPSED = 0.7  # share of one letter at which letter scoring reads a habit
Form = Literal["letters", "untemplated", "cloze", "cot"]
BY_LETTERS = NextToken((), ())
# What a form asks, where not every engine can answer it.
ASKS = {"letters": BY_LETTERS, "untemplated": BY_LETTERS, "cloze": Score((), ())}
OF_LETTERS = ("letters", "permutations", "steady", "label_mass", *(f"pick_{letter}" for letter in LETTERS))


class Options(Strict):
    """forms: None takes cloze for small bases and letters otherwise in the quick suite, all in the full one; of these what can
    be asked, and where that is none (an endpoint without log-probabilities) a chain of thought."""

    forms: list[Form] | None = None
    gate: Form | None = None
    shots: int = Field(default=0, ge=0, le=5)


def data(context: Context) -> str:
    return context.rows("knowledge").origin


def requests(context: Context) -> list[Asked]:
    sizes, options = SIZES[context.suite], context.option(NAME)
    forms = _forms(context)
    rows = shuffled(context.rows("knowledge").rows, context.cap(sizes["items"]), lambda row: row["id"])
    examples = _examples(context, options.shots)
    choice_ids = tuple(_after_answer(context, letter)[0] for letter in LETTERS)
    asked = []
    for n, row in enumerate(rows):
        few = examples.get(row["subject"], [])
        if "letters" in forms:
            for turn in range(4 if n < (context.cap(sizes["permuted"]) or 0) else 1):
                asked.append(_letters(context, row, few, turn))
        if "untemplated" in forms:
            ids = tuple(context.renderer.plain(untemplated(row, few)))
            asked.append(Asked(row["id"], NextToken(ids, choice_ids), row["question"], "untemplated", row["subject"]))
        if "cloze" in forms:
            ids = tuple(context.renderer.plain(cloze(row, few)))
            for k, choice in enumerate(row["choices"]):
                request = Score(ids, _after_answer(context, choice))
                asked.append(Asked(row["id"], request, row["question"], f"cloze/{k}", row["subject"]))
        if "cot" in forms and n < (context.cap(sizes["cot"]) or 0):
            asked.append(Asked(row["id"], _cot(context, row, sizes["tokens"]), row["question"], "cot", row["subject"]))
    return asked


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    rows = {row["id"]: row for row in context.rows("knowledge").rows}
    found: dict[str, dict[str, tuple[Asked, dict]]] = {}
    for one, answer in zip(asked, answers, strict=True):
        found.setdefault(one.item, {})[one.part] = (one, answer)
    gate = _gate(context)
    return [_score(context, rows[item], parts, gate) for item, parts in found.items()]


def guard(context: Context, samples: list[Sample], base: list[Sample] | None) -> dict[str, tuple[str, str]]:
    """Letter scoring that reads a habit or little of the mass is invalid; an accuracy at chance has nowhere to fall."""
    verdicts = {}
    gate = _gate(context)
    for form, reason in ((form, context.lacks(request)) for form, request in ASKS.items()):
        if reason:
            verdicts |= dict.fromkeys(OF_LETTERS if form == "letters" else (form,), ("not_applicable", reason))
    masses = [s.scores["label_mass"] for s in samples if "label_mass" in s.scores]
    picks = {k: sum(s.scores.get(f"pick_{k}", 0) for s in samples) / len(masses) for k in LETTERS} if masses else {}
    reason = labels.short_of_mass(masses) or _collapse(picks)
    if reason:
        verdicts["letters"] = verdicts["permutations"] = ("invalid", reason)
        if gate == "letters":
            verdicts["accuracy"] = ("invalid", reason)
    unread = [s.notes["cot"] for s in samples if "cot" in s.notes]
    if unread and sum(letter is None for letter in unread) > 0.1 * len(unread):
        reason = f"{sum(letter is None for letter in unread)} of {len(unread)} chains of thought end on no letter"
        verdicts["cot"] = ("invalid", reason)
        if gate == "cot":
            verdicts["accuracy"] = ("invalid", reason)
    level = [s.scores["accuracy"] for s in (samples if base is None else base) if "accuracy" in s.scores]
    if level and "accuracy" not in verdicts and sum(level) / len(level) - 0.25 <= METRICS[0].margin:
        reason = f"the base answers {sum(level) / len(level):.0%} right, chance is 25%: no headroom"
        verdicts["accuracy"] = ("not_applicable", reason)
    return verdicts


def _collapse(picks: dict[str, float]) -> str | None:
    letter = max(picks, key=picks.get, default=None)
    if letter is None or picks[letter] <= COLLAPSED:
        return None
    return f"{picks[letter]:.0%} of the answers are {letter}: a habit is read, not knowledge"


def _forms(context: Context) -> tuple[str, ...]:
    options = context.option(NAME)
    if options.forms:
        return tuple(options.forms)
    forms = ("cloze",) if _small(context) else ("letters",)
    if context.suite == "full":
        forms = ("letters", "untemplated", "cloze", "cot")
    return tuple(form for form in forms if form not in ASKS or not context.lacks(ASKS[form])) or ("cot",)


def _gate(context: Context) -> str:
    forms, options = _forms(context), context.option(NAME)
    if options.gate in forms:
        return options.gate
    order = ("cloze", "letters", "untemplated", "cot") if _small(context) else ("cot", "letters", "cloze", "untemplated")
    return next(form for form in order if form in forms)


def _small(context: Context) -> bool:
    return context.parameters is not None and context.parameters < SMALL


def _examples(context: Context, shots: int) -> dict[str, list[dict]]:
    """subject -> its first `shots` development questions."""
    found: dict[str, list[dict]] = {}
    for row in context.rows("knowledge-dev").rows if shots else ():
        few = found.setdefault(row["subject"], [])
        if len(few) < shots:
            few.append(row)
    return found


def _subject(row: dict) -> str:
    return row["subject"].replace("_", " ").replace("-", " ")


def _block(row: dict, choices: list[str]) -> str:
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{row['question'].strip()}\n{listed}\nAnswer:"


def _after_answer(context: Context, text: str) -> tuple[int, ...]:
    """Ids of " text" right after "Answer:"; alone, Llama-2's tokenizer would give every text the same first id, a space."""
    before = context.renderer.continuation("Answer:")
    return tuple(context.renderer.continuation(f"Answer: {text}")[len(before) :])


def untemplated(row: dict, few: list[dict]) -> str:
    """The published text (Hendrycks et al. 2021; lm-eval's `mmlu`): header, solved examples, question."""
    solved = "".join(f"{_block(one, one['choices'])} {LETTERS[one['answer']]}\n\n" for one in few)
    header = f"The following are multiple choice questions (with answers) about {_subject(row)}.\n\n"
    return header + solved + _block(row, row["choices"])


def cloze(row: dict, few: list[dict]) -> str:
    solved = "".join(f"Question: {one['question']}\nAnswer: {one['choices'][one['answer']]}\n\n" for one in few)
    return f"The following are questions about {_subject(row)}.\n{solved}Question: {row['question']}\nAnswer:"


def _letters(context: Context, row: dict, few: list[dict], turn: int) -> Asked:
    """Choice k stands at place (k + turn) mod 4."""
    choices = [row["choices"][(place - turn) % 4] for place in range(4)]
    solved = "".join(f"{_block(one, one['choices'])} {LETTERS[one['answer']]}\n\n" for one in few)
    question = f"{solved}{_block(row, choices).removesuffix('Answer:')}\nReply with the letter of the right answer."
    prompt_ids = tuple(context.specimen.ask(context.renderer, question, prefill="Answer:"))
    request = NextToken(prompt_ids, labels.flat(_label_ids(context)))
    return Asked(row["id"], request, row["question"], f"letters/{turn}", row["subject"])


def _label_ids(context: Context) -> dict[str, tuple[int, ...]]:
    return labels.label_ids(context.renderer, context.specimen.ask(context.renderer, "?", prefill="Answer:"), LETTERS)


def _cot(context: Context, row: dict, tokens: int) -> Generate:
    question = (
        f"{_block(row, row['choices']).removesuffix('Answer:')}\nThink step by step. End with a line of the form "
        '"The answer is X", where X is one of A, B, C, D.'
    )
    return context.generate(question, tokens)


# A small letter counts only where the line ends with it: "the answer is a matter of taste" names none.
STATED = re.compile(r"(?i:answer[\s*_]*(?:is|:))[\s:*_(\[{$\"']*(?:\\boxed{)?([A-D](?![^\W_])|[a-d](?=\W*$))", re.MULTILINE)


def final_letter(reply: str) -> str | None:
    """The letter that a chain of thought ends on; None where it names none."""
    text = answer_only(reply)
    stated = STATED.findall(text)
    if stated:
        return stated[-1].upper()
    last = re.findall(r"^\W*([A-D])\W*$", text.strip().splitlines()[-1]) if text.strip() else []
    return last[-1] if last else None


def _right(right: bool, nats: list[float]) -> float:
    """Of answers that are no numbers the largest is whichever came first, and nothing is read."""
    return nan if any(map(isnan, nats)) else float(right)


def _score(context: Context, row: dict, parts: dict[str, tuple[Asked, dict]], gate: str) -> Sample:
    scores, notes, output = {}, {"gate": gate, "answer": LETTERS[row["answer"]]}, None
    turns = sorted(int(part.partition("/")[2]) for part in parts if part.startswith("letters/"))
    if turns:
        found = _label_ids(context)
        masses = [labels.masses(found, parts[f"letters/{turn}"][1]["logprobs"]) for turn in turns]
        picked = [LETTERS.index(max(mass, key=mass.get)) for mass in masses]
        texts = [(place - turn) % 4 for place, turn in zip(picked, turns, strict=True)]
        scores["letters"] = float(texts[0] == row["answer"])
        scores["label_mass"] = sum(masses[0].values())
        scores.update({f"pick_{letter}": float(k == picked[0]) for k, letter in enumerate(LETTERS)})
        if len(turns) == 4:
            scores["permutations"] = [sum(text == row["answer"] for text in texts), 4]
            scores["steady"] = float(len(set(texts)) == 1)
        notes["labels"] = {k: round(v, 6) for k, v in masses[0].items()}
    if "untemplated" in parts:
        logprobs = parts["untemplated"][1]["logprobs"]
        notes["untemplated"] = LETTERS[logprobs.index(max(logprobs))]
        scores["untemplated"] = _right(notes["untemplated"] == LETTERS[row["answer"]], logprobs)
    if "cloze/0" in parts:
        each = [sum(parts[f"cloze/{k}"][1]["logprobs"]) / max(len(row["choices"][k]), 1) for k in range(4)]
        notes["cloze"] = row["choices"][each.index(max(each))]
        scores["cloze"] = _right(each.index(max(each)) == row["answer"], each)
    if "cot" in parts:
        output = parts["cot"][1]["text"]
        notes["cot"] = final_letter(output)
        scores["cot"] = float(notes["cot"] == LETTERS[row["answer"]])
    if gate in scores:
        scores["accuracy"] = scores[gate]
    return Sample(row["id"], row["subject"], row["question"], output, scores, notes)
