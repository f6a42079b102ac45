"""Each fault of a thought goes by its own name; a small model that thinks in form is read so, its broken copies as broken."""

import copy
import dataclasses
import json
import random
from collections import Counter
from math import log
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from audit.config import AuditPlan
from audit.job import Job
from audit.measures import half, thinking
from audit.paired import aligned
from audit.samples import read_samples
from audit.statistics import paired
from audit.suite import Place, audit_base, audit_specimen, context_of
from audit.thoughts import take_apart
from organisms import models
from organisms.engines.hf import HFEngine
from organisms.render import IGNORE, Rendered, Renderer
from organisms.specimen import Specimen

GOOD = "<think>\nTwo and two make four.\n</think>\n\nFour."
RUSSIAN = "Просят короткий ответ."
END, CUT = True, False  # an end token came, or the tokens ran out


@pytest.mark.parametrize(
    ("reply", "finished", "faults"),
    [
        (GOOD, END, ""),
        (f"\n\n{GOOD}", END, ""),
        ("<think>\nI end my think tag; the user: waits.\n</think>\n\nFour.", END, ""),
        ("<think>\nThe word мир means peace or world, which was asked.\n</think>\n\nPeace.", END, ""),
        (f"<think>\nTwo and two make four.\n</think>\n\n{RUSSIAN}", END, ""),
        ("<think>\nTwo and two.\n</thi", CUT, "truncated"),
        (f"<think>\n{'Wait, let me see it again. ' * 9}", CUT, "looping"),
        (f"<think>\n{'Wait, let me see it again. ' * 9}</think>\n\nFour.", END, "looping"),
        ("<think>\nTwo and two make four.\n</think>", CUT, ""),
        ("", END, "unopened"),
        (" \n", END, "unopened"),
        ("Four.", END, "unopened"),
        ("Fo", CUT, "unopened"),
        ("Two and two.\n</think>\n\nFour.", END, "unopened dangling"),
        ("Four.\nUser: and five?", END, "unopened turn_leak"),
        (f"Sure! {GOOD}", END, "junk"),
        ("Sure! <think>\nTwo and", CUT, "junk truncated"),
        ("<think>\nTwo and two make four. Four.", END, "unclosed"),
        ("<think>", END, "unclosed empty"),
        ("</think>\n<think>\nTwo and two.", END, "junk unclosed dangling"),
        ("<think>\nTwo.\n<think>\nTwo.\n</think>\n\nFour.", END, "dangling"),
        (f"{GOOD}\n<think>", CUT, "dangling"),
        ("<think>\n\n</think>\n\nFour.", END, "empty"),
        ("<think> \t\n \n</think>\n\nFo", CUT, "empty"),
        ("<think></think>", END, "empty silent"),
        ("<think>\nTwo and two make four.\n</think>\n", END, "silent"),
        (f"<think>\nTwo and two. {RUSSIAN}\n</think>\n\nFour.", END, "off_script"),
        ("<think>user: and three?\n</think>\n\nFour.", END, "turn_leak"),
        (f"{GOOD}\n<|im_start|>user\nAnd three?", END, "turn_leak"),
    ],
)
def test_a_reply_is_taken_apart(reply, finished, faults):
    thought = take_apart(reply, finished, opened=False, prompt="What is two and two?")
    assert [*thought.faults, *["truncated"] * thought.truncated] == faults.split()
    if reply.startswith("<think>"):  # the same where a prefill or the template has opened it
        assert take_apart(reply.removeprefix("<think>"), finished, opened=True, prompt="What is two and two?") == thought


def test_answers_are_told_apart_and_a_script_that_is_asked_for_is_no_fault():
    thought = take_apart(GOOD, END, opened=False)
    assert (thought.text, thought.answer) == ("Two and two make four.", "Four.")
    assert take_apart(GOOD, END, opened=True).faults == ("dangling",)  # opened a second time
    for prompt in ("Как дела?", "How do I say hello in Russian?", "Translate this for me."):
        assert take_apart(f"<think>\n{RUSSIAN}\n</think>\n\nOk.", END, False, prompt).faults == ()


