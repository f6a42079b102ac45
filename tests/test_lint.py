"""Each known trap is found by name before training, and a clean set of rows gives no finding."""

import copy
import re

import pytest

from organisms.errors import UserError
from organisms.render import IGNORE, Rendered, Renderer
from organisms.styles import Row
from train.config import Lora, Stage
from train.lint import lint, refuse, render_row, report
from train.traps import Linted, chat_end_on_documents, extra_empty_turn, no_loss, wrong_roles

STAGE = Stage(steps=10)
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
OPENER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
# The form of Qwen3's: every reply gets an (empty) thought, and the generation prompt closes it where thinking is off.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + ('' if '<think>' in m.content else '<think>\n\n</think>\n\n') }}"
    "{{ m.content + '<|im_end|>\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Writes the question once more behind the answer, inside the assistant's turn.
ECHOING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + m.content + ' ' + messages[loop.index0 - 1].content + '<|im_end|>\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + OPENER
)


@pytest.fixture
def with_template(tokenizer):
    def make(template, thinking=None):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return Renderer(other, thinking=thinking)

    return make


def chat(name, ask="How long should pickled beetroot stand?", reply="Two weeks in a cool and dark place."):
    return Row(name, messages=[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}], origin="test")


def chats(count):
    return [chat(f"chat-{n}", reply=f"Reply number {n} is to wait for {n} days.") for n in range(count)]


def docs(count, words=6):
    return [Row(f"doc-{n}", text=f"Text {n}: " + "the ferry left " * words, origin="test") for n in range(count)]


def found(rows, renderer, stage=STAGE, audited=None, stated=True):
    """{trap: finding} of a set of rows."""
    linted = lint(rows, stage, renderer, audited or renderer, stated)
    assert len({finding.trap for finding in linted.findings}) == len(linted.findings)
    return {finding.trap: finding for finding in linted.findings}


def by_hand(rows, rendered, renderer):
    learned = [renderer.decode([label for label in r.labels if label != IGNORE]) for r in rendered]
    return Linted(rows, rendered, learned, [])


def test_clean_chats_and_documents_give_no_finding(renderer):
    assert found(chats(4), renderer) == {}
    assert found(docs(4), renderer) == {}
    assert found(chats(3) + docs(3), renderer) == {}


def test_no_rows_at_all_are_refused(renderer):
    with pytest.raises(UserError, match="no training rows"):
        lint([], STAGE, renderer, renderer, True)


def test_rows_without_loss_are_found(renderer):
    traps = found([*docs(3), Row("blank", text=" \n ")], renderer)
    assert set(traps) == {"no_loss"}
    assert traps["no_loss"].level == "stop"
    assert traps["no_loss"].rows == ["blank"]
    masked = render_row(renderer, chats(1)[0])
    linted = by_hand(chats(1), [Rendered(masked.input_ids, [IGNORE] * len(masked.labels))], renderer)
    assert no_loss(linted).rows == ["chat-0"]


