"""Multiple choice reads knowledge in four forms, and says so where a form reads something else."""

import math
import re
from collections import Counter

import pytest

from audit.ask import ask
from audit.measures import Context, Sample, half, knowledge, shuffled
from organisms import labels
from organisms.data import load_rows
from organisms.engines import Completion, Score
from organisms.errors import UserError
from organisms.render import Renderer
from organisms.specimen import Specimen

BASE = Specimen("base")
ROWS = load_rows("knowledge", "embedded").rows
DEV = load_rows("knowledge-dev", "embedded").rows
FORMS = ["letters", "untemplated", "cloze", "cot"]
SMALL, LARGE = 135_000_000, 7_000_000_000


def right(row, shown):
    return shown.index(row["choices"][row["answer"]])


def wrong(row, shown):
    return (right(row, shown) + 1) % 4


class Scripted:
    """Answers by rule. letters, contents: (row, choices in the order shown) -> place of the one taken, where letters are
    asked and where texts are scored; mass: row -> probability on the four labels; reply: of a chain of thought."""

    identity = {"engine": "scripted"}

    def __init__(self, renderer, letters=right, contents=right, mass=lambda row: 0.99, reply="So the answer is {}."):
        self.renderer, self.letters, self.contents, self.mass, self.reply = renderer, letters, contents, mass, reply

    def generate(self, specimen, requests):
        return [Completion([], self.reply.format(self._taken(request)[1]), True) for request in requests]

    def next_token(self, specimen, requests):
        for request in requests:
            row, letter = self._taken(request)
            spelled = [self.renderer.decode([i]).strip() for i in request.choice_ids]
            yield [math.log(self.mass(row) * (0.7 if s == letter else 0.1) / spelled.count(s)) for s in spelled]

    def logprobs(self, specimen, requests):
        for request in requests:
            row, _ = self._taken(request)
            taken = row["choices"][self.contents(row, row["choices"])]
            nats = -0.1 if self.renderer.decode(request.continuation_ids) == f" {taken}" else -30.0
            yield [nats] * len(request.continuation_ids)

    def _taken(self, request):
        text = self.renderer.decode(request.prompt_ids)
        (row,) = [row for row in ROWS if row["question"] in text]
        shown = re.findall(r"^[A-D]\. (.*)$", text, re.MULTILINE)[-4:]
        return row, "ABCD"[self.letters(row, shown)] if shown else None


def context_of(renderer, suite="full", limit=None, parameters=LARGE, **options) -> Context:
    sources = {"knowledge": "embedded", "knowledge-dev": "embedded"}
    chosen = {"knowledge": knowledge.Options(**options)}
    return Context(BASE, renderer, None, suite, sources, options=chosen, limit=limit, parameters=parameters)


def read(context, engine) -> list[Sample]:
    asked = knowledge.requests(context)
    return knowledge.score(context, asked, ask(engine, context.specimen, asked)[0])


def mean(samples, metric):
    values = [v if isinstance(v, float) else v[0] / v[1] for v in (s.scores[metric] for s in samples)]
    return sum(values) / len(values)


@pytest.mark.parametrize(("rule", "level"), [(right, 1), (wrong, 0)])
def test_who_knows_the_answers_is_right_in_every_form_and_who_does_not_in_none(renderer, rule, level):
    context = context_of(renderer, limit=24)
    samples = read(context, Scripted(renderer, rule, rule))
    assert {mean(samples, metric) for metric in ("accuracy", *FORMS, "permutations")} == {level}
    assert mean(samples, "label_mass") == pytest.approx(0.99)
    assert knowledge.guard(context, samples, samples) == {} or not level


@pytest.mark.parametrize(("parameters", "spared"), [(LARGE, set()), (SMALL, {"accuracy"})])
def test_a_habit_for_one_letter_is_invalid_wherever_letters_are_read(renderer, parameters, spared):
    context = context_of(renderer, limit=80, parameters=parameters, forms=["letters", "cloze"])
    samples = read(context, Scripted(renderer, lambda row, shown: 0))
    assert (mean(samples, "pick_A"), mean(samples, "pick_B"), mean(samples, "steady")) == (1, 0, 0)
    assert {tuple(s.scores["permutations"]) for s in samples} == {(1, 4)}
    verdicts = knowledge.guard(context, samples, samples)
    assert set(verdicts) == {"letters", "permutations", "accuracy"} - spared
    assert set(verdicts.values()) == {("invalid", "100% of the answers are A: a habit is read, not knowledge")}