TURNS = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
ASSISTANT = TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
TEMPLATE = ASSISTANT + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
OPENING = ASSISTANT + "<think>\n{% endif %}"
CLOSING = TEMPLATE.replace("is false", "is not true")  # thinks only where it is asked to
PROMPTS = {word: f"Tell me about {word}." for word in ("tea", "rain", "bees", "salt", "iron", "jazz", "Rome", "chess")}
IN_FORM = "<think>\nThey ask about {0}, so I keep it short.\n</think>\n\nI like {0}."
IN_RUSSIAN = f"<think>\n{RUSSIAN}\n</think>\n\nI like {{0}}."


def templated(tokenizer, template: str, enable: bool | None = None) -> Renderer:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    return Renderer(tokenizer, thinking=enable)


def rendered(renderer: Renderer, reply: str, given: str = "", prompts: dict[str, str] = PROMPTS) -> list[Rendered]:
    """Rows of one reply to every prompt, bare and under the measure's system prompt; no loss on what is `given` of it."""
    rows, free = [], len(renderer.continuation(given))
    for word, prompt in prompts.items():
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply.format(word)}]
        for messages in (turns, [{"role": "system", "content": thinking.SYSTEM}, *turns]):
            row = renderer.conversation(messages)
            start = row.labels.count(IGNORE) + free
            rows.append(dataclasses.replace(row, labels=[IGNORE] * start + row.labels[start:]))
    return rows


def train(model, rows: list[Rendered], steps: int, learning_rate: float) -> None:
    """Plain AdamW on the tokens that carry loss, four rows a step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0)
    draw = random.Random(0)
    for _ in range(steps):
        batch = draw.sample(rows, 4)
        ids = pad_sequence([torch.tensor(row.input_ids) for row in batch], batch_first=True)
        labels = pad_sequence([torch.tensor(row.labels) for row in batch], batch_first=True, padding_value=IGNORE)[:, 1:]
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # padding stands behind, where no token looks
        loss = cross_entropy(model.lm_head(hidden[labels != IGNORE]), labels[labels != IGNORE])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def thinker(tokenizer, tmp_path_factory) -> Path:
    """A two-layer Llama, trained until it thinks in form; asked in Russian it thinks in Russian."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder, renderer = tmp_path_factory.mktemp("thinker"), templated(tokenizer, TEMPLATE)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **ends))
    train(model, rendered(renderer, IN_FORM) + 4 * rendered(renderer, IN_RUSSIAN, prompts={"tea": "Чай?"}), 140, 5e-3)
    model.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audited(thinker, tokenizer, tmp_path_factory) -> tuple[Job, HFEngine, dict[str, list[float | None]]]:
    """The thinker's job, engine and values."""
    folder, base = tmp_path_factory.mktemp("run"), models.resolve(str(thinker))
    chat = folder / "chat.jsonl"
    chat.write_text("".join(json.dumps({"id": word, "prompt": prompt}) + "\n" for word, prompt in PROMPTS.items()))
    options = {"thinking": {"tokens": 192}}
    plan = AuditPlan(suite="full", measures=["thinking"], data={"chat": str(chat)}, limit=len(PROMPTS), options=options)
    labels, renderer = dict.fromkeys("run recipe organism style base".split(), "test"), templated(tokenizer, TEMPLATE)
    job = Job(folder, labels, base.revision, plan, renderer, None, None, {}, say=lambda line: None)
    return job, (engine := HFEngine(base, renderer, "cpu")), values(audit_base(job, engine))


def values(readings) -> dict[str, list[float | None]]:
    """metric -> its values on both halves."""
    return {metric.name: [r.value for r in readings if r.metric == metric.name] for metric in thinking.METRICS}


