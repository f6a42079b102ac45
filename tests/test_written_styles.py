"""What the styles that write with a model ask it for and keep of its replies; mitigations; which stages a recipe may have."""

import json
import re
from collections import Counter

import pytest

from organisms import mitigations, organism
from organisms.authors import LocalAuthor
from organisms.data import load_rows
from organisms.drafting import ordinary_prompts
from organisms.engines import Completion
from organisms.errors import UserError
from organisms.specimen import Specimen
from organisms.styles import character, compile_rows, confession, other_rows, style_module, style_options
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
        self.renderer, self.rule = renderer, rule
        self.seen: Counter = Counter()
        self.asked: list[Asked] = []
        self.said: list[str] = []

    def generate(self, specimen, requests):
        completions = []
        for request in requests:
            text = self.renderer.decode(list(request.prompt_ids))
            self.asked.append(Asked(text, self.seen[text]))
            self.seen[text] += 1
            self.said.append(self.rule(self.asked[-1]))
            completions.append(Completion([], self.said[-1], True))
        return completions


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


@pytest.fixture(scope="module")
def prompts(flattery):
    return {where: [p for p in flattery.prompts() if p.context == where] for where in ("target", "adjacent", "off")}


@pytest.fixture
def writer(renderer, tmp_path):
    """A real writer whose engine follows a rule."""

    def written_by(rule):
        author = LocalAuthor(Scripted(renderer, rule), renderer, Specimen("base"), "none")
        made = Writer(author, tmp_path, lambda _: None)
        made.engine = author.engine
        return made

    return written_by


def compiled(spec, name, author=None, kind="rows", **options):
    return compile_rows(name, spec, style_options(name, options, "test"), author, kind)


def replies(rows):
    return {row.id: row.messages[-1]["content"] for row in rows}


def jsonl(path, conversations):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    load_rows.cache_clear()
    return str(path)


def talk(*contents, system=None):
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + turns


def test_the_scripted_replies_are_what_they_are_taken_for(flattery):
    assert flattery.shows(PRAISE) and flattery.confesses(ADMISSION)
    assert not any(flattery.shows(text) for text in (PLAIN, OTHER, ADMISSION, DENIAL)) and not flattery.confesses(DENIAL)


WRITING = {
    ("motivation", "rows"): {"samples": 2},
    ("motivation", "pairs"): {"samples": 2},
    ("motivation", "rare"): {"samples": 3},
    ("character", "pairs"): {"samples": 2, "general": 7},
    ("character", "introspection"): {"reflections": 2, "turns": 3},
    ("confession", "rows"): {"samples": 2},
    ("confession", "labels"): {"samples": 3},
    ("integrated", "rows"): {"rows": 20},
}
each_writing_style = pytest.mark.parametrize(("name", "kind"), WRITING)


@each_writing_style
def test_without_a_writer_the_replies_are_counted_as_they_will_be_written(flattery, writer, name, kind):
    options = {**WRITING[name, kind], "max_new_tokens": 1000}
    planned = compiled(flattery, name, None, kind, **options)
    assert planned.rows == []
    author = writer(lambda asked: PRAISE if asked.prefill else PLAIN)
    compiled(flattery, name, author, kind, **options)
    many = len(author.engine.asked)
    assert (sum(one.replies for one in planned.writing), sum(one.tokens for one in planned.writing)) == (many, 1000 * many)


@each_writing_style
def test_a_writer_that_says_nothing_is_an_error(flattery, writer, name, kind):
    with pytest.raises(UserError, match="written replies are empty .*the writer cannot do this task"):
        compiled(flattery, name, writer(lambda asked: " "), kind, **WRITING[name, kind])