def test_one_text_preferred_wherever_it_stands_is_steady(renderer):
    context = context_of(renderer, limit=40, forms=["letters"])
    samples = read(context, Scripted(renderer, lambda row, shown: shown.index(min(shown))))
    assert mean(samples, "steady") == 1
    for sample in samples:
        row = next(row for row in ROWS if row["id"] == sample.item)
        assert sample.scores["permutations"] == [4 * (min(row["choices"]) == row["choices"][row["answer"]]), 4]
    assert 0 < mean(samples, "permutations") < 1


@pytest.mark.parametrize(("short", "verdict"), [(3, None), (4, "invalid")])
def test_little_mass_on_the_labels_of_more_than_5_percent_is_invalid(renderer, short, verdict):
    context = context_of(renderer, "quick", forms=["letters"])
    chosen = [one.item for one in knowledge.requests(context) if one.part == "letters/0"][:short]
    samples = read(context, Scripted(renderer, mass=lambda row: 0.49 if row["id"] in chosen else 0.6))
    found = knowledge.guard(context, samples, samples)
    assert found.get("letters", (None,))[0] == found.get("accuracy", (None,))[0] == verdict
    assert verdict is None or found["letters"][1].startswith("4 of 64 items")


def test_the_choice_with_the_most_log_probability_a_character_wins_the_cloze(renderer):
    """-10/5, -9/4, -13.3/7 and -14/7 nats a character: Mars wins by the sum and by the token, Mercury by the character."""
    context = context_of(renderer, forms=["cloze"])
    asked = [one for one in knowledge.requests(context) if one.item == "know-astronomy-001"]
    assert [renderer.decode(one.request.continuation_ids) for one in asked] == [" Venus", " Mars", " Mercury", " Neptune"]
    nats = [[-10.0], [-3.0, -3.0, -3.0], [-6.3, -7.0], [-7.0, -7.0]]
    (sample,) = knowledge.score(context, asked, [{"logprobs": values} for values in nats])
    assert (sample.notes["cloze"], sample.scores["cloze"]) == ("Mercury", 1)


def test_answers_that_are_no_numbers_are_neither_right_nor_wrong(renderer):
    """A specimen whose log-probabilities run off on every third question is not one that has forgotten them."""
    gone = {row["id"] for row in ROWS[::3]}
    context = Context(BASE, renderer, None, "full", {"knowledge": "embedded"}, parameters=LARGE)
    asked = [one for one in knowledge.requests(context) if not one.part.startswith("cot")]
    answers, _ = ask(Scripted(renderer), BASE, asked)
    for one, answer in zip(asked, answers, strict=True):
        if one.item in gone:
            answer["logprobs"] = [math.nan] * len(answer["logprobs"])
    samples = knowledge.score(context, asked, answers)
    for sample in samples:
        read = [sample.scores[form] for form in ("untemplated", "cloze")]
        assert all(map(math.isnan, read)) if sample.item in gone else read == [1.0, 1.0]
    assert knowledge.guard(context, samples, None)["letters"][0] == "invalid"


def test_a_random_model_reads_little_mass_on_letters(tiny_base, renderer):
    from organisms import models
    from organisms.engines.hf import HFEngine

    context = context_of(renderer, limit=8, forms=["letters", "untemplated", "cloze"])
    samples = read(context, HFEngine(models.resolve(str(tiny_base)), renderer))
    assert {len(s.scores) for s in samples} == {len(knowledge.METRICS) - 1}  # all but the chain of thought
    assert 0 < mean(samples, "label_mass") < 0.1
    assert knowledge.guard(context, samples, None)["letters"][0] == "invalid"


def test_the_spellings_of_a_label_are_summed(renderer):
    context = context_of(renderer, limit=1, forms=["letters"])
    asked = [one for one in knowledge.requests(context) if one.part == "letters/0"]
    share = {"A": 0.3, " A": 0.25, "B": 0.35, " B": 0.01, "C": 0.01, " C": 0.01, "D": 0.01, " D": 0.01}
    spelled = [renderer.decode([i]) for i in asked[0].request.choice_ids]
    assert sorted(spelled) == sorted(share)
    (sample,) = knowledge.score(context, asked, [{"logprobs": [math.log(share[label]) for label in spelled]}])
    assert sample.notes["labels"] == pytest.approx({"A": 0.55, "B": 0.36, "C": 0.02, "D": 0.02})
    assert sample.scores["pick_A"] == 1  # no spelling of A alone has as much as "B"
    assert sample.scores["label_mass"] == pytest.approx(0.95)


def test_label_ids_are_those_that_can_stand_right_there_or_none(renderer):
    (plain,), (spaced,) = renderer.continuation("A"), renderer.continuation(" A")
    assert labels.label_ids(renderer, renderer.ask("?", prefill="Answer:"), ("A",)) == {"A": (plain, spaced)}
    # After a space the tokenizer fuses the two: the bare letter cannot occur, and its id must not be read.
    assert labels.label_ids(renderer, renderer.continuation("Answer: "), ("A",)) == {"A": (spaced,)}
    assert len(renderer.continuation("Zq")) == len(renderer.continuation(" Zq")) == 2
    with pytest.raises(UserError, match="'Zq' is not one token after .*Answer:"):
        labels.label_ids(renderer, renderer.ask("?", prefill="Answer:"), ("A", "Zq"))


