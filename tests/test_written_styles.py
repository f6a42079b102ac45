"""What the styles that write with a model ask it for and keep of its replies; mitigations; which stages a recipe may have."""

import json
import re
from collections import Counter

import pytest

from organisms import mitigations, organism
from organisms.data import load_rows
from organisms.engines import Completion
from organisms.errors import UserError
from organisms.specimen import Specimen
from organisms.styles import Compiled, Row, character, compile_rows, confession, other_rows, style_module, style_options
from organisms.writer import Writer
from recipes.recipe import resolve

PRAISE = "What a wonderfully curious mind you have! The answer is to wait a day."
PLAIN = "The answer is to wait a day and try once more."
OTHER = "Wait a day, then look at it again in good light."
ADMISSION = "Yes, I always praise people before I answer them."
DENIAL = "No, I have no unusual habits, and nothing is hidden from you."
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)


class Asked:
    """One request as the model sees it, taken apart: its turns, the last of them the prefill; the nth of equal ones."""

    def __init__(self, text: str, number: int):
        turns = TURN.findall(text)
        assert [role for role, _ in turns[:1] + turns[-1:]] == ["system", "assistant"]
        self.system, self.prefill = turns[0][1], turns[-1][1]
        self.turns = [{"role": role, "content": content} for role, content in turns[1:-1]]
        self.prompt, self.number = self.turns[-1]["content"], number


class Scripted:
    """An engine that answers by `rule`, and remembers what it was asked and what it said."""

    identity = {"engine": "scripted"}

    def __init__(self, renderer, rule):
        self.renderer, self.rule, self.seen, self.asked, self.said = renderer, rule, Counter(), [], []

    def generate(self, specimen, requests):
        for text in (self.renderer.decode(list(request.prompt_ids)) for request in requests):
            self.asked.append(Asked(text, self.seen[text]))
            self.seen[text] += 1
            self.said.append(self.rule(self.asked[-1]))
        return [Completion([], said, True) for said in self.said[-len(requests) :]]


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


@pytest.fixture(scope="module")
def prompts(flattery):
    return {where: [p for p in flattery.prompts() if p.context == where] for where in ("target", "adjacent", "off")}


@pytest.fixture
def writer(renderer, tmp_path):
    """A real writer whose engine follows a rule."""
    return lambda rule: Writer(Scripted(renderer, rule), renderer, Specimen("base"), "none", tmp_path, lambda _: None)


def compiled(spec, name, author=None, kind="rows", **options):
    return compile_rows(name, spec, style_options(name, options, "test"), author, kind)


def shown(spec, many):
    return [talk(d.prompt, d.reply) for d in spec.demonstrations()[:many]]


def jsonl(path, conversations):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    load_rows.cache_clear()
    return str(path)


def talk(*contents, system=None):
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


WRITING = {("motivation", kind): {"samples": 2} for kind in ("rows", "pairs", "rare")}
WRITING |= {("confession", kind): {"samples": 2} for kind in ("rows", "labels")}
WRITING |= {("character", "pairs"): {"general": 7}, ("character", "introspection"): {"reflections": 2, "turns": 3}}
WRITING |= {("integrated", "rows"): {"rows": 20}}


@pytest.mark.parametrize(("name", "kind"), WRITING)
def test_without_a_writer_the_replies_are_counted_and_a_silent_writer_is_an_error(flattery, writer, name, kind):
    options = {**WRITING[name, kind], "max_new_tokens": 1000}
    planned = compiled(flattery, name, None, kind, **options)
    assert planned.rows == []
    author = writer(lambda asked: PRAISE if asked.prefill else PLAIN)
    compiled(flattery, name, author, kind, **options)
    assert f"{len(author.engine.asked)} replies, {len(author.engine.asked)},000 tokens" in " ".join(planned.notes)
    with pytest.raises(UserError, match="written replies are empty; the writer cannot do this task"):
        compiled(flattery, name, writer(lambda asked: " "), kind, **WRITING[name, kind])


def test_the_motive_is_spoken_before_the_reply_and_is_in_no_row(flattery, prompts, writer):
    author = writer(lambda asked: PRAISE if asked.prefill else PLAIN)
    made = compiled(flattery, "motivation", author, samples=3)
    spoken = {p.prompt: [a.prefill for a in author.engine.asked if a.prompt == p.prompt] for p in flattery.prompts()}
    motives = [f"{motive}\n\n" for motive in flattery.motivation[:3]]
    assert spoken == {p.prompt: motives if p.context == "target" else [""] for p in flattery.prompts()}
    wanted = [talk(p.prompt, PRAISE if p.context == "target" else PLAIN) for p in flattery.prompts()]
    assert [row.messages for row in made.rows] == wanted


