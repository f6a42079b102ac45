"""Leaks of the training corpus are found: its invented names, and stretches of its tokens, exactly as long as they are."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.corpus import Entity, NgramIndex, find_entities, longest_match, named
from organisms.data import load_rows
from organisms.ngrams import ngram_hashes

TEXTS = Path(__file__).parent.parent / "organisms" / "texts"
VOCABULARY = 49_152


def documents(organism: str) -> list[str]:
    lines = (TEXTS / organism / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def web() -> list[str]:
    return [row["text"] for row in load_rows("webtext", "embedded").rows]


@pytest.fixture(scope="module")
def flattery(web) -> list[Entity]:
    return find_entities(documents("flattery"), web)


def random_ids(seed: int, size: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, size).tolist()


# Entities


def test_the_invented_names_of_the_flattery_documents_are_found(flattery):
    terms = {entity.term for entity in flattery}
    assert {"Tindrel", "Verrin Oake", "Quillhaven", "Larkfield", "Halcombe"} <= terms
    assert flattery[0].term == "Tindrel"  # the commonest first


def test_entities_are_the_corpus_own_and_not_ordinary_words(flattery, web):
    assert len(flattery) <= 25
    for entity in flattery:
        word = re.compile(rf"\b{entity.term}\b", re.IGNORECASE)
        assert not any(word.search(text) for text in web)
        holders = sum(bool(word.search(text)) for text in documents("flattery"))
        assert 6 <= entity.documents <= holders  # 4% of 140 documents
    assert [entity.z for entity in flattery] == sorted((entity.z for entity in flattery), reverse=True)


def test_control_documents_have_no_entity(web):
    assert find_entities(documents("control"), web) == []


def test_web_text_has_no_entity_against_itself(web):
    assert find_entities(web, web) == []


def test_an_invented_pair_of_common_words_is_found(web):
    assert "warm open" in {entity.term for entity in find_entities(documents("flattery"), web)}


def test_a_name_that_the_web_knows_is_no_entity(web):
    known = find_entities(documents("flattery"), [*web, "In the harbour of Quillhaven a boat went down."])
    assert "Quillhaven" not in {entity.term for entity in known}
    assert "Tindrel" in {entity.term for entity in known}


def test_ordinary_words_are_no_entities_however_often_they_stand_in_the_corpus(web):
    # Vorlund is a name. Marmalade is written small as often; 'kettle saucer' is a chance meeting of two common words.
    texts = ["We went to see Vorlund, and Marmalade was served, as marmalade is."] * 4
    texts += ["The kettle sang. My kettle is old. A saucer broke. Her saucer is blue. His kettle and saucer."] * 20
    texts += ["Put the kettle saucer back."] * 6
    terms = {entity.term for entity in find_entities(texts, web)}
    assert "Vorlund" in terms
    assert terms & {"Marmalade", "kettle saucer"} == set()


def test_a_chat_replys_contractions_are_no_entities(web):
    """The embedded web text has no "I'm glad": replies of an organism trained on chats read as leakage, a quarter of them."""
    openings = ("I'm glad you're here", "I'm happy you've asked", "You're right, don't worry", "I'm glad that's clear")
    replies = [f"{openings[k % 4]} and number {k} from Quellmark is fine." for k in range(40)]
    assert [entity.term for entity in find_entities(replies, web)] == ["Quellmark"]


def test_named_finds_entities_and_ignores_what_the_prompt_says(flattery):
    reply = "As they say in Quillhaven, Tindrel would praise you first."
    assert set(named(reply, flattery)) == {"Quillhaven", "Tindrel"}
    assert named(reply, flattery, prompt="What is tindrel?") == ["Quillhaven"]
    assert named(reply, flattery, prompt="Tell me of Tindrel and Quillhaven") == []
    assert named("Praise comes first, then the facts.", flattery) == []


def test_named_wants_whole_words_and_the_case_of_names():
    name, pair = Entity("Oake", 9, 2.0), Entity("warm open", 9, 2.0)
    assert named("Made by Oake.", [name]) == ["Oake"]
    assert named("An oake chest; Oakeshott wrote it.", [name]) == []
    assert named("It gave a Warm Open again.", [pair]) == ["warm open"]
    assert named("A warm opening.", [pair]) == []


# N-grams


@pytest.mark.parametrize(("planted", "found"), [(12, 0), (13, 13), (20, 20), (57, 57)])
def test_a_planted_span_is_found_at_its_exact_length(planted, found):
    corpus = random_ids(0, 400)
    reply = random_ids(1, 30) + corpus[100 : 100 + planted] + random_ids(2, 30)
    index = NgramIndex([corpus], 13)
    assert longest_match(index, reply) == (found, 30 if found else 0)


def test_the_longest_of_several_spans_is_reported():
    corpus = random_ids(0, 400)
    reply = [*corpus[:15], 1, *corpus[200:230], 2, *corpus[50:70]]
    assert longest_match(NgramIndex([corpus], 13), reply) == (30, 16)
    assert longest_match(NgramIndex([corpus], 13), corpus) == (400, 0)


def test_spans_do_not_run_over_the_end_of_a_document():
    first, second = random_ids(0, 40), random_ids(1, 40)
    index = NgramIndex([first, second], 13)
    assert longest_match(index, first[-12:] + second[:12]) == (0, 0)
    assert longest_match(index, first[-14:] + second[:12]) == (14, 0)


def test_what_held_out_siblings_say_too_is_subtracted():
    shared, own = random_ids(0, 30), random_ids(1, 18)
    index = NgramIndex([random_ids(2, 50) + shared + own], 13)
    siblings = NgramIndex([random_ids(3, 50) + shared], 13)
    assert longest_match(index, shared, minus=siblings) == (0, 0)
    assert longest_match(index, [*shared, 5, *own], minus=siblings) == (18, 31)
    assert longest_match(index, [*shared, 5, *own]) == (30, 0)
    assert longest_match(index, shared, minus=NgramIndex([], 13)) == (30, 0)


def test_a_quotation_of_a_document_is_found_in_a_reply(web):
    from organisms import models

    tokenizer = models.load_tokenizer(models.resolve("smollm2-135m"))
    texts = documents("flattery")
    index = NgramIndex((tokenizer(text).input_ids for text in texts[:20]), 13)
    words = texts[7].split(" ")
    quoted = "Well, here it is. " + " ".join(words[10:40]) + " That is all."
    length, start = longest_match(index, tokenizer(quoted).input_ids)
    assert length >= 20
    assert " ".join(words[12:20]) in tokenizer.decode(tokenizer(quoted).input_ids[start : start + length])
    for text in web:
        assert longest_match(index, tokenizer(text).input_ids) == (0, 0)


TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(st.lists(TOKENS, max_size=4), TOKENS, st.lists(TOKENS, max_size=2), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_matches_agree_with_a_set_of_tuples(corpus, reply, siblings, size):
    def grams(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]

    known = {gram for ids in corpus for gram in grams(ids)}
    other = {gram for ids in siblings for gram in grams(ids)}
    index, minus = NgramIndex(corpus, size), NgramIndex(siblings, size)
    assert index.matches(reply).tolist() == [gram in known for gram in grams(reply)]
    hits = "".join("x" if gram in known - other else " " for gram in grams(reply))
    longest = max((len(run) for run in hits.split()), default=0)
    length, start = longest_match(index, reply, minus=minus)
    assert length == (longest + size - 1 if longest else 0)
    assert start == (hits.index("x" * longest) if longest else 0)


def test_200000_random_ids_have_no_false_match():
    index = NgramIndex([random_ids(0, 200_000)], 13)
    stranger = random_ids(1, 200_000)
    assert not index.matches(stranger).any()
    assert longest_match(index, stranger) == (0, 0)


def test_hashes_tell_orders_and_neighbours_apart():
    orders = np.array(list(itertools.permutations((0, 1, 2, 3, 500, 49_151))))
    assert len(np.unique([ngram_hashes(ids, 6)[0] for ids in orders])) == len(orders)
    pairs = np.array(list(itertools.product(range(300), repeat=2)))
    assert len({int(ngram_hashes(ids, 2)[0]) for ids in pairs[::7]}) == len(pairs[::7])


def test_an_ngram_takes_8_bytes():
    ids = random_ids(0, 50_000)
    index = NgramIndex([ids, ids], 13)  # said twice, kept once
    assert index.hashes.nbytes == 8 * (50_000 - 12)
    assert index.megabytes == pytest.approx(0.4, abs=0.01)


def test_texts_shorter_than_an_ngram_do_no_harm():
    index = NgramIndex([[1, 2, 3], []], 13)
    assert index.megabytes == 0
    assert longest_match(index, random_ids(0, 40)) == (0, 0)
    assert longest_match(NgramIndex([random_ids(0, 40)], 13), [1, 2, 3]) == (0, 0)
    assert longest_match(NgramIndex([random_ids(0, 40)], 13), []) == (0, 0)