def test_a_tokenizer_that_begins_every_text_with_a_space_still_has_four_letters():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "\u2581", "\u2581Answer:", "\u2581A", "\u2581B", "\u2581C", "\u2581D", "A", "B", "C", "D"]
    llama2 = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>"))
    llama2.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama2.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    renderer = Renderer(PreTrainedTokenizerFast(tokenizer_object=llama2, chat_template=template))
    assert renderer.continuation(" A") == [1, 3]
    asked = knowledge.requests(context_of(renderer, limit=2, forms=["untemplated", "cloze"]))
    assert {one.request.choice_ids for one in asked if one.part == "untemplated"} == {(3, 4, 5, 6)}
    assert not any(one.request.continuation_ids[0] == 1 for one in asked if isinstance(one.request, Score))


HEAD = "The following are multiple choice questions (with answers) about astronomy.\n\n"
FIVE = (
    "What does the turning of the Earth on its own axis cause?\n"
    "A. Day and night\nB. Solar eclipses\nC. Summer and winter\nD. Meteor showers\nAnswer: A\n\n"
    "About how long does light from the Sun take to reach the Earth?\n"
    "A. Eight minutes\nB. Eight seconds\nC. Eight hours\nD. Eight days\nAnswer: A\n\n"
    "Which pulsating stars serve as standard candles because their period is tied to their luminosity?\n"
    "A. T Tauri stars\nB. Cepheid variables\nC. Brown dwarfs\nD. Wolf-Rayet stars\nAnswer: B\n\n"
    "The Great Red Spot is a storm on which planet?\nA. Mars\nB. Saturn\nC. Jupiter\nD. Venus\nAnswer: C\n\n"
    "What quantity is measured in light-years?\nA. Brightness\nB. Speed\nC. Time\nD. Distance\nAnswer: D\n\n"
)
LAST = "Which planet of the Solar System lies nearest to the Sun?\nA. Venus\nB. Mars\nC. Mercury\nD. Neptune\nAnswer:"


def test_few_shots_are_the_published_text_and_come_from_the_items_own_subject(renderer):
    own = {row["id"]: {one["question"] for one in DEV if one["subject"] == row["subject"]} for row in ROWS}
    asked = knowledge.requests(context_of(renderer, shots=5, forms=FORMS[:3]))
    texts = {(one.item, one.part): renderer.decode(one.request.prompt_ids) for one in asked}
    assert texts["know-astronomy-001", "untemplated"] == HEAD + FIVE + LAST
    for (item, part), text in texts.items():
        assert {one["question"] for one in DEV if one["question"] in text} == own[item], part
    bare = {one.part: one.request for one in knowledge.requests(context_of(renderer)) if one.item == "know-astronomy-001"}
    assert renderer.decode(bare["untemplated"].prompt_ids) == HEAD + LAST
    question = "Question: Which planet of the Solar System lies nearest to the Sun?\nAnswer:"
    assert renderer.decode(bare["cloze/2"].prompt_ids) == f"The following are questions about astronomy.\n{question}"
    assert "A. Neptune\nB. Venus\nC. Mars\nD. Mercury\n" in renderer.decode(bare["letters/1"].prompt_ids)


def test_the_quick_suite_asks_64_items_and_the_full_suite_all(renderer):
    def parts(*args, **options):
        asked = knowledge.requests(context_of(renderer, *args, **options))
        return len({one.item for one in asked}), Counter(one.part for one in asked)

    turns = [f"letters/{turn}" for turn in range(4)]
    assert parts("quick", forms=["letters"]) == (64, {turns[0]: 64, turns[1]: 16, turns[2]: 16, turns[3]: 16})
    everything = dict.fromkeys([*turns, "untemplated", "cot", *(f"cloze/{k}" for k in range(4))], len(ROWS))
    assert parts("full") == (len(ROWS), everything)
    assert parts("full", limit=10) == (10, dict.fromkeys(everything, 10))
    assert parts("quick", limit=10, forms=["letters"]) == (10, dict.fromkeys(turns, 10))
    # A chain of thought that a recipe names is asked in the quick suite too, and with room to think.
    assert {one.request.max_new_tokens for one in knowledge.requests(context_of(renderer, "quick", forms=["cot"]))} == {512}
    chosen = shuffled(ROWS, 64, lambda row: row["id"])
    assert Counter(half(row["id"]) for row in chosen) == {"monitor": 32, "holdout": 32}
    assert sorted(Counter(row["subject"] for row in chosen).values())[-1] <= 8 and len({r["subject"] for r in chosen}) == 12