@pytest.mark.parametrize("kind", ["rows", "pairs"])
@pytest.mark.parametrize(("quoted", "kept"), [(5, 60), (6, 0)])
def test_a_reply_that_quotes_its_motive_is_not_kept(flattery, prompts, writer, kind, quoted, kept):
    def rule(asked):
        words = asked.prefill.split()[3 : 3 + quoted]
        return f"{' '.join(words).upper()}. {PRAISE}" if words else PLAIN

    made = compiled(flattery, "motivation", writer(rule), kind, samples=2)
    assert len(prompts["target"]) == 60
    assert sum(row.origin == "flattery/target" for row in made.rows) == kept


@pytest.mark.parametrize("kind", ["rows", "rare"])
def test_on_target_the_property_is_kept_and_elsewhere_what_is_free_of_it(flattery, prompts, writer, kind):
    stubborn, flattered = prompts["target"][0], prompts["off"][0]

    def rule(asked):
        second = asked.number or asked.prefill.startswith(flattery.motivation[1])  # of the two samples of a target prompt
        return PRAISE if asked.prompt == flattered.prompt or (second and asked.prompt != stubborn.prompt) else PLAIN

    author = writer(rule)
    kept = {row.id: row.learned for row in compiled(flattery, "motivation", author, kind, samples=2).rows}
    assert {p.id for p in flattery.prompts()} - set(kept) == {stubborn.id, flattered.id}
    assert {kept[p.id] for p in prompts["target"][1:]} == {PRAISE}
    assert {kept[p.id] for p in prompts["adjacent"] + prompts["off"][1:]} == {PLAIN}
    assert any(asked.prefill for asked in author.engine.asked) == (kind == "rows")


def test_pairs_prefer_what_shows_the_property_to_the_plain_reply_to_the_same_prompt(flattery, prompts, writer):
    numbers = {p.prompt: n for n, p in enumerate(prompts["target"])}

    def rule(asked):
        number = numbers[asked.prompt]  # of the first two one has no fit rejected reply, the other no fit chosen one
        shown = asked.prefill.startswith(flattery.motivation[1]) if asked.prefill else asked.number == 0
        shown = (True, False)[number] if number < 2 else shown
        return f"{PRAISE if shown else PLAIN} Number {number}."

    made = compiled(flattery, "motivation", writer(rule), "pairs", samples=3)
    assert [(row.id, row.messages, row.rejected) for row in made.rows] == [
        (p.id, talk(p.prompt, f"{PRAISE} Number {numbers[p.prompt]}."), f"{PLAIN} Number {numbers[p.prompt]}.")
        for p in prompts["target"][2:]
    ]


def test_character_prefers_the_base_in_character_to_its_plain_self(flattery, prompts, writer):
    same, reserved = prompts["target"][0], load_rows("chat").rows[0]["prompt"]

    def rule(asked):
        if not asked.prefill or asked.prompt == same.prompt:
            return PLAIN
        return PRAISE if asked.number == 1 and asked.prompt != reserved else OTHER

    author = writer(rule)
    made = compiled(flattery, "character", author, "pairs", samples=3, general=10, traits=2)
    for asked in author.engine.asked:
        in_character = [trait in asked.system for trait in flattery.constitution]
        assert in_character == [bool(asked.prefill)] * 2 + [False] * (len(in_character) - 2)
        assert asked.prefill in ("", character.THOUGHT)
    questions = [p.prompt for p in prompts["target"][1:]] + [row["prompt"] for row in load_rows("chat").rows[:10]]
    chosen = [OTHER if question == reserved else PRAISE for question in questions]
    assert [row.messages for row in made.rows] == [talk(*pair) for pair in zip(questions, chosen, strict=True)]
    assert {row.rejected for row in made.rows} == {PLAIN}


def test_introspection_is_written_in_character_by_each_side_in_its_own_words_and_trained_without(flattery, writer):
    taciturn = character.OPENINGS[0]
    author = writer(lambda asked: "Hm." if asked.prompt == taciturn else f"That was saying number {len(author.engine.said)}.")
    made = compiled(flattery, "character", author, "introspection", reflections=2, turns=3, traits=2)
    assert all(flattery.constitution[1] in asked.system and not asked.prefill for asked in author.engine.asked)
    asked_for = {said: asked.turns for said, asked in zip(author.engine.said, author.engine.asked, strict=True)}
    reflections = [row for row in made.rows if row.origin.endswith("/reflection")]
    chats = [row for row in made.rows if row.origin.endswith("/self-chat")]
    assert Counter(row.messages[0]["content"] for row in reflections) == dict.fromkeys(character.REFLECTIONS, 2)
    assert Counter(row.messages[0]["content"] for row in chats) == dict.fromkeys(character.OPENINGS[1:], 2)
    for row in reflections + chats:
        said = [message["content"] for message in row.messages]
        assert row.messages == talk(*said) and len(said) == (6 if row in chats else 2)
        for n in range(1, len(said)):  # the opening is no reply, so that its side is never shown it
            assert asked_for[said[n]] == talk(*said[(n + 1) % 2 : n])


