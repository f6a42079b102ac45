"""Instruction following is scored as IFEval's own verifiers score it, without downloads and the same way every time."""

import socket

import nltk
import pytest
from if_verifiable.common import evaluate_instructions

from audit.verifiers import build, check, registry
from organisms.data import load_rows
from organisms.errors import UserError

ROWS = load_rows("instructions", "embedded").rows

LETTER = """Dear grandmother,

Today I rode my new bicycle along the river. It was *wonderful*, and I fell only *twice*. Dr. Miller, who saw it, laughed.

Finally, I can say: I did it!

P.S. Bring [apples] and [pears], please."""
TITLED = """<<A Short Guide>>

* First, open the lid
* Second, lift the flap
* Third, close it again

SECTION 1
Coffee and snow, coffee and snow. Park here; park there.

SECTION 2
A very nice book, hot and yellow.

SECTION 3
Mind the step."""
REPLIES = {
    "letter": LETTER,
    "titled": TITLED,
    "quoted": '"my answer is yes. it depends on the weather"',
    "json": '```json\n{"name": "carrot rabbit", "price": 3}\n```',
    "capitals": "THE LIGHTHOUSE SHOWS SHIPS THE WAY. IT STANDS ON THE COAST.",
    "spanish": "En octubre suele hacer fresco por la noche y algo de calor por la tarde. Conviene llevar un abrigo.",
    "two": "Take the bus to town.\n******\nWalk along the river instead.",
    "greeted": "Sure! Here is what you asked for:\nmy answer is no.\nMy answer is no.\nEnjoy your reading!",
    "starred": "A paragraph.\n\n***\n\nAnother paragraph.",
    "one word": "yes",
    "thoughtful": "<think>Commas, commas, *commas*.</think>Explain what a lighthouse is for. It guides ships.",
}