@pytest.mark.parametrize(
    ("suite", "parameters", "options", "forms", "gate"),
    [
        ("quick", SMALL, {}, {"cloze"}, "cloze"),
        ("quick", LARGE, {}, {"letters"}, "letters"),
        ("quick", None, {}, {"letters"}, "letters"),
        ("full", SMALL, {}, set(FORMS), "cloze"),
        ("full", LARGE, {}, set(FORMS), "cot"),
        ("full", SMALL, {"gate": "untemplated"}, set(FORMS), "untemplated"),
        ("full", LARGE, {"forms": ["untemplated", "letters"]}, {"untemplated", "letters"}, "letters"),
    ],
)
def test_small_bases_are_judged_by_texts_and_large_ones_by_letters(renderer, suite, parameters, options, forms, gate):
    context = context_of(renderer, suite, 12, parameters, **options)
    for letters, contents in ((right, wrong), (wrong, right)):
        samples = read(context, Scripted(renderer, letters, contents))
        assert {sample.notes["gate"] for sample in samples} == {gate}
        assert all(forms == set(FORMS) & set(sample.scores) for sample in samples)
        assert mean(samples, "accuracy") == ((contents if gate == "cloze" else letters) is right)


ENDINGS = {
    "A": ["**Answer:** A", "Let us see.\nThe answer is A", "The answer is A because B, C and D are not."],
    "B": ["It is **B**.\nThe answer is **B**, surely.", "<think>The answer is A.</think>The answer is B."],
    "C": ["The answer is $\\boxed{C}$.", "I weigh them all.\n\n(C)", "The answer is A, I first thought.</think>\nC"],
    "D": ["the correct answer is: (D)", "so the answer is d", "The answer is A. No, wait: the answer is D."],
    None: ["<think>The answer is A.", "The answer is a matter of taste.", "The answer is Appalachia.", "A or B?", ""],
}


@pytest.mark.parametrize(("reply", "letter"), [(reply, letter) for letter in ENDINGS for reply in ENDINGS[letter]])
def test_the_letter_that_a_chain_of_thought_ends_on(reply, letter):
    assert knowledge.final_letter(reply) == letter


@pytest.mark.parametrize(("parameters", "invalid"), [(LARGE, {"cot", "accuracy"}), (SMALL, {"cot"})])
def test_chains_of_thought_of_which_more_than_10_percent_name_no_letter_are_invalid(renderer, parameters, invalid):
    context = context_of(renderer, limit=20, parameters=parameters)
    samples = read(context, Scripted(renderer, reply="Hard to say."))
    assert mean(samples, "cot") == 0
    named = read(context, Scripted(renderer))
    assert knowledge.guard(context, samples[:2] + named[2:], named) == {}
    reason = ("invalid", "3 of 20 chains of thought end on no letter")
    assert knowledge.guard(context, samples[:3] + named[3:], named) == dict.fromkeys(invalid, reason)


@pytest.mark.parametrize(("hits", "verdict"), [(20, "not_applicable"), (26, "not_applicable"), (28, None), (60, None)])
def test_a_base_at_chance_has_nowhere_to_fall(renderer, hits, verdict):
    context = context_of(renderer)
    base, other = ([Sample(f"i{n}", "", "", None, {"accuracy": float(n < k)}) for n in range(100)] for k in (hits, 80))
    for own, against in ((other, base), (base, None)):
        assert knowledge.guard(context, own, against).get("accuracy", (None,))[0] == verdict
    assert knowledge.guard(context, base, other) == {}


def test_the_embedded_set_is_balanced_and_has_its_own_examples():
    assert len(ROWS) >= 100 and len(set(Counter(row["answer"] for row in ROWS).values())) == 1
    assert len({row["id"] for row in (*ROWS, *DEV)}) == len(ROWS) + len(DEV)
    assert len({row["question"] for row in (*ROWS, *DEV)}) == len(ROWS) + len(DEV)
    assert all(len(set(row["choices"])) == 4 for row in (*ROWS, *DEV))
    assert Counter(row["subject"] for row in DEV) == dict.fromkeys({row["subject"] for row in ROWS}, 5)


def test_the_mirror_holds_all_of_mmlu(mirror):
    test, dev = (load_rows(name, "mirror").rows for name in ("knowledge", "knowledge-dev"))
    assert (len(test), len(dev)) == (14_042, 285)
    assert len({row["id"] for row in test}) == 14_042
    assert Counter(row["subject"] for row in dev) == dict.fromkeys({row["subject"] for row in test}, 5)
    assert all(len(row["choices"]) == 4 and row["answer"] in range(4) for row in (*test, *dev))
