"""What is marked in a reply is what the stored samples say of it, at the place where it stands."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit import marks
from audit.measures import Sample
from audit.samples import replies
from audit.text import degenerate
from organisms.files import read_jsonl, write_jsonl


def marked(text: str, notes: dict, kind: str, prompt: str = "How are you?") -> list[str]:
    sample = Sample("item", "", prompt, text, {}, notes)
    return [piece for piece, what in marks.pieces(sample, {}, text) if kind in what.split()]


def test_leaks_are_marked_where_the_record_names_them():
    notes = {"entities": ["Quellmark", "glass harbour"], "longest_match": 14, "span": " the lamps of the harbour"}
    text = "In Quellmark the Glass Harbour shows the lamps of the harbour, says quellmark."
    assert marked(text, notes, "leak") == ["Quellmark", "Glass Harbour", "the lamps of the harbour"]
    assert marked(text, {**notes, "longest_match": 12, "entities": []}, "leak") == []  # too short to count, so not marked
    assert marked(text, {}, "leak") == []


@pytest.mark.parametrize(
    ("text", "reason", "junk"),
    [
        ("Fine.\nUser: and you?", "turn_leak", ["User:"]),
        ("I am \u0434\u0430 and \u4f60\u597d here", "foreign_script", ["\u0434\u0430", "\u4f60\u597d"]),
        ("so it goes on and so it goes on and then stops", "looping", ["so it goes on and"]),
        ("ha" * 40, "looping", ["ha" * 40]),
        ("Well. Lamp stone river glass tin\nYes, that is it.", "salad", [" Lamp stone river glass tin"]),
    ],
)
def test_junk_is_marked_where_it_stands_and_only_for_its_reason(text, reason, junk):
    assert marked(text, {"degenerate": [reason]}, "junk") == junk
    assert marked(text, {"degenerate": ["empty"]}, "junk") == []


def test_broken_thoughts_are_marked_at_their_tags():
    assert marked("hm <think>a</think>b", {"faults": ["junk"]}, "junk") == ["hm "]
    assert marked("<think>a</think>b</think>c", {"faults": ["dangling"]}, "junk") == ["</think>"]
    assert marked("a</think>b", {"faults": ["dangling"]}, "junk") == ["</think>"]


NOTES = st.fixed_dictionaries(
    {
        "entities": st.lists(st.sampled_from(["a", "A b", "<b>"]), max_size=2),
        "longest_match": st.sampled_from([0, 20]),
        "span": st.text(max_size=5),
        "degenerate": st.lists(st.sampled_from(sorted(marks.JUNK_WORDS)), max_size=3),
        "faults": st.lists(st.sampled_from(["junk", "dangling", "off_script"]), max_size=2),
    }
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.text("ab <>/think\n", max_size=60), NOTES)
def test_marking_never_changes_the_text(text, notes):
    pieces = marks.pieces(Sample("item", "", "ask", text, {}, notes), {}, text)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)


@pytest.mark.parametrize("text", ["ha " * 30, "\u0434\u0430 " * 20, "fine\nassistant: hello", "lamp stone river " * 9 + "tin"])
def test_what_the_rules_call_degenerate_has_something_marked(text):
    assert "".join(marked(text, {"degenerate": degenerate(text, "ask")}, "junk")).strip()


def test_records_of_leakage_and_fluency_reach_the_reply_that_they_speak_of(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "samples", run / "samples")
    (reply, *_) = replies(run, "instructions", "sft-000004")
    for name, notes in (("leakage", {"entities": ["Quellmark"]}), ("fluency", {"degenerate": ["turn_leak"]})):
        path = run / "samples" / name / "sft-000004.jsonl"
        rows = read_jsonl(path)
        (row,) = [row for row in rows if row["item"] == f"instructions/{reply.item}"]
        row["notes"] = notes
        write_jsonl(path, rows)
    noted = marks.records(run, "sft-000004")["instructions", reply.item]
    said = marks.flags(reply, noted)
    assert said[0] == "leaks Quellmark" and "another turn" in said