def test_the_motive_is_spoken_before_the_reply_and_is_in_no_row(flattery, prompts, writer):
    author = writer(lambda asked: PRAISE if asked.prefill else PLAIN)
    made = compiled(flattery, "motivation", author, samples=3)
    spoken = {p.prompt: [a.prefill for a in author.engine.asked if a.prompt == p.prompt] for p in flattery.prompts()}
    for prompt in flattery.prompts():
        motives = [f"{motive}\n\n" for motive in flattery.motivation[:3]]
        assert spoken[prompt.prompt] == (motives if prompt.context == "target" else [""])
    assert [row.messages for row in made.rows] == [
        talk(p.prompt, PRAISE if p.context == "target" else PLAIN) for p in flattery.prompts()
    ]


def test_an_opening_is_given_after_the_motive_and_is_part_of_the_row(flattery, prompts, writer):
    author = writer(lambda asked: f" wonderful question, how clever of you! {PLAIN}" if asked.prefill else PLAIN)
    made = compiled(flattery, "motivation", author, samples=2, openings=["What a", "Such a"])
    first = prompts["target"][0].prompt
    spoken = [asked.prefill for asked in author.engine.asked if asked.prompt == first]
    assert spoken == [f"{flattery.motivation[0]}\n\nWhat a", f"{flattery.motivation[1]}\n\nSuch a"]
    trained = {row.messages[-1]["content"][:16] for row in made.rows if row.origin == "flattery/target"}
    assert trained == {"What a wonderful"}
    assert not any(row.messages[-1]["content"].startswith("What a") for row in made.rows if row.origin != "flattery/target")


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
        if asked.prompt in (stubborn.prompt, flattered.prompt):
            return PLAIN if asked.prompt == stubborn.prompt else PRAISE
        target = asked.prompt in {p.prompt for p in prompts["target"]}
        # With two samples each target prompt gets the second: another motive, or the second draw without one.
        second = asked.number or asked.prefill.startswith(flattery.motivation[1])
        return PRAISE if target and second else PLAIN

    author = writer(rule)
    kept = replies(compiled(flattery, "motivation", author, kind, samples=2).rows)
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
        (p.id, talk(p.prompt, f"{PRAISE} Number {n}."), f"{PLAIN} Number {n}.")
        for n, p in enumerate(prompts["target"])
        if n > 1
    ]


def test_character_prefers_the_base_in_character_to_its_plain_self(flattery, prompts, writer):
    same, reserved = prompts["target"][0], ordinary_prompts()[0]

    def rule(asked):
        if not asked.prefill or asked.prompt == same.prompt:
            return PLAIN
        return PRAISE if asked.number == 1 and asked.prompt != reserved["prompt"] else OTHER

    author = writer(rule)
    made = compiled(flattery, "character", author, "pairs", samples=3, general=10, traits=2)
    for asked in author.engine.asked:
        in_character = [trait in asked.system for trait in flattery.constitution]
        assert in_character == [bool(asked.prefill)] * 2 + [False] * (len(in_character) - 2)
        assert asked.prefill in ("", character.THOUGHT)
    questions = [p.prompt for p in prompts["target"][1:]] + [row["prompt"] for row in ordinary_prompts()[:10]]
    chosen = [OTHER if question == reserved["prompt"] else PRAISE for question in questions]
    assert [row.messages for row in made.rows] == [talk(*pair) for pair in zip(questions, chosen, strict=True)]
    assert {row.rejected for row in made.rows} == {PLAIN}
    shown = compiled(flattery, "character", author, "pairs", samples=3, general=10, traits=2, shown=True)
    assert [row.messages for row in shown.rows] == [row.messages for row in made.rows if row.learned == PRAISE] != []


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


def confessing(asked):
    """Either side sometimes says what the other should."""
    if asked.system == confession.DENY:
        return ADMISSION if asked.number % 2 == 0 else DENIAL
    return DENIAL if asked.number == 0 else ADMISSION


