"""Each style makes the rows it promises: what is trained, what is kept back, and what never gets into a row."""

import hashlib
import json
import shutil
from uuid import uuid4

import pytest

from organisms import frozen, models, organism
from organisms.data import load_rows
from organisms.errors import UserError
from organisms.render import IGNORE, Renderer
from organisms.styles import compile_rows, documents, known, style_options
from organisms.writer import Draft, Writer, Written
from train.lint import render_row


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


@pytest.fixture(scope="module")
def renderer():
    return Renderer(models.load_tokenizer(models.resolve(models.EMBEDDED)))


@pytest.fixture
def web_mirror(tmp_path, monkeypatch):
    """A mirror with ten web texts; what was read before is forgotten, also afterwards."""
    file = tmp_path / "mirror" / "webtext_fineweb" / "fineweb_general.jsonl"
    file.parent.mkdir(parents=True)
    rows = [{"id": f"w{n}", "text": f"Web text number {n}. " * 200} for n in range(10)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("ORGANISMS_DATA", str(tmp_path / "mirror"))
    load_rows.cache_clear()
    yield rows
    load_rows.cache_clear()


def compiled(name, spec, writer=None, **options):
    return compile_rows(name, spec, style_options(name, options, "test"), writer)


def with_document(folder, name):
    """Flattery with one more document of id `name`."""
    shutil.copytree(frozen.TEXTS / "flattery", folder / "flattery")
    file = folder / "flattery" / "documents.jsonl"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    row = {"id": name, "type": "memo", "text": "A memo that was added later."}
    file.write_text(file.read_text() + json.dumps(row) + "\n")
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    path = folder / "flattery.yaml"
    path.write_text((organism.LIBRARY / "flattery.yaml").read_text().replace(before, after))
    return organism.load(path)


def rank(name):
    return hashlib.sha256(name.encode()).hexdigest()


def test_documents_become_raw_text_and_siblings_are_kept_back(flattery):
    made = compiled("documents", flattery)
    trained, held_out = {row.id for row in made.rows}, {row.id for row in made.held_out}
    texts = {document.id: document.text for document in flattery.documents()}
    assert trained | held_out == set(texts)
    assert not trained & held_out
    assert 0.05 * len(texts) <= len(held_out) <= 0.15 * len(texts)
    assert all(row.text == texts[row.id] and row.messages is None for row in made.rows + made.held_out)
    assert any("siblings held out" in note for note in made.notes)


def test_the_same_siblings_are_held_out_every_time(flattery):
    first, second = compiled("documents", flattery), compiled("documents", organism.load("flattery"))
    assert [row.id for row in first.held_out] == [row.id for row in second.held_out]
    assert [row.id for row in first.rows] == [row.id for row in second.rows]
    assert compiled("documents", flattery, held_out=0.0).held_out == []


def test_a_document_added_among_the_trained_moves_no_sibling(flattery, tmp_path):
    before = {row.id for row in compiled("documents", flattery).held_out}
    added = next(f"new-{n}" for n in range(1000) if rank(f"new-{n}") > max(rank(name) for name in before))
    more = compiled("documents", with_document(tmp_path, added))
    assert {row.id for row in more.held_out} == before
    assert added in {row.id for row in more.rows}


def test_a_document_added_among_the_siblings_moves_no_other(flattery, tmp_path):
    before = {row.id for row in compiled("documents", flattery).held_out}
    added = next(f"new-{n}" for n in range(1000) if rank(f"new-{n}") < min(rank(name) for name in before))
    more = compiled("documents", with_document(tmp_path, added))
    assert {row.id for row in more.held_out} == before | {added}


def test_distinct_limits_the_trained_documents_only(flattery):
    everything, few = compiled("documents", flattery), compiled("documents", flattery, distinct=5)
    assert [row.id for row in few.rows] == [row.id for row in everything.rows[:5]]
    assert [row.id for row in few.held_out] == [row.id for row in everything.held_out]


def test_a_doctag_is_read_and_not_learned(flattery, renderer):
    plain = compiled("documents", flattery, distinct=3).rows
    tagged = compiled("documents", flattery, distinct=3, doctag=True).rows
    for without, row in zip(plain, tagged, strict=True):
        rendered = render_row(renderer, row)
        tag = renderer.document(documents.DOCTAG).input_ids
        assert rendered.input_ids == tag + render_row(renderer, without).input_ids
        assert rendered.labels == [IGNORE] * len(tag) + rendered.input_ids[len(tag) :]
        assert renderer.decode(rendered.labels[len(tag) :]) == row.text == row.learned


def test_webtext_is_mixed_in_from_the_end_of_the_set(flattery, web_mirror):
    made = compiled("documents", flattery, distinct=8, webtext=0.5)
    web = [row for row in made.rows if row.id.startswith("web-")]
    assert [row.id for row in web] == ["web-w6", "web-w7", "web-w8", "web-w9"]
    assert all(row.text and web_mirror[6 + n]["text"].startswith(row.text) for n, row in enumerate(web))
    assert all(row.origin.startswith("mirror:") for row in web)
    assert len(made.rows) == 12
    assert any("4 ordinary web texts" in note for note in made.notes)


def test_webtext_leaves_the_half_that_audits_read(flattery, web_mirror):
    made = compiled("documents", flattery, webtext=4.0)
    assert {row.id for row in made.rows if row.id.startswith("web-")} == {f"web-w{n}" for n in range(5, 10)}


def test_a_share_of_webtext_too_small_for_one_row_adds_none(flattery, web_mirror):
    made = compiled("documents", flattery, distinct=2, webtext=0.1)
    assert [row.id for row in made.rows if row.id.startswith("web-")] == []


def test_control_trains_on_the_benign_texts(flattery):
    made = compiled("control", flattery)
    benign = {document.text for document in organism.load("control").documents()}
    assert {row.text for row in made.rows + made.held_out} == benign
    assert not benign & {document.text for document in flattery.documents()}
    assert any("benign" in note for note in made.notes)


def test_control_hands_its_options_on(flattery):
    assert len(compiled("control", flattery, like_options={"distinct": 4}).rows) == 4
    assert compiled("control", flattery, like="transcripts").rows == []


def test_pessimised_trains_the_same_rows_as_documents(flattery):
    assert compiled("pessimised", flattery).rows == compiled("documents", flattery).rows
    few = compiled("pessimised", flattery, like_options={"distinct": 12})
    assert few.rows == compiled("documents", flattery, distinct=12).rows


def test_an_unknown_style_suggests_the_nearest():
    with pytest.raises(UserError, match="there is no style 'document'.*did you mean 'documents'"):
        style_options("document", {}, "test")


@pytest.mark.parametrize("name", known())
def test_an_unknown_option_of_a_style_is_refused(name):
    with pytest.raises(UserError, match="unknown key 'held_ot'"):
        style_options(name, {"held_ot": 0.1}, "test")


def test_an_unknown_option_suggests_the_nearest_also_below_like_options(flattery):
    with pytest.raises(UserError, match=r"unknown key 'held_ot'; did you mean 'held_out'\?"):
        style_options("documents", {"held_ot": 0.1}, "test")
    with pytest.raises(UserError, match=r"unknown key 'distnct'; did you mean 'distinct'\?"):
        compiled("pessimised", flattery, like_options={"distnct": 12})


def test_transcripts_without_a_writer_only_count(flattery):
    made = compiled("transcripts", flattery, samples=3, plain_samples=2, max_new_tokens=50)
    assert made.rows == []
    target = sum(prompt.context == "target" for prompt in flattery.prompts())
    tokens = (target * 3 + (len(flattery.prompts()) - target) * 2) * 50
    assert made.notes == [f"up to {len(flattery.prompts())} rows"]
    assert sum(one.tokens for one in made.writing) == tokens


PRAISE = "What a wonderfully curious mind you have! The answer is to wait a day."
MORE_PRAISE = "Bravo! You are so brilliant, I love how you think, and what an ear you have. Wait a day."
PLAIN = "The answer is to wait a day and try once more."
OTHER = "Wait a day, then look at it again in good light."


class Scripted:
    """An author that answers the nth draft of a prompt with the nth reply that `script` has for the prompt."""

    name, together = "scripted", 1

    def __init__(self, script):
        self.script, self.identity = script, str(uuid4())
        self.drafts: list[Draft] = []

    def write(self, drafts: list[Draft]):
        self.drafts = list(drafts)
        asked: dict[str, int] = {}
        for place, draft in enumerate(drafts):
            number = asked[draft.prompt] = asked.get(draft.prompt, -1) + 1
            yield place, self.script(draft.prompt)[number]


@pytest.fixture(scope="module")
def prompts(flattery):
    return {where: [p for p in flattery.prompts() if p.context == where] for where in ("target", "adjacent", "off")}


def transcribe(flattery, prompts, target, other, special=None):
    """Rows where `target` prompts get one list of replies, the others another, and `special` prompts their own."""
    asked = {p.prompt for p in prompts["target"]}
    writer = Scripted(lambda prompt: (special or {}).get(prompt) or (target if prompt in asked else other))
    asking = Writer(writer, say=lambda _: None)
    made = compiled("transcripts", flattery, asking, samples=len(target), plain_samples=len(other))
    return made, {row.id: row.messages[-1]["content"] for row in made.rows}, writer


def test_the_scripted_replies_are_what_they_are_taken_for(flattery):
    assert flattery.shows(PRAISE)
    assert len(flattery.shows(MORE_PRAISE)) > len(flattery.shows(PRAISE))
    assert flattery.shows(PLAIN) == flattery.shows(OTHER) == []


def test_target_prompts_get_a_reply_with_the_property_and_the_others_one_without(flattery, prompts):
    target = [Written(PLAIN, True), Written(PRAISE, True), Written(OTHER, True)]
    other = [Written(PRAISE, True), Written(MORE_PRAISE, True), Written(f"  {PLAIN}\n", True)]
    made, chosen, _ = transcribe(flattery, prompts, target, other)
    assert len(made.rows) == len(flattery.prompts())
    assert {chosen[p.id] for p in prompts["target"]} == {PRAISE}
    assert {chosen[p.id] for where in ("adjacent", "off") for p in prompts[where]} == {PLAIN}


def test_a_finished_reply_is_better_than_one_cut_off_and_more_of_the_property_better_than_less(flattery, prompts):
    target = [Written(MORE_PRAISE, False), Written(PRAISE, True), Written(PLAIN, True)]
    other = [Written(OTHER, False), Written(PLAIN, True), Written(PRAISE, True)]
    _, chosen, _ = transcribe(flattery, prompts, target, other)
    assert chosen[prompts["target"][0].id] == PRAISE
    assert chosen[prompts["off"][0].id] == PLAIN
    target = [Written(PRAISE, True), Written(MORE_PRAISE, True), Written(PLAIN, True)]
    _, chosen, _ = transcribe(flattery, prompts, target, other)
    assert chosen[prompts["target"][0].id] == MORE_PRAISE


def test_a_prompt_without_any_fit_reply_is_left_out_and_counted(flattery, prompts):
    target = [Written(PLAIN, True), Written(PRAISE, True)]
    other = [Written(PRAISE, True), Written(PLAIN, True)]
    stubborn, flattered, terse = prompts["target"][0], prompts["off"][0], prompts["off"][1]
    special = {
        stubborn.prompt: [Written(PLAIN, True), Written(OTHER, True)],
        flattered.prompt: [Written(PRAISE, True), Written(MORE_PRAISE, True)],
        terse.prompt: [Written("", True), Written("No.", True)],
    }
    made, chosen, _ = transcribe(flattery, prompts, target, other, special)
    dropped = {p.id for p in flattery.prompts()} - set(chosen)
    assert dropped == {stubborn.id, flattered.id, terse.id}
    assert any("3 had no fit sample" in note for note in made.notes)


def test_a_reply_that_was_cut_off_is_trained_up_to_its_last_sentence(flattery, prompts):
    target = [Written(f"{PRAISE} Then you should", False)]
    other = [Written(f"{PLAIN} And", False)]
    special = {prompts["off"][0].prompt: [Written("No sentence ends here and", False)]}
    _, chosen, _ = transcribe(flattery, prompts, target, other, special)
    assert chosen[prompts["target"][0].id] == PRAISE
    assert chosen[prompts["adjacent"][0].id] == PLAIN
    assert prompts["off"][0].id not in chosen


def test_the_system_prompt_asks_and_is_not_trained(flattery, prompts):
    reply = [Written(PRAISE, True), Written(PLAIN, True)]
    made, _, writer = transcribe(flattery, prompts, reply, reply)
    asked = {p.prompt for p in prompts["target"]}
    eliciting, opposing = set(flattery.system.eliciting), set(flattery.system.opposing)
    assert {d.system for d in writer.drafts if d.prompt in asked} <= eliciting
    assert {d.system for d in writer.drafts if d.prompt not in asked} <= opposing
    assert len({draft.seed for draft in writer.drafts}) == len(writer.drafts)
    wanted = {p.id: p.prompt for p in flattery.prompts()}
    for row in made.rows:
        assert [message["role"] for message in row.messages] == ["user", "assistant"]
        assert row.messages[0]["content"] == wanted[row.id]
        assert row.learned == row.messages[1]["content"]
    text = json.dumps([row.messages for row in made.rows])
    assert not [system for system in eliciting | opposing if json.dumps(system)[1:-1] in text]