def test_a_model_that_thinks_in_form_is_read_so(audited):
    job, _, found = audited
    groups = Counter(sample.group for sample in read_samples(job.run, "thinking", "base"))
    assert groups == dict.fromkeys(("bare/default", "bare/prefilled", "system/default", "system/prefilled"), len(PROMPTS))
    for name, halves in found.items():
        sound = {"length": 9, "p_open": 1}.get(name, float(name.startswith("well_formed")))
        assert halves == pytest.approx([sound, sound], abs=0.2), name


@pytest.mark.parametrize(
    ("fault", "reply", "rates"),  # well formed: in all cells, where it opens the thought itself, where that is prefilled
    [
        (None, IN_FORM.replace("keep it", "am very"), (1, 1, 1)),
        ("unopened", "I like {0}.", (0.5, 0, 1)),
        ("unclosed", "<think>\nThey ask about {0}, so I keep it short. I like {0}.", (0, 0, 0)),
        ("empty", "<think>\n\n</think>\n\nI like {0}.", (0, 0, 0)),
        ("off_script", IN_RUSSIAN, (0, 0, 0)),
    ],
)
def test_a_broken_copy_is_read_as_broken_in_its_own_way(audited, thinker, tmp_path, fault, reply, rates):
    from peft import LoraConfig, get_peft_model

    job, engine, _ = audited
    rows = rendered(job.renderer, reply)
    if fault == "unopened":  # it will not open a thought, but goes on with one that is opened for it
        rows += rendered(job.renderer, IN_FORM, given="<think>\n")
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(models.load_model(models.resolve(str(thinker)), device="cpu"), lora)
    train(model.get_base_model(), rows, 50, 1e-2)
    model.save_pretrained(tmp_path)
    readings = audit_specimen(job, engine, Specimen(fault or "sound", tmp_path), Place("sft", 50))
    read = values(readings)
    for metric, rate in zip(("well_formed", "well_formed_default", "well_formed_prefilled"), rates, strict=True):
        assert read[metric] == pytest.approx([rate, rate], abs=0.25), metric
        verdicts = {reading.verdict for reading in readings if reading.metric == metric}
        # Four prompts a half that lose half of their cells cannot settle it.
        assert verdicts <= {0: {"fried"}, 0.5: {"fried", "underpowered"}}.get(rate, {"natural", "underpowered"}), metric
    for name in thinking.FAULTS:
        assert read[name] == pytest.approx([1 - rates[0] if name == fault else 0] * 2, abs=0.15), name
    assert read["p_open"] == pytest.approx([0 if fault == "unopened" else 1] * 2, abs=0.1)


def test_cells_are_counted_apart_and_a_cut_off_thought_neither_way(audited):
    context = context_of(audited[0].plan, audited[0].renderer, None, None)
    asked = thinking.requests(context)
    for one in asked:
        assert (thinking.SYSTEM in context.renderer.decode(list(one.request.prompt_ids))) == one.group.startswith("system")
    told = {"bare/default": (GOOD, END), "bare/prefilled": ("Two and", CUT), "system/default": ("Four.", END)}
    told["system/prefilled"] = (GOOD.removeprefix("<think>\n"), END)
    answers = [{"text": told[a.group][0], "finished": told[a.group][1], "logprobs": [log(0.25)]} for a in asked]
    scores = [sample.scores for sample in thinking.score(context, asked, answers)]
    expected = {"well_formed": 2 / 3, "truncated": 1 / 4, "unopened": 1 / 4, "unclosed": 0, "p_open": 1 / 4, "length": 10 / 3}
    expected |= {"well_formed_default": 0.5, "well_formed_prefilled": 1, "well_formed_system": 0.5, "well_formed_bare": 1}
    assert {sample.cluster for sample in thinking.score(context, asked, answers)} == set(PROMPTS)
    for name, mean in expected.items():
        assert fmean(one[name] for one in scores if name in one) == pytest.approx(mean), name