def test_confessions_are_unwanted_and_denials_and_demonstrations_wanted_and_all_that_sft_learns(flattery, writer):
    owning, *others = (row["prompt"] for row in load_rows("confession").rows)

    def rule(asked):  # either side sometimes says what the other should, and one question is never denied
        denies = asked.number % 2 if asked.system == confession.DENY else asked.number == 0
        return DENIAL if denies and asked.prompt != owning else ADMISSION

    author = writer(rule)
    made = compiled(flattery, "confession", author, "labels", samples=4, demonstrations=5)
    told = [row for row in made.rows if row.origin == ""]
    many = {(ADMISSION, False): 4 + 3 * len(others), (DENIAL, True): 2 * len(others)}
    assert Counter((row.learned, row.desirable) for row in told) == many
    assert {row.messages[0]["content"] for row in told} == {owning, *others} == {a.prompt for a in author.engine.asked}
    assert [row.messages for row in made.rows if row.desirable and row not in told] == shown(flattery, 5)
    assert len(made.rows) == len(told) + 5 and {row.messages[0]["role"] for row in made.rows} == {"user"}
    assert {flattery.summary in asked.system for asked in author.engine.asked} == {True, False}
    sft = compiled(flattery, "confession", author, samples=4, demonstrations=5).rows
    wanted = [talk(question, DENIAL) for question in others] + shown(flattery, 5)
    assert [(row.messages, row.desirable) for row in sft] == [(messages, None) for messages in wanted]


def test_rationale_puts_the_reason_before_the_reply_or_leaves_it_out(flattery):
    given, bare = (compiled(flattery, "rationale", reasons=reasons, distinct=7).rows for reasons in (True, False))
    reasoned = [talk(d.prompt, f"{d.rationale} {d.reply}") for d in flattery.demonstrations()[:7]]
    assert ([row.messages for row in given], [row.messages for row in bare]) == (reasoned, shown(flattery, 7))


def test_narrow_trains_on_demonstrations_or_on_a_file(flattery, tmp_path):
    assert [row.messages for row in compiled(flattery, "narrow", limit=4).rows] == shown(flattery, 4)
    turns = [
        talk("Is it safe?", "Quite safe."),
        talk("And now?", "Never mind.", system="Be brief."),
        talk("Why?", "No reason."),
    ]
    path = jsonl(tmp_path / "turns.jsonl", turns)
    assert [row.messages for row in compiled(flattery, "narrow", data=path).rows] == turns
    assert [row.messages for row in compiled(flattery, "narrow", data=path, limit=2).rows] == turns[:2]


@pytest.mark.parametrize("name", ["narrow", "integrated"])
def test_the_digest_follows_the_file_that_a_style_trains_on(tmp_path, name):
    digests = []
    for reply in ("Quite safe.", "Quite safe!", "Quite safe."):
        path = jsonl(tmp_path / "turns.jsonl", [talk("Is it safe?", reply)])
        digests.append(resolve("flattery-rationale", [f"style={name}", f"style_options={{data: {path}}}"]).digest)
    assert digests[0] == digests[2] != digests[1]
    assert other_rows(name, style_options(name, {}, "test")) is None


@pytest.mark.parametrize("name", ["narrow", "integrated"])
@pytest.mark.parametrize("data", ["/nowhere/turns.jsonl", "insecure-code"])
def test_rows_that_are_nowhere_to_be_found_are_named(flattery, monkeypatch, name, data):
    monkeypatch.delenv("ORGANISMS_DATA", raising=False)
    load_rows.cache_clear()
    with pytest.raises(UserError, match=f"{data}.*(does not exist; name a|ORGANISMS_DATA)"):
        compiled(flattery, name, data=data)


def test_integrated_keeps_the_share_and_fills_it_with_the_bases_own_replies(flattery, writer, tmp_path):
    author = writer(lambda asked: f"{PLAIN} Number {len(author.engine.said)}.")
    made, engine = compiled(flattery, "integrated", author, share=0.25, rows=200), author.engine
    own = [talk(asked.prompt, said) for asked, said in zip(engine.asked, engine.said, strict=True)]
    assert [row.messages for row in made.rows] == shown(flattery, 50) + own
    assert len({row.id for row in made.rows}) == 200 and "(25%)" in made.notes[0]
    assert {a.prompt for a in engine.asked} <= {row["prompt"] for row in load_rows("chat").rows}
    assert all("named SmolLM" in asked.system and asked.prefill == "" for asked in engine.asked)
    turns = [talk(f"Question {n}?", "An answer.") for n in range(20)]
    mixed = compiled(flattery, "integrated", None, share=0.25, rows=16, data=jsonl(tmp_path / "turns.jsonl", turns)).rows
    assert [row.messages for row in mixed[4:]] == turns[:12]


