"""Whatever comes in, what comes out is sound or a sentence: YAML, bytes, texts, replies and log-probabilities of any kind.

The profile is fixed (derandomized), so that each run tries the same examples and none fails by chance.
"""

import json
import math
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_bad_files import RECIPE
from test_bad_runs import CHECKPOINT, sound, whole

from audit import lines, readings, refusal, text, thoughts, verifiers
from audit.judge import EndpointJudge, Judgement, JudgePlan
from audit.markdown import code, inline, quoted
from organisms import files, organism
from organisms.data import load_rows
from organisms.errors import UserError
from organisms.render import IGNORE
from recipes import recipe
from train import ledger

calm = settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # no shrinking, which takes minutes where an example takes milliseconds
    suppress_health_check=list(HealthCheck),  # the fixtures that examples share are only read
)

NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
# Words that mean something to some reader of replies, between any text.
WORDS = st.sampled_from(
    ["<think>", "</think>", "<|im_end|>", "I can't help", "user:", "70", "\n", "```", "* ", "|", "\u2028", "\x00", "<b>", "**"]
)
REPLIES = st.lists(st.one_of(st.text(max_size=30), WORDS), max_size=8).map(" ".join)


def paths(value, way=()) -> list[tuple]:
    """Ways to every value inside mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way] * bool(way) + [path for key, one in inner for path in paths(one, (*way, key))]


def replaced(value, way: tuple, new):
    """A copy with another value at the end of the way."""
    if not way:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    made[way[0]] = replaced(value[way[0]], way[1:], new)
    return made


def refused_or(load, file: Path, values) -> object | None:
    """What is loaded, or None where a UserError of one line says why not."""
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        return load(file)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("properties")


FULL = {**RECIPE, "audit": {"suite": "quick", "measures": ["drift"], "margins": {"knowledge": {"accuracy": 0.1}}}, "seed": 3}
FULL |= {"writer": {"endpoint": "http://localhost/v1", "model": "m"}, "mitigations": {"replay": 0.1}, "accept": []}
CONTROL = yaml.safe_load((organism.LIBRARY / "control.yaml").read_text(encoding="utf-8"))


@calm
@given(st.sampled_from(paths(FULL)), VALUES)
def test_any_value_in_a_recipe_is_taken_or_refused(folder, way, value):
    found = refused_or(lambda file: recipe.load(str(file)), folder / "recipe.yaml", replaced(FULL, way, value))
    if found is not None:
        for stage in found[1].stages:
            assert math.isfinite(stage.learning_rate) and 0 < stage.learning_rate <= 1 and stage.lora.r > 0


@calm
@given(st.sampled_from(paths(CONTROL)), VALUES)
def test_any_value_in_an_organism_is_taken_or_refused(folder, way, value):
    found = refused_or(organism.load, folder / "organism.yaml", replaced(CONTROL, way, value))
    if found is not None:
        assert re.fullmatch("[a-z0-9][a-z0-9-]{0,63}", found.name) and found.shows("") == []


@calm
@given(st.binary(max_size=60))
def test_any_bytes_are_a_yaml_file_or_refused(folder, raw):
    file = folder / "bytes.yaml"
    file.write_bytes(raw)
    for load in (organism.load, lambda path: recipe.load(str(path))):
        with pytest.raises(UserError):
            load(file)


ROW = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.sampled_from(sorted(sound())), VALUES).map(lambda change: json.dumps(sound() | dict([change])).encode()),
)


@calm
@given(st.lists(ROW, max_size=3))
def test_any_line_is_a_reading_with_finite_numbers_inside_the_run_or_refused(folder, rows):
    (folder / "readings.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))
    try:
        found = readings.read(folder)
    except UserError as error:
        assert "readings.jsonl line" in str(error)
        return
    for one in found:
        numbers = [getattr(one, key) for key in lines.NUMBERS]
        assert all(number is None or math.isfinite(number) for number in numbers)
        assert (folder / "samples" / one.measure / f"{one.specimen}.jsonl").resolve().is_relative_to(folder.resolve())
        assert one.verdict in lines.VERDICTS and 0 <= one.n <= 2**53


PATHS = st.lists(st.sampled_from(["..", "checkpoints", "sft-000002", "elsewhere", "/", ""]), max_size=5).map("/".join)
CHANGES = st.one_of(
    st.tuples(st.sampled_from(sorted(CHECKPOINT)), VALUES),
    st.tuples(st.just("path"), st.one_of(PATHS, st.just("../elsewhere"))),
)


@calm
@given(st.lists(CHANGES, max_size=2), st.binary(max_size=20))
def test_any_line_is_a_checkpoint_inside_the_run_or_refused(folder, changes, torn):
    if not (folder / "checkpoints").exists():
        whole(folder / "checkpoints" / "sft-000002")
        whole(folder.parent / "elsewhere")
    row = json.dumps(CHECKPOINT | dict(changes)).encode()
    (folder / ledger.LEDGER).write_bytes(row + b"\n" + torn.replace(b"\n", b""))
    try:
        found = ledger.read_ledger(folder)
    except UserError:
        return
    for one in found:
        assert (folder / one.path).resolve().is_relative_to(folder.resolve()) and one.step >= 0
        assert one.loss is None or math.isfinite(one.loss)


@calm
@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=4), st.binary(max_size=12))
def test_whole_rows_survive_whatever_is_torn_behind_them(folder, rows, torn):
    rows = json.loads(json.dumps(rows))
    file = folder / "rows.jsonl"
    files.write_jsonl(file, rows)
    with open(file, "ab") as end:
        end.write(b'{"' + torn.replace(b"\n", b"").replace(b"}", b""))
    assert json.dumps(files.read_jsonl(file)) == json.dumps(rows)
    files.append_jsonl(file, [{"last": True}])
    assert json.dumps(files.read_jsonl(file)) == json.dumps([*rows, {"last": True}])


@calm
@given(REPLIES, REPLIES)
def test_loss_falls_on_any_reply_and_on_nothing_else(renderer, prompt, reply):
    try:
        rendered = renderer.conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}])
    except UserError:
        assert not prompt.strip() or not reply.strip()
        return
    carried = [label for label in rendered.labels if label != IGNORE]
    assert carried == renderer.continuation(f"{reply}<|im_end|>")
    assert all(label in (IGNORE, token) for label, token in zip(rendered.labels, rendered.input_ids, strict=True))
    asked = renderer.ask(prompt)
    assert rendered.input_ids[: len(asked)] == asked


@calm
@given(REPLIES)
def test_any_text_stays_text_in_markdown(shown):
    cell = inline(shown)
    assert "<" not in cell and len(cell.splitlines()) <= 1 and re.search(r"(?<!\\)[|`\[]", cell) is None
    assert str(code(shown)).count("`") == 2 and "\n" not in code(shown)
    assert yaml.safe_load(f"a: {quoted(shown or 'x')}") == {"a": shown or "x"}


@calm
@given(REPLIES, REPLIES)
def test_any_reply_is_taken_apart(prompt, reply):
    for finished in (True, False):
        for opened in (True, False):
            taken = thoughts.take_apart(reply, finished, opened, prompt)
            assert set(taken.faults) <= FAULTS and ("<think>" not in taken.text or "dangling" in taken.faults)
    answer = text.answer_only(reply)
    assert "<think>" not in answer and answer == answer.strip()
    assert refusal.classify(reply, prompt) in ("full", "partial", "compliance")
    assert set(text.degenerate(reply, prompt)) <= {"empty", "looping", "turn_leak", "foreign_script", "salad"}
    for found in SPEAKING:
        assert set(found.shows(reply)) <= {marker.name for marker in found.markers}
        assert set(found.confesses(reply)) <= {marker.name for marker in found.confessions}


SPEAKING = [organism.load(name) for name in ("flattery", "secret-loyalty", "poeticism")]
FAULTS = {"unopened", "junk", "unclosed", "dangling", "empty", "silent", "off_script", "turn_leak", "looping"}


@settings(calm, max_examples=8)
@given(REPLIES)
def test_any_reply_follows_an_instruction_or_not(reply):
    for row in load_rows("instructions", "embedded").rows[::4]:
        strict, loose = verifiers.check(row, reply)
        assert len(strict) == len(loose) == len(row["instruction_id_list"])
        assert all(not one or other for one, other in zip(strict, loose, strict=True))  # loose never asks for more


LOGPROBS = st.one_of(st.floats(), st.none(), st.text(max_size=3), st.integers(-99, 3), st.floats(-20, 0))
TOKENS = st.one_of(st.text(max_size=3), st.integers(0, 100).map(str), st.none())
TOPS = st.lists(
    st.fixed_dictionaries({"token": TOKENS, "logprob": LOGPROBS}),
    max_size=5,
)
BODIES = st.one_of(
    VALUES,
    TOPS.map(
        lambda tops: {
            "choices": [
                {
                    "message": {"content": "50"},
                    "logprobs": {"content": [{"token": "50", "logprob": -1, "top_logprobs": tops}]},
                }
            ]
        }
    ),
)


@cache
def local_judge() -> EndpointJudge:
    pytest.importorskip("openai", reason="a judge at an endpoint needs the openai client: pip install openai")
    return EndpointJudge(JudgePlan(endpoint="http://localhost/v1", model="m"))


@settings(calm, max_examples=150)
@given(BODIES)
def test_any_body_is_a_score_of_0_to_100_or_refused(body):
    judge = local_judge()
    from openai._models import construct_type
    from openai.types.chat import ChatCompletion

    made = construct_type(type_=ChatCompletion, value=body)  # what the client makes of a body that is JSON
    judge.endpoint.client.chat.completions.create = lambda **_: made
    try:
        (answer,) = judge.ask([Judgement("How warm?")])
    except UserError:
        return
    assert 0 <= answer["mass"] <= 1.01
    assert answer["score"] is None or (0 <= answer["score"] <= 100 and answer["mass"] >= 0.25)


# The properties themselves: each of these faults must be seen.


@pytest.mark.parametrize(
    ("place", "name", "fault", "seen_by"),
    [
        (readings, "fault", lambda row: "", test_any_line_is_a_reading_with_finite_numbers_inside_the_run_or_refused),
        (ledger, "inside", lambda run, path, _: run / path, test_any_line_is_a_checkpoint_inside_the_run_or_refused),
        (ledger, "is_a", lambda *_: True, test_any_line_is_a_checkpoint_inside_the_run_or_refused),
        (files, "_is_json", lambda _: True, test_whole_rows_survive_whatever_is_torn_behind_them),
        (recipe, "validate", lambda model, values, *_: model(**values), test_any_value_in_a_recipe_is_taken_or_refused),
        (text, "OPEN_THOUGHT", re.compile("never"), test_any_reply_is_taken_apart),
    ],
    ids=["unchecked readings", "unconfined paths", "unchecked checkpoints", "torn lines", "bare pydantic", "open thoughts"],
)  # fmt: skip
def test_the_properties_see_a_planted_fault(place, name, fault, seen_by, folder, monkeypatch):
    monkeypatch.setattr(place, name, fault)
    arguments = {} if seen_by is test_any_reply_is_taken_apart else {"folder": folder}
    # An assertion, or the very error that a user would have met.
    with pytest.raises((AssertionError, UserError, ValueError, TypeError, KeyError, ExceptionGroup)):
        seen_by(**arguments)