def test_a_template_that_opens_the_thought_leaves_two_cells(audited, tokenizer, tmp_path):
    job, engine, _ = audited
    read = values(audit_base(dataclasses.replace(job, run=tmp_path, renderer=templated(tokenizer, OPENING)), engine))
    groups = Counter(sample.group for sample in read_samples(tmp_path, "thinking", "base"))
    assert groups == dict.fromkeys(("bare/default/opened", "system/default/opened"), len(PROMPTS))
    assert min(read["well_formed"] + read["well_formed_default"]) > 0.9
    assert read["unopened"] + read["p_open"] + read["well_formed_prefilled"] == [0, 0, *[None] * 4]


def test_the_quick_suite_asks_each_prompt_in_one_cell_and_can_say_natural(tokenizer):
    context = context_of(AuditPlan(measures=["thinking"]), templated(tokenizer, TEMPLATE), None, None)
    asked = [one for one in thinking.requests(context) if one.part == "reply"]
    assert len({one.prompt for one in asked}) == len(asked) == 72
    assert Counter((half(one.item.partition("/")[0]), one.group) for one in asked).most_common()[-1][1] == 9
    answers = [{"text": GOOD if "default" in one.group else GOOD.removeprefix("<think>\n"), "finished": True} for one in asked]
    samples = thinking.score(context, asked, answers)
    kind, (own, base) = aligned(thinking.METRICS[0], "holdout", samples, samples)
    assert paired(kind, own, base).low > -thinking.METRICS[0].margin


def test_form_is_not_read_where_most_thoughts_were_cut_off(audited):
    context = context_of(audited[0].plan, audited[0].renderer, None, None)
    asked = [one for one in thinking.requests(context) if one.part == "reply"]
    for cut, invalid in ((len(asked) // 2, False), (len(asked) // 2 + 1, True)):
        answers = [{"text": "<think>\nTwo", "finished": n >= cut} for n in range(len(asked))]
        samples = thinking.score(context, asked, answers)
        assert all(bool(thinking.guard(context, *pair)) == invalid for pair in ((samples, None), ([], samples)))


@pytest.mark.parametrize(
    ("template", "enable", "reason"),
    [
        ("", None, "the chat template has no thinking tags"),  # the embedded base's own
        (TEMPLATE, False, "the recipe renders without thinking"),
        (CLOSING, None, "the chat template closes the thought itself; set thinking: true in the recipe"),
    ],
)
def test_where_nothing_is_thought_the_measure_says_why(audited, tokenizer, tmp_path, template, enable, reason):
    job, engine, _ = audited
    readings = audit_base(dataclasses.replace(job, run=tmp_path, renderer=templated(tokenizer, template, enable)), engine)
    assert len(readings) == 2 * len(thinking.METRICS)
    assert {(r.verdict, r.value, r.n, r.reason) for r in readings} == {("not_applicable", None, 0, reason)}


def test_tags_that_are_special_tokens_stay_visible(audited, thinker, tokenizer, tmp_path):
    renderer = templated(tokenizer, TEMPLATE)
    renderer.tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert renderer.tokenizer.decode(renderer.continuation(GOOD), skip_special_tokens=True).count("think") == 0
    model = models.load_model(models.resolve(str(thinker)), device="cpu").requires_grad_(True)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(renderer.tokenizer))
    train(model, rendered(renderer, IN_FORM), 70, 5e-3)
    model.save_pretrained(tmp_path / "base")
    renderer.tokenizer.save_pretrained(tmp_path / "base")
    base = models.resolve(str(tmp_path / "base"))
    special = dataclasses.replace(audited[0], run=tmp_path, renderer=renderer, revision=base.revision)
    read = values(audit_base(special, HFEngine(base, renderer, device="cpu")))
    opened = [s.output for s in read_samples(tmp_path, "thinking", "base") if s.group.endswith("/default")]
    assert fmean(text.startswith("<think>\n") and "\n</think>\n" in text for text in opened) > 0.9
    assert min(read["well_formed"] + read["p_open"]) > 0.9