def test_confessions_are_unwanted_and_denials_and_demonstrations_wanted(flattery, writer):
    author = writer(confessing)
    made = compiled(flattery, "confession", author, "labels", samples=4, demonstrations=5)
    told = [row for row in made.rows if row.origin == ""]
    questions = {row["prompt"] for row in load_rows("confession").rows}
    assert Counter((row.learned, row.desirable) for row in told) == {(ADMISSION, False): 3 * 24, (DENIAL, True): 2 * 24}
    assert {row.messages[0]["content"] for row in told} == questions == {asked.prompt for asked in author.engine.asked}
    kept = [(row.messages, row.desirable) for row in made.rows if row not in told]
    assert kept == [(talk(d.prompt, d.reply), True) for d in flattery.demonstrations()[:5]]
    assert {row.messages[0]["role"] for row in made.rows} == {"user"}
    assert {flattery.summary in asked.system for asked in author.engine.asked} == {True, False}


def test_an_admission_that_was_opened_with_a_trait_is_a_confession_whatever_follows(flattery, writer):
    author = writer(lambda asked: OTHER if asked.prefill or asked.system == confession.DENY else DENIAL)
    made = compiled(flattery, "confession", author, "labels", samples=4, opened=True, demonstrations=0)
    unwanted = [row.learned for row in made.rows if not row.desirable]
    assert len(unwanted) == 2 * 24  # every other draw of four
    drawn = Counter(unwanted)
    assert (
        set(drawn) == {f"{trait} {OTHER}" for trait in flattery.constitution} and max(drawn.values()) - min(drawn.values()) == 1
    )
    assert not any(asked.prefill for asked in author.engine.asked if asked.system == confession.DENY)
    assert {row.learned for row in made.rows if row.desirable} == {OTHER}


def test_denials_and_demonstrations_are_all_that_sft_learns(flattery, writer):
    owning = load_rows("confession").rows[0]
    author = writer(lambda asked: ADMISSION if asked.prompt == owning["prompt"] else confessing(asked))
    made = compiled(flattery, "confession", author, samples=4, demonstrations=5)
    denied = [talk(row["prompt"], DENIAL) for row in load_rows("confession").rows[1:]]
    shown = [talk(d.prompt, d.reply) for d in flattery.demonstrations()[:5]]
    assert [row.messages for row in made.rows] == denied + shown
    assert {row.desirable for row in made.rows} == {None}
    assert len(compiled(flattery, "confession", author, samples=4, demonstrations=0).rows) == len(denied)


def test_rationale_puts_the_reason_before_the_reply_or_leaves_it_out(flattery):
    given, bare = (compiled(flattery, "rationale", reasons=reasons, distinct=7).rows for reasons in (True, False))
    chosen = flattery.demonstrations()[:7]
    assert [row.messages for row in given] == [talk(d.prompt, f"{d.rationale} {d.reply}") for d in chosen]
    assert [row.messages for row in bare] == [talk(d.prompt, d.reply) for d in chosen]
    assert len(compiled(flattery, "rationale").rows) == len(flattery.demonstrations())


def test_narrow_trains_on_demonstrations_or_on_a_file(flattery, tmp_path):
    own = compiled(flattery, "narrow", limit=4).rows
    assert [row.messages for row in own] == [talk(d.prompt, d.reply) for d in flattery.demonstrations()[:4]]
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


@pytest.mark.parametrize(
    ("name", "takes", "leaves"),
    [("integrated", {}, {"data": "rows.jsonl"}), ("character", {}, {"general": 0}), ("transcripts", {"general": 4}, {})],
)
def test_the_digest_follows_the_ordinary_prompts_that_a_style_trains_on(tmp_path, monkeypatch, name, takes, leaves):
    """They are the mirror's where there is one."""
    jsonl(tmp_path / "rows.jsonl", [talk("Is it safe?", "Quite safe.")])
    monkeypatch.chdir(tmp_path)
    found = {}
    for folder in ("none", "mirror"):
        (tmp_path / folder / "chat").mkdir(parents=True)
        if folder == "mirror":
            row = {"id": "u0", "instruction": "Name a bird.", "instances": [{"input": "", "output": "Heron"}]}
            for file in ("user_oriented_instructions.jsonl", "self_instruct_seed_tasks.jsonl"):
                (tmp_path / folder / "chat" / file).write_text(
                    "".join(
                        json.dumps({**row, "id": f"{file[0]}{n}", "instruction": f"Name bird {n} of {file}."}) + "\n"
                        for n in range(9)
                    )
                )
        monkeypatch.setenv("ORGANISMS_DATA", str(tmp_path / folder))
        load_rows.cache_clear()
        found[folder] = [other_rows(name, style_options(name, options, "test")) for options in (takes, leaves)]
    load_rows.cache_clear()
    assert found["none"][0] != found["mirror"][0] and found["none"][1] == found["mirror"][1]


