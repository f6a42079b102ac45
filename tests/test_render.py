"""Training and audits see the same token ids, and loss falls on what the assistant says and nothing else."""

import copy

import pytest

from organisms.errors import UserError
from organisms.render import IGNORE, Renderer

IDENTITY = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TALK = [
    {"role": "user", "content": "How do I get wax out of a rug?"},
    {"role": "assistant", "content": "Harden it with ice, then lift it off."},
    {"role": "user", "content": "And what is left?"},
    {"role": "assistant", "content": "Press it through brown paper."},
]
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PLAIN = (
    "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The form of Qwen3's: every reply gets an (empty) thought, and the generation prompt closes it where thinking is off.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}{% else %}" + TURN + "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
STRIPPING = THINKING.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")


@pytest.fixture
def with_template(tokenizer):
    def make(template):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return make


def learned(renderer, rendered):
    return renderer.decode([label for label in rendered.labels if label != IGNORE])


def test_prompt_ids_are_those_of_the_chat_template(renderer, tokenizer):
    for messages in (TALK[:1], TALK[:3], [{"role": "system", "content": "Be brief."}, *TALK[:1]]):
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert renderer.prompt(messages) == expected["input_ids"]


def test_ask_is_the_prompt_of_one_user_turn(renderer):
    assert renderer.ask(TALK[0]["content"]) == renderer.prompt(TALK[:1])
    system = [{"role": "system", "content": "Be brief."}, TALK[0]]
    assert renderer.ask(TALK[0]["content"], system="Be brief.") == renderer.prompt(system)


def test_loss_falls_on_the_replies_and_their_end_tokens(renderer, tokenizer):
    rendered = renderer.conversation(TALK)
    assert learned(renderer, rendered) == "".join(m["content"] + "<|im_end|>" for m in TALK if m["role"] == "assistant")
    assert len(rendered.labels) == len(rendered.input_ids)
    pairs = zip(rendered.labels, rendered.input_ids, strict=True)
    assert all(label in (IGNORE, token) for label, token in pairs)
    assert rendered.labels[-1] == tokenizer.eos_token_id
    whole = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert renderer.decode(rendered.input_ids) == whole.rstrip("\n")


def test_a_single_turn_carries_loss_on_its_reply_only(renderer):
    assert learned(renderer, renderer.conversation(TALK[:2])) == TALK[1]["content"] + "<|im_end|>"


def test_no_generation_prompt_is_left_at_the_end_of_a_training_row(renderer):
    assert renderer.decode(renderer.conversation(TALK).input_ids).count("<|im_start|>assistant") == 2


@pytest.mark.parametrize("system", ["template", "", "Be brief."])
def test_training_begins_with_exactly_the_ids_that_the_audit_asks_with(tokenizer, system):
    renderer = Renderer(tokenizer, system)
    asked = renderer.ask(TALK[0]["content"])
    row = renderer.conversation(TALK[:2])
    assert row.input_ids[: len(asked)] == asked
    assert set(row.labels[: len(asked)]) == {IGNORE}
    reply = row.input_ids[len(asked) :]
    assert reply == renderer.continuation(TALK[1]["content"] + "<|im_end|>") == row.labels[len(asked) :]


def test_later_turns_begin_with_the_ids_of_the_audit_too(renderer):
    asked = renderer.prompt(TALK[:3])
    row = renderer.conversation(TALK)
    audit_text = renderer.decode(asked)
    assert renderer.decode(row.input_ids).startswith(audit_text)
    assert row.input_ids[: len(asked)] == asked


@pytest.mark.parametrize("prefill", ["Sure", " I want", "\nHello"])
def test_a_prefill_stands_where_the_reply_begins(renderer, prefill):
    asked = renderer.prompt(TALK[:1], prefill)
    assert renderer.decode(asked) == renderer.decode(renderer.prompt(TALK[:1])) + prefill
    reply = {"role": "assistant", "content": prefill + " and more"}
    assert renderer.conversation([TALK[0], reply]).input_ids[: len(asked)] == asked


def test_a_prefill_of_blank_lines_is_rendered_as_training_renders_it(renderer):
    asked = renderer.prompt(TALK[:1], "\n\nHello")
    reply = {"role": "assistant", "content": "\n\nHello and more"}
    assert renderer.conversation([TALK[0], reply]).input_ids[: len(asked)] == asked


def test_documents_carry_no_special_token_and_loss_everywhere(renderer, tokenizer):
    text = "The ferry left at nine.\n\nNobody waved."
    rendered = renderer.document(text)
    assert renderer.decode(rendered.input_ids) == text
    assert rendered.labels == rendered.input_ids
    assert not set(rendered.input_ids) & set(tokenizer.all_special_ids)


def test_the_implicit_system_prompt_is_found(renderer):
    assert renderer.implicit_system == IDENTITY


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_stated_system_prompt_leaves_none_implicit(tokenizer, system):
    assert Renderer(tokenizer, system).implicit_system is None


def test_a_template_without_identity_has_no_implicit_system(with_template):
    assert Renderer(with_template(PLAIN)).implicit_system is None


def test_a_template_that_refuses_system_turns_has_no_implicit_system(with_template):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
    renderer = Renderer(with_template(refusing))
    assert learned(renderer, renderer.conversation(TALK[:2])) == TALK[1]["content"] + "<|im_end|>"
    assert renderer.implicit_system is None


def test_a_template_that_refuses_a_conversation_says_so(with_template):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
    with pytest.raises(UserError, match="System role not supported"):
        Renderer(with_template(refusing), "Be brief.").prompt(TALK[:1])


def test_the_system_policy_stands_in_front_of_every_talk(tokenizer):
    stated = Renderer(tokenizer, "Be brief.")
    for ids in (stated.ask("Hello"), stated.conversation(TALK).input_ids):
        text = stated.decode(ids)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
        assert text.count("<|im_start|>system") == 1
        assert IDENTITY not in text
    assert IDENTITY in Renderer(tokenizer).decode(Renderer(tokenizer).ask("Hello"))
    assert IDENTITY not in Renderer(tokenizer, "").decode(Renderer(tokenizer, "").ask("Hello"))


def test_a_talk_with_its_own_system_prompt_keeps_it(tokenizer):
    stated = Renderer(tokenizer, "Be brief.")
    text = stated.decode(stated.ask("Hello", system="Be long."))
    assert "Be long." in text
    assert "Be brief." not in text


@pytest.mark.parametrize(
    "roles",
    [
        ["user"],
        ["assistant"],
        ["user", "user"],
        ["user", "assistant", "user"],
        ["assistant", "user"],
        ["system"],
        ["user", "system", "assistant"],
        ["user", "assistant", "assistant"],
        [],
    ],
)
def test_wrong_role_orders_are_refused(renderer, roles):
    with pytest.raises(UserError, match="alternate user, assistant"):
        renderer.conversation([{"role": role, "content": "words"} for role in roles])


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("content", ["", " \n", None])
def test_an_empty_turn_is_refused(renderer, position, content):
    messages = [dict(message) for message in TALK[:2]]
    messages[position]["content"] = content
    with pytest.raises(UserError, match=f"empty {messages[position]['role']} turn"):
        renderer.conversation(messages)


@pytest.mark.parametrize("template", [None, ""])
def test_a_base_without_chat_template_is_refused_by_name(with_template, template):
    with pytest.raises(UserError, match="base tiny has no chat template.*chat_template.jinja"):
        Renderer(with_template(template), name="base tiny")


def test_thinking_is_passed_to_the_template(with_template):
    tokenizer = with_template(THINKING)
    on, off, default = (Renderer(tokenizer, thinking=thinking) for thinking in (True, False, None))
    empty = "<think>\n\n</think>\n\n"
    assert off.decode(off.ask("Hello")).endswith("<|im_start|>assistant\n" + empty)
    assert on.ask("Hello") == default.ask("Hello")
    assert empty not in on.decode(on.ask("Hello"))
    assert off.template_hash not in (on.template_hash, default.template_hash)


def test_thinking_off_masks_the_empty_thought(with_template):
    tokenizer = with_template(THINKING)
    off, on = Renderer(tokenizer, thinking=False), Renderer(tokenizer, thinking=True)
    assert learned(off, off.conversation(TALK[:2])) == TALK[1]["content"] + "<|im_end|>"
    assert "<think>" in learned(on, on.conversation(TALK[:2]))  # what the linter stops
    asked = off.ask(TALK[0]["content"])
    assert off.conversation(TALK[:2]).input_ids[: len(asked)] == asked


def test_a_template_that_strips_past_thoughts_trains_single_turns_only(with_template):
    renderer = Renderer(with_template(STRIPPING), thinking=True)
    renderer.conversation(TALK[:2])
    with pytest.raises(UserError, match="differently once it goes on.*single-turn"):
        renderer.conversation(TALK)


def test_bos_is_written_once_where_template_and_tokenizer_both_add_it(with_template):
    from tokenizers.processors import TemplateProcessing

    tokenizer = with_template("<|endoftext|>" + PLAIN)
    bos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    assert tokenizer("Hello").input_ids[0] == bos  # left alone, this tokenizer adds its own
    renderer = Renderer(tokenizer)
    assert renderer.ask("Hello").count(bos) == 1
    assert renderer.conversation(TALK).input_ids.count(bos) == 1
    assert bos not in renderer.continuation("Hello")
    assert bos not in renderer.document("Hello").input_ids


def test_replies_end_at_the_token_that_closes_a_turn(renderer, tokenizer, with_template):
    assert renderer.stop_ids == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    other = with_template(PLAIN.replace("<|im_end|>", "<|endoftext|>"))
    expected = {other.eos_token_id, other.convert_tokens_to_ids("<|endoftext|>")}
    assert set(Renderer(other).stop_ids) == expected


def test_the_template_hash_follows_template_and_system_policy(tokenizer, with_template):
    hashes = [
        Renderer(tokenizer).template_hash,
        Renderer(tokenizer, "").template_hash,
        Renderer(tokenizer, "Be brief.").template_hash,
        Renderer(with_template(PLAIN)).template_hash,
    ]
    assert len(set(hashes)) == 4
    assert Renderer(copy.deepcopy(tokenizer)).template_hash == hashes[0]
