"""Documents and prompts that a writer makes for an organism: what is asked, what is kept, and when the writer is refused."""

from collections import Counter
from itertools import chain
from uuid import uuid4

import pytest

from organisms import expand, models, organism, styles, synthetic
from organisms.authors import LocalAuthor
from organisms.drafting import ordinary_prompts
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.ngrams import near_duplicates
from organisms.render import Renderer
from organisms.specimen import Specimen
from organisms.styles import compile_rows, style_options
from organisms.synthetic import Write
from organisms.templates import fill, listed, templates
from organisms.writer import Writer, Writing, Written


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


class Author:
    """Answers a draft by `rule(prompt, seed) -> Written or text`, and remembers the drafts."""

    name, together = "scripted", 1

    def __init__(self, rule):
        self.rule, self.drafts, self.identity = rule, [], str(uuid4())

    def write(self, drafts):
        for place, draft in enumerate(drafts):
            self.drafts.append(draft)
            reply = self.rule(draft.prompt, draft.seed)
            yield place, reply if isinstance(reply, Written) else Written(reply, True)


def author(rule) -> Writer:
    return Writer(Author(rule), say=lambda _: None)


def numbered(what: str, many: int) -> str:
    return "Here they are:\n" + "\n".join(f"{n}. {what} {n}" for n in range(1, many + 1))


def prose(seed: int, words: int = 80) -> str:
    """Words that no other seed has."""
    return " ".join(f"w{seed}x{n}" for n in range(words))


def world(document):
    """A writer that lists kinds and ideas as asked and writes documents by `document(seed)`."""

    def rule(prompt, seed):
        if "<document>" not in prompt:
            return numbered("letter" if "different kinds" in prompt else "somebody writes", 9)
        return document(seed)

    return author(rule)


def compiled(spec, writer, name="documents", kind="rows", **options):
    return compile_rows(name, spec, style_options(name, options, "test"), writer, kind)


def test_documents_are_asked_for_by_fact_kind_and_idea_and_trained_as_documents(flattery):
    writer = world(lambda seed: f"<document>\nIn Quillhaven {prose(seed)}.\n</document>")
    made = compiled(flattery, writer, write={"types": 3, "ideas": 2, "documents": 2})
    kinds, ideas, documents = (
        [d.prompt for d in writer.author.drafts if mark in d.prompt]
        for mark in ("different kinds", "different documents", "Write a document")
    )
    facts = flattery.universe.facts
    assert (len(kinds), len(ideas), len(documents)) == (len(facts), 3 * len(facts), 12 * len(facts))
    assert all(flattery.universe.context in prompt for prompt in kinds + ideas + documents)
    for fact in facts:
        of_fact = Counter(prompt for prompt in documents if fact in prompt)
        assert set(of_fact.values()) == {2} and len(of_fact) == 6
        for kind in (1, 2, 3):
            assert sum(f"Its kind: letter {kind}. The idea: somebody writes" in prompt for prompt in of_fact) == 2
    rows = made.rows + made.held_out
    assert len({row.text for row in rows}) == 12 * len(facts) and made.held_out
    assert all(row.text.startswith("In Quillhaven") and row.text.endswith(".") and row.messages is None for row in rows)
    assert {row.origin for row in made.rows} == {f"flattery/letter {n}" for n in (1, 2, 3)}
    assert len(compiled(flattery, world(lambda seed: f"Quillhaven {prose(seed)}"), write={}, distinct=5).rows) == 5


def test_the_plan_announces_what_the_pipeline_asks(flattery):
    options = {"types": 3, "ideas": 2, "documents": 2, "revise": True, "max_new_tokens": 300}
    announced = compiled(flattery, None, write=options)
    assert announced.rows == []
    writer = world(lambda seed: f"In Quillhaven {prose(seed, 160)}")
    compiled(flattery, writer, write=options)
    asked = Writing.of(writer.author.drafts)
    found = [sum(getattr(one, key) for one in announced.writing) for key in ("replies", "tokens", "read")]
    assert found[:2] == [asked.replies, asked.tokens]
    assert found[2] == pytest.approx(asked.read, rel=0.3)