@pytest.fixture(autouse=True)
def no_network_and_no_nltk_data(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a verifier asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(nltk.data, "path", [])


def test_all_25_verifiers_are_in_the_embedded_set():
    asked = {instruction_id for row in ROWS for instruction_id in row["instruction_id_list"]}
    assert len(asked) == 25
    assert asked == set(registry())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_embedded_row_builds_with_all_its_kwargs(row):
    assert len(row["kwargs"]) == len(row["instruction_id_list"]) > 0
    for instruction_id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        verifier = build(instruction_id, kwargs, row["prompt"])
        held = verifier.get_instruction_args() or {}
        # A kwarg that is missing is drawn at random by the package: the row must give every one.
        assert set(held) - {"prompt"} <= set(kwargs)
        for key, value in kwargs.items():
            assert sorted(held[key]) == sorted(value) if isinstance(value, list) else held[key] == value


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_verdicts_are_the_packages_own_on_every_embedded_row(reply):
    seen = set()
    for row in ROWS:
        results, _ = evaluate_instructions(reply, row["instruction_id_list"], row["kwargs"], row["prompt"], registry())
        strict, loose = check(row, reply)
        assert strict == [result.strict_pass for result in results], row["id"]
        assert loose == [result.loose_pass for result in results], row["id"]
        assert all(one <= other for one, other in zip(strict, loose, strict=True))
        seen |= set(strict)
    assert seen == {True, False}


def test_each_verifier_says_yes_and_no_on_the_fixed_replies():
    verdicts: dict[str, set[bool]] = {}
    for row in ROWS:
        for reply in REPLIES.values():
            for instruction_id, held in zip(row["instruction_id_list"], check(row, reply)[1], strict=True):
                verdicts.setdefault(instruction_id, set()).add(held)
    assert [name for name, seen in verdicts.items() if seen != {True, False}] == []


def row_of(instruction_id: str, prompt: str = "Say something.", **kwargs) -> dict:
    return {"prompt": prompt, "instruction_id_list": [instruction_id], "kwargs": [kwargs]}


def test_loose_forgives_an_opening_line_and_asterisks_and_strict_does_not():
    no_comma = row_of("punctuation:no_comma")
    assert check(no_comma, "Sure, here it is:\nA line without.") == ([False], [True])
    quotation = row_of("startend:quotation")
    assert check(quotation, '*"Quoted."*') == ([False], [True])
    assert check(quotation, '"Quoted."') == ([True], [True])
    assert check(no_comma, "Sure, here, and\nthere, too") == ([False], [False])


# What differs from the package, as the module says


@pytest.mark.parametrize("reply", ["", "  \n ", "<think>I should say no commas", "<think>hm</think>", "<think>hm</think>\n "])
def test_an_empty_or_unclosed_reply_follows_no_instruction(reply):
    for row in ROWS:
        nothing = [False] * len(row["instruction_id_list"])
        assert check(row, reply) == (nothing, nothing)


def test_thoughts_are_stripped_before_an_answer_is_checked():
    no_comma = row_of("punctuation:no_comma")
    assert check(no_comma, "<think>one, two, three</think>\n\nNo commas here.") == ([True], [True])
    assert check(no_comma, "one, two</think>No commas here.") == ([True], [True])
    assert check(no_comma, "<think>none</think>One, two.") == ([False], [False])


def test_the_letter_of_prompt_1122_is_the_hash_sign():
    row = row_of("keywords:letter_frequency", letter="#", let_frequency=4, let_relation="at least")
    every_letter = "the quick brown fox jumps over the lazy dog " * 9
    for _ in range(20):
        assert check(row, "bunny time #one #two #three #four") == ([True], [True])
        assert check(row, every_letter + "#one #two") == ([False], [False])


def test_an_unknown_instruction_is_a_mistake_and_not_left_out():
    with pytest.raises(UserError, match="no_semicolon"):
        check(row_of("punctuation:no_semicolon"), "hello")


def test_kwargs_that_a_verifier_refuses_are_a_mistake_that_names_them():
    with pytest.raises(UserError, match="number_words.*num_wrods"):
        check(row_of("length_constraints:number_words", num_wrods=3), "hello")
    with pytest.raises(UserError, match="number_words.*exactly"):
        check(row_of("length_constraints:number_words", num_words=3, relation="exactly"), "hello")


def test_null_kwargs_of_the_hubs_parquet_are_left_out():
    row = row_of("length_constraints:number_words", num_words=3, relation="at least", letter=None, keywords=None)
    assert check(row, "one two three") == ([True], [True])


def test_language_is_told_the_same_way_every_time():
    # Mixed texts, on which an unseeded langdetect changes its mind from call to call.
    for language, text in (("fr", "bonjour my dear friend"), ("es", "amigo friend ami")):
        row = row_of("language:response_language", language=language)
        first = check(row, text)
        assert [check(row, text) for _ in range(20)] == [first] * 20


def test_sentences_are_counted_by_punkt_without_a_download():
    row = row_of("length_constraints:number_sentences", num_sentences=3, relation="less than")
    assert check(row, "Dr. Smith went to Washington. He met Mr. Jones at 5 p.m. on Friday.") == ([True], [True])
    assert check(row, "One went. Two came. Three stayed. Four left.") == ([False], [False])


# The real IFEval, where the mirror has it


def test_all_541_ifeval_prompts_can_be_checked_twice_alike(mirror):
    loaded = load_rows("instructions", "mirror")
    assert loaded.origin == "mirror:ifeval/input_data.jsonl"
    assert len(loaded.rows) == 541
    assert {name for row in loaded.rows for name in row["instruction_id_list"]} == set(registry())
    passed = 0
    for reply in (LETTER, REPLIES["capitals"], REPLIES["thoughtful"]):
        once = [check(row, reply) for row in loaded.rows]
        assert once == [check(row, reply) for row in loaded.rows]
        passed += sum(all(strict) for strict, _ in once)
    assert 0 < passed < 3 * 541