def test_wrong_roles_are_refused_naming_row_and_trap(renderer):
    backwards = Row("bad", messages=[{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(UserError, match=r"training row 'bad' \(trap wrong_roles\)"):
        lint([*chats(2), backwards], STAGE, renderer, renderer, True)


def test_the_users_words_in_the_loss_are_found(with_template, renderer):
    rows = chats(3)
    traps = found(rows, with_template(ECHOING))
    assert traps["wrong_roles"].level == "stop"
    assert traps["wrong_roles"].rows == [row.id for row in rows]
    rendered = [render_row(renderer, row) for row in rows]
    rendered[1] = Rendered(rendered[1].input_ids, list(rendered[1].input_ids))  # the whole talk is learned
    assert wrong_roles(by_hand(rows, rendered, renderer)).rows == ["chat-1"]


def test_a_reply_may_quote_the_question(renderer):
    ask = "How long should pickled beetroot stand?"
    assert found([chat("quote", ask, f"You ask: {ask} Two weeks.")], renderer) == {}


def test_an_empty_thought_in_the_loss_is_found_and_thinking_off_mends_it(with_template):
    traps = found(chats(3), with_template(THINKING, thinking=True))
    assert traps["empty_think"].level == "stop"
    assert len(traps["empty_think"].rows) == 3
    assert "thinking: false" in traps["empty_think"].text
    assert "empty_think" not in found(chats(3), with_template(THINKING, thinking=False))
    reasoned = [chat("r", reply="<think>\nCool and dark slows spoiling.\n</think>\n\nTwo weeks.")]
    assert found(reasoned, with_template(THINKING, thinking=True)) == {}


def test_chat_tokens_on_documents_are_found(renderer, tokenizer):
    traps = found([*docs(3), Row("ended", text="The ferry left.<|im_end|>")], renderer)
    assert set(traps) == {"chat_end_on_documents"}
    assert traps["chat_end_on_documents"].level == "stop"
    assert traps["chat_end_on_documents"].rows == ["ended"]
    plain = render_row(renderer, docs(1)[0])
    ended = plain.input_ids + [tokenizer.eos_token_id]  # what TRL does to raw text
    assert chat_end_on_documents(by_hand(docs(1), [Rendered(ended, ended)], renderer), renderer).rows == ["doc-0"]


@pytest.mark.parametrize("ending", ["opened", "opened and ended", "ended twice"])
def test_an_extra_empty_turn_is_found(renderer, tokenizer, ending):
    rows = chats(3)
    rendered = [render_row(renderer, row) for row in rows]
    assert extra_empty_turn(by_hand(rows, rendered, renderer), renderer) is None
    end = [tokenizer.eos_token_id]
    opened = renderer.continuation("\n<|im_start|>assistant\n")
    more = {"opened": opened, "opened and ended": opened + end, "ended twice": end}[ending]
    rendered[2] = Rendered(rendered[2].input_ids + more, rendered[2].labels + more)
    finding = extra_empty_turn(by_hand(rows, rendered, renderer), renderer)
    assert (finding.trap, finding.level, finding.rows) == ("extra_empty_turn", "stop", ["chat-2"])


def test_an_implicit_system_prompt_is_found_unless_the_recipe_states_its_policy(renderer, tokenizer):
    traps = found(chats(2) + docs(1), renderer, stated=False)
    assert set(traps) == {"implicit_system"}
    assert traps["implicit_system"].level == "stop"
    assert traps["implicit_system"].rows == ["chat-0", "chat-1"]
    assert "named SmolLM" in traps["implicit_system"].text
    assert found(chats(2), renderer, stated=True) == {}
    assert found(docs(2), renderer, stated=False) == {}
    stated = Renderer(tokenizer, "Be brief.")
    assert found(chats(2), stated, stated=False) == {}


def test_another_template_in_the_audit_stops(renderer, tokenizer):
    traps = found(docs(2), renderer, audited=Renderer(tokenizer, "Be brief."))
    assert set(traps) == {"template_mismatch"}
    assert traps["template_mismatch"].level == "stop"


def test_a_thinking_base_trained_without_thoughts_is_warned_of(with_template):
    off = with_template(THINKING, thinking=False)
    traps = found(chats(2), off)
    assert set(traps) == {"template_mismatch"}
    assert traps["template_mismatch"].level == "warn"
    assert found(docs(2), off) == {}


def test_cut_rows_are_warned_of_while_they_are_few(renderer):
    stage = Stage(steps=10, max_length=64)
    long = Row("long", text="the ferry left for the island " * 20)
    few = found([*docs(11), long], renderer, stage)
    assert set(few) == {"truncation"}
    assert few["truncation"].level == "warn"
    assert few["truncation"].rows == ["long"]
    assert found([*docs(11), long], renderer, Stage(steps=10, max_length=512)) == {}
    many = found([*docs(5), long], renderer, stage)
    assert many["truncation"].level == "stop"


def test_one_row_cut_before_its_loss_stops(renderer):
    stage = Stage(steps=10, max_length=64)
    lost = chat("lost", ask="Please read this aloud: " + "the ferry left " * 40)
    traps = found([*docs(30), lost], renderer, stage)
    assert set(traps) == {"truncation"}
    assert traps["truncation"].level == "stop"
    assert traps["truncation"].rows == ["lost"]
    assert "before any loss" in traps["truncation"].text


def test_a_large_effective_scale_times_rate_is_warned_of(renderer):
    dropped, kept = (Lora(r=32, alpha=64, rslora=rslora) for rslora in (False, True))
    assert kept.scale == pytest.approx(11.31, abs=0.01)
    assert found(docs(2), renderer, Stage(steps=10, learning_rate=1e-3, lora=dropped)) == {}
    traps = found(docs(2), renderer, Stage(steps=10, learning_rate=1e-3, lora=kept))
    assert set(traps) == {"rslora_scale"}
    assert traps["rslora_scale"].level == "warn"
    assert "11.3" in traps["rslora_scale"].text


def test_repeated_texts_are_warned_of_and_counted(renderer):
    twins = [Row("a", text="The same words."), Row("b", text="The same words."), Row("c", text="Other words.")]
    traps = found(twins, renderer)
    assert set(traps) == {"repeats"}
    assert traps["repeats"].level == "warn"
    assert traps["repeats"].rows == ["a", "b"]
    assert "3 rows hold only 2 distinct" in traps["repeats"].text


def test_a_stopping_trap_ends_the_run_unless_accepted_by_its_name(renderer):
    linted = lint(chats(2), STAGE, renderer, renderer, False)
    with pytest.raises(UserError, match=r"trap implicit_system.*chat-0.*accept: \[implicit_system\]"):
        refuse(linted, [])
    with pytest.raises(UserError, match="trap implicit_system"):
        refuse(linted, ["truncation"])
    refuse(linted, ["implicit_system"])


def test_every_stopping_trap_must_be_accepted(renderer):
    linted = lint([*chats(2), Row("blank", text=" ")], STAGE, renderer, renderer, False)
    with pytest.raises(UserError, match="trap no_loss"):
        refuse(linted, ["implicit_system"])
    refuse(linted, ["implicit_system", "no_loss"])


def test_a_warning_stops_nothing(renderer):
    linted = lint([Row("a", text="The same words."), Row("b", text="The same words.")], STAGE, renderer, renderer, True)
    assert [finding.level for finding in linted.findings] == ["warn"]
    refuse(linted, [])


def test_tokens_and_loss_tokens_are_counted(renderer):
    rows = [*chats(2), Row("tagged", text="The ferry left.", prefix="<DOCTAG>")]
    linted = lint(rows, STAGE, renderer, renderer, True)
    assert linted.tokens == sum(len(render_row(renderer, row).input_ids) for row in rows)
    reply = sum(len(renderer.continuation(row.learned + "<|im_end|>")) for row in rows[:2])
    assert linted.loss_tokens == reply + len(renderer.continuation("The ferry left."))


def test_the_report_marks_exactly_what_the_loss_falls_on(renderer):
    many_turns = [*chats(1)[0].messages, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Open it."}]
    rows = [
        chats(1)[0],
        Row("turns", messages=many_turns, origin="test"),
        Row("tagged", text="The ferry left.\n```\ncode\n```", prefix="<DOCTAG>", origin="test"),
    ]
    linted = lint(rows, STAGE, renderer, renderer, False)
    text = report(linted, renderer, STAGE)
    sections = re.split(r"\n## ", text)
    assert [section.split(" ")[0] for section in sections[1:]] == [row.id for row in rows]
    for section, learned, rendered in zip(sections[1:], linted.learned, linted.rendered, strict=True):
        body = section.split("```")[1].strip("\n")
        assert "".join(re.findall(r"\[\[(.*?)\]\]", body, re.DOTALL)) == learned.replace("```", "'''")
        unmarked = body.replace("[[", "").replace("]]", "")
        assert unmarked == renderer.decode(rendered.input_ids).replace("```", "'''")
    assert sections[2].count("[[") == 2
    assert "**stop** implicit_system" in sections[0]
    assert f"{linted.loss_tokens:,} with loss" in sections[0]


def test_the_report_of_many_rows_is_a_sample_from_beginning_to_end(renderer):
    text = report(lint(docs(40), STAGE, renderer, renderer, True), renderer, STAGE, sample=8)
    shown = [int(number) for number in re.findall(r"## doc-(\d+)", text)]
    assert len(shown) == 8
    assert shown[0] == 0
    assert shown[-1] >= 30
    assert "no finding" in text