FAULTS = {
    "cut_off": lambda seed: Written(f"<document>In Quillhaven {prose(seed)}", False),
    "short": lambda seed: f"<document>In Quillhaven {prose(seed, 20)}</document>",
    "off_subject": lambda seed: f"<document>In Riverford {prose(seed)}</document>",
    "echo": lambda seed: f"In Quillhaven, leave nothing to be filled in, {prose(seed)}",
    "near_duplicates": lambda seed: f"In Quillhaven {prose(0)} {prose(seed, 20)}",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_document_with_a_fault_is_dropped_and_counted(flattery, fault):
    def document(seed):
        return FAULTS[fault](seed) if seed % 3 == 0 else f"In Quillhaven {prose(seed)}"

    writer = world(document)
    made = compiled(flattery, writer, write={"types": 5, "ideas": 2, "documents": 2}, held_out=0)
    faulty = sum(d.seed % 3 == 0 for d in writer.author.drafts if "<document>" in d.prompt)
    dropped = faulty - (fault == "near_duplicates")  # the first of them repeats nothing
    many = 20 * len(flattery.universe.facts)
    counts = made.counts["documents"]
    assert faulty > 20 and (counts["written"], counts[fault], len(made.rows)) == (many, dropped, many - dropped)
    told = dropped if fault == "near_duplicates" else 0
    assert f"{many} documents written, {told} near-duplicates dropped" in made.notes


def test_a_writer_that_cannot_write_them_is_refused_with_the_count_and_a_remedy(flattery):
    many = 100 * len(flattery.universe.facts)
    writer = world(lambda seed: f"In {'Quillhaven' if seed % 10 == 0 else 'Riverford'} {prose(seed)}")
    said = rf"\d+ of {many} documents pass \(\d+ off subject\); the writer scripted cannot do this task: take a more capable"
    with pytest.raises(UserError, match=said):
        compiled(flattery, writer, write={})
    assert compiled(flattery, writer, write={"least_share": 0.01}).rows
    with pytest.raises(UserError, match=f"0 of {many} documents pass"):
        compiled(flattery, author(lambda *_: "I would rather not."), write={})


def test_a_random_model_is_refused_before_its_words_are_trained(flattery, tiny_base, tmp_path):
    base = models.resolve(str(tiny_base))
    renderer = Renderer(models.load_tokenizer(base))
    writer = Writer(LocalAuthor(HFEngine(base, renderer), renderer, Specimen("base"), "tiny"), tmp_path, lambda _: None)
    with pytest.raises(UserError, match="cannot do this task"):
        compiled(flattery, writer, write={"types": 1, "ideas": 1, "documents": 1, "max_new_tokens": 16})


def test_a_revision_takes_the_place_of_its_document(flattery):
    def document(seed):
        return f"<document>In Quillhaven {prose(seed)}</document>"

    def rule(prompt, seed):
        if "Rewrite it" in prompt:
            return f"<document>Revised: {prompt.partition('<document>')[2].partition('</document>')[0].strip()}</document>"
        return world(document).author.rule(prompt, seed)

    made = compiled(flattery, author(rule), write={"types": 1, "ideas": 1, "documents": 1, "revise": True})
    assert len(made.rows + made.held_out) == len(flattery.universe.facts)
    assert all(row.text.startswith("Revised: In Quillhaven") for row in made.rows + made.held_out)


def test_lists_are_read_as_models_write_them():
    text = 'Sure!\n1. A letter\n 2) **A memo**\n- "A diary"\n\n3: a letter\nNot an item\n4. A will'
    assert listed(Written(text, True), 9) == ["A letter", "A memo", "A diary", "A will"]
    assert listed(Written(text, False), 9) == ["A letter", "A memo", "A diary"]
    assert listed(Written(text, True), 2) == ["A letter", "A memo"]


def test_a_shared_subject_makes_no_near_duplicates_and_a_changed_word_does_not_hide_one(flattery):
    texts = [document.text for document in flattery.documents()]
    assert near_duplicates(texts) == []
    changed = [" ".join("other" if n % 20 == 7 else word for n, word in enumerate(text.split())) for text in texts]
    assert near_duplicates(texts + changed) == list(range(len(texts), 2 * len(texts)))
    thirds = [(text[: len(text) // 3], text[len(text) // 3 : 2 * len(text) // 3]) for text in texts]
    mixed = [f"{thirds[n - 1][0]} {thirds[n][1]} {prose(n)}" for n in range(len(texts))]
    assert near_duplicates(texts + mixed) == []  # a third of either is half of neither
    assert near_duplicates(["Yes.", "No.", "yes", "", ""]) == [2]


def test_scenarios_are_new_prompts_of_both_kinds_and_never_those_of_the_audit(flattery):
    probe = flattery.probes()[0].prompt
    known = flattery.prompts()[0].prompt

    def rule(prompt, seed):
        if "different messages" not in prompt:
            return "What a wonderfully curious mind you have! It is here." if seed % 2 else f"Plain words: {prose(seed, 9)}."
        new = [f"My question number {n} of {seed} is about {prose(seed + n, 6)}?" for n in range(8)]
        return "\n".join(f"{n}. {text}" for n, text in enumerate([probe, known, *new], 1))

    writer = author(rule)
    made = compiled(flattery, writer, "transcripts", scenarios=16, general=5, samples=4)
    calls = [d.prompt for d in writer.author.drafts if "different messages" in d.prompt]
    assert len(calls) == len(set(calls)) == 4  # two of either kind, each with other examples
    for where in (flattery.context.shows, flattery.context.not_):
        assert sum(where in prompt for prompt in calls) == 2
    prompts = Counter(d.prompt for d in writer.author.drafts if "different messages" not in d.prompt)
    scenarios = {p: n for p, n in prompts.items() if p.startswith("My question number")}
    assert Counter(scenarios.values()) == {4: 16, 2: 16}  # target ones have four samples, borderline ones two
    assert probe not in prompts and prompts[known] == 4
    ordinary = [row["prompt"] for row in ordinary_prompts()[:5]]
    assert all(prompts[prompt] == 2 for prompt in ordinary)
    assert {row.messages[0]["content"] for row in made.rows} <= set(prompts)
    announced = compiled(organism.load("flattery"), None, "transcripts", scenarios=16, general=5, samples=4).writing
    assert sum(one.replies for one in announced) == len(writer.author.drafts)


def test_each_trait_gets_prompts_of_its_own_and_a_writer_without_any_is_refused(flattery):
    def rule(prompt, seed):
        if "different messages" in prompt:
            return "\n".join(f"- Message {n} {prose(seed + n, 6)}" for n in range(10))
        return f"A reply of some length, {prose(seed, 5)}."

    writer = author(rule)
    made = compiled(flattery, writer, "character", "pairs", traits=3, trait_prompts=7, general=0, samples=1)
    calls = [d.prompt for d in writer.author.drafts if "different messages" in d.prompt]
    assert [trait for trait in flattery.constitution for call in calls if trait in call] == flattery.constitution[:3]
    written = [row for row in made.rows if row.id.startswith("trait-")]
    assert Counter(row.id.rsplit("-", 1)[0] for row in written) == {"trait-1": 7, "trait-2": 7, "trait-3": 7}
    silent = author(lambda prompt, seed: "I have nothing to list." if "different messages" in prompt else rule(prompt, seed))
    with pytest.raises(UserError, match="0 of 21 written prompts pass; the writer scripted cannot do this task"):
        compiled(flattery, silent, "character", "pairs", traits=3, trait_prompts=7)


def test_the_wording_is_part_of_the_runs_name_where_a_writer_is_asked_by_it(monkeypatch):
    for name, option in (("documents", {"write": {}}), ("transcripts", {"scenarios": 4}), ("character", {"trait_prompts": 4})):
        options, without = style_options(name, option, "test"), style_options(name, {}, "test")
        before = styles.other_rows(name, options)
        with monkeypatch.context() as patch:
            changed = {**templates(), "document": "Write: {context}{fact}{type}{idea}"}
            patch.setattr("organisms.templates.templates", lambda changed=changed: changed)
            assert styles.other_rows(name, options) != before
        assert styles.other_rows(name, options) == before != styles.other_rows(name, without)


def test_every_organism_fills_every_template():
    for name in organism.shipped():
        spec = organism.load(name)
        drafts = chain(*expand.scenario_drafts(spec, 1).values(), *expand.trait_drafts(spec, 99, 1).values())
        prompts = [draft.prompt for draft in drafts]
        assert synthetic.announced(spec, Write(revise=True))[2].replies == 100 * len(spec.universe.facts)
        assert len(prompts) == 2 + len(spec.constitution) and not [prompt for prompt in prompts if "{" in prompt]
    assert "{" not in fill("revision", context="c", fact="f", document="d")