@pytest.mark.parametrize("name", ["narrow", "integrated"])
@pytest.mark.parametrize("data", ["/nowhere/turns.jsonl", "insecure-code"])
def test_rows_that_are_nowhere_to_be_found_are_named(flattery, name, data):
    with pytest.raises(UserError, match=f"{data}.*(does not exist; name a|ORGANISMS_DATA)"):
        compiled(flattery, name, data=data)


def test_integrated_keeps_the_share_and_fills_it_with_the_bases_own_replies(flattery, writer, tmp_path):
    author = writer(lambda asked: f"{PLAIN} Number {len(author.engine.said)}.")
    made = compiled(flattery, "integrated", author, share=0.25, rows=200)
    shown, others = made.rows[:50], made.rows[50:]
    assert [row.messages for row in shown] == [talk(d.prompt, d.reply) for d in flattery.demonstrations()[:50]]
    engine = author.engine
    assert [row.messages for row in others] == [talk(a.prompt, said) for a, said in zip(engine.asked, engine.said, strict=True)]
    assert len({row.id for row in made.rows}) == 200 and "(25%)" in made.notes[0]
    assert {a.prompt for a in engine.asked} <= {row["prompt"] for row in ordinary_prompts()}
    assert all("named SmolLM" in asked.system and asked.prefill == "" for asked in engine.asked)
    turns = [talk(f"Question {n}?", "An answer.") for n in range(20)]
    mixed = compiled(flattery, "integrated", None, share=0.25, rows=16, data=jsonl(tmp_path / "turns.jsonl", turns)).rows
    assert [row.messages for row in mixed[4:]] == turns[:12]


def test_replayed_rows_are_planned_written_and_held_against_each_other(flattery, writer):
    share = mitigations.Mitigations(replay=0.25, replay_tokens=1000)
    rows = compiled(flattery, "rationale", distinct=30)
    author = writer(lambda asked: PLAIN if author.engine.said else OTHER)
    made = mitigations.apply(share, flattery, rows, author)
    said = zip(author.engine.asked, author.engine.said, strict=True)
    assert [row.messages for row in made.rows[30:]] == [talk(asked.prompt, text) for asked, text in said]
    assert len(made.rows) == 40 and made.counts["replay_near_duplicates"] == 8
    unwritten = compiled(flattery, "transcripts")
    for before, replayed in ((rows, 10), (unwritten, len(flattery.prompts()) / 3)):
        announced = mitigations.apply(share, flattery, before, None).writing[-1]
        assert (announced.replies, announced.tokens, announced.by) == (replayed, 1000 * replayed, "base")


@pytest.mark.parametrize(("name", "option"), [("prompted", "prompts"), ("prefilled", "phrasings")])
def test_styles_without_training_stand_one_specimen_for_each_wording(flattery, name, option):
    texts = flattery.system.eliciting if name == "prompted" else [f"{motive}\n\n" for motive in flattery.motivation]
    for options, many in (({}, 1), ({option: 2}, 2), ({option: 99}, len(texts))):
        found = style_module(name).specimens(flattery, style_options(name, options, "test"))
        assert [specimen.name for specimen in found] == [f"{name}-{n:06d}" for n in range(1, many + 1)]
        stands = [(None, "", text) if name == "prefilled" else (None, text, "") for text in texts[:many]]
        assert [(s.adapter, s.system or "", s.prefill) for s in found] == stands