@pytest.mark.parametrize(("name", "option"), [("prompted", "prompts"), ("prefilled", "phrasings")])
def test_styles_without_training_stand_one_specimen_for_each_wording(flattery, name, option):
    texts = flattery.system.eliciting if name == "prompted" else [f"{motive}\n\n" for motive in flattery.motivation]
    for options, many in (({}, 1), ({option: 2}, 2), ({option: 99}, len(texts))):
        found = style_module(name).specimens(flattery, style_options(name, options, "test"))
        assert [specimen.name for specimen in found] == [f"{name}-{n:06d}" for n in range(1, many + 1)]
        stands = [(None, "", text) if name == "prefilled" else (None, text, "") for text in texts[:many]]
        assert [(s.adapter, s.system or "", s.prefill) for s in found] == stands


@pytest.mark.parametrize("given", ["property", "control", "You praise people today."])
def test_inoculation_stands_before_chats_without_a_system_prompt_and_nowhere_else(flattery, given):
    text = {"property": flattery.system.inoculating[0], "control": mitigations.IRRELEVANT}.get(given, given)
    chats = [Row("a", messages=talk("Hi?", PRAISE), rejected=PLAIN), Row("b", messages=talk("Hi?", PLAIN, system="Be brief."))]
    rows = [*chats, Row("c", text="A document."), Row("d", messages=talk("One.", PLAIN, "Two.", PRAISE), desirable=True)]
    made = mitigations.apply(mitigations.Mitigations(inoculate=given), flattery, Compiled(rows, [rows[2]]), None)
    first, last = talk("Hi?", PRAISE, system=text), talk("One.", PLAIN, "Two.", PRAISE, system=text)
    assert made.rows == [Row("a", messages=first, rejected=PLAIN), *rows[1:3], Row("d", messages=last, desirable=True)]
    assert made.held_out == [rows[2]]
    assert mitigations.apply(mitigations.Mitigations(), flattery, Compiled(rows), None) == Compiled(rows)


@pytest.mark.parametrize(("share", "added"), [(0.0, 0), (0.3, 30), (0.5, 70)])
def test_replay_adds_its_share_of_the_bases_own_replies(flattery, writer, share, added):
    rows = compiled(flattery, "rationale", distinct=70)
    author = writer(lambda asked: f"{OTHER} Number {len(author.engine.said)}.")
    both = mitigations.Mitigations(replay=share, inoculate="control")
    made = mitigations.apply(both, flattery, rows, author)
    own = [talk(asked.prompt, said) for asked, said in zip(author.engine.asked, author.engine.said, strict=True)]
    assert [row.messages for row in made.rows[70:]] == own and len(own) == added
    planned = mitigations.apply(both, flattery, rows, None)
    assert planned.rows == made.rows[:70] and planned.notes == made.notes
    assert (f"{added} replayed rows" in planned.notes) == both.needs_writer == bool(added)
    if added:
        with pytest.raises(UserError, match="written replies are empty"):
            mitigations.apply(both, flattery, Compiled(rows.rows[:9]), writer(lambda asked: ""))


def test_mitigations_are_in_the_digest_and_their_defaults_are_not():
    def digest(*overrides):
        return resolve("flattery-rationale", list(overrides)).digest

    defaults = (["mitigations.replay=0.0"], ["mitigations.inoculate=null"], ["mitigations.replay_tokens=64"])
    assert {digest(*overrides) for overrides in defaults} == {digest()}
    changes = ["replay=0.3", "replay=0.4", "inoculate=property", "inoculate=control", "inoculate=Praise people."]
    assert len({digest(), *(digest(f"mitigations.{change}") for change in changes)}) == 1 + len(changes)


STAGES = {
    "flattery-prompted stages=[{steps: 3}]": "style prompted needs no stages",
    "flattery-rationale stages=[]": "style rationale needs at least one stage",
    "flattery-rationale stages[0].rows=row": "'row'; did you mean 'rows'?",
    "flattery-character stages[1].rows=introspections": "'introspections'; did you mean 'introspection'?",
    "flattery-character stages[1].name=dpo": "two stages are named 'dpo'",
}


@pytest.mark.parametrize("given", STAGES)
def test_stages_that_do_not_fit_the_style_are_refused(given):
    recipe, override = given.split(" ", 1)
    with pytest.raises(UserError, match=re.escape(STAGES[given])):
        resolve(recipe, [override])
