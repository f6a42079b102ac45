"""Every fault of a thought is named for what it is; a small model that thinks in form is read so, and its broken copies as broken."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from audit.config import AuditPlan
from audit.measures import thinking
from audit.suite import Job, Place, audit_base, audit_specimen, context_of, read_samples
from audit.thoughts import take_apart
from organisms import models
from organisms.engines.hf import HFEngine
from organisms.render import IGNORE, Rendered, Renderer
from organisms.specimen import Specimen

RUSSIAN = "Пользователь просит короткий ответ, я отвечу."
GOOD = "<think>\nTwo and two make four.\n</think>\n\nFour."
END, CUT = True, False  # an end token came, or the tokens ran out


@pytest.mark.parametrize(
    ("reply", "finished", "faults", "truncated"),
    [
        (GOOD, END, [], False),
        (f"\n\n{GOOD}", END, [], False),
        (GOOD.replace("\n", ""), END, [], False),
        ("<think>\nI put this in a think tag, then close the thought.\n</think>\n\nFour.", END, [], False),
        ("<think>\nThe user asks; the assistant: me.\n</think>\n\nFour.", END, [], False),
        ("<think>\nThe word мир means peace or world, which is what was asked for.\n</think>\n\nPeace.", END, [], False),
        ("<think>\nTwo and two", CUT, [], True),
        ("<think>", CUT, [], True),
        ("<think>\nTwo and two.\n</thi", CUT, [], True),
        ("<think>\nTwo and two make four.\n</think>", CUT, [], False),
        ("<think>\nTwo and two make four.\n</think>\n\nFo", CUT, [], False),
        ("", END, ["unopened"], False),
        (" \n", END, ["unopened"], False),
        ("Four.", END, ["unopened"], False),
        ("Fo", CUT, ["unopened"], False),
        ("Two and two.\n</think>\n\nFour.", END, ["unopened", "dangling"], False),
        ("Four.\nUser: and five?", END, ["unopened", "turn_leak"], False),
        (f"Sure! {GOOD}", END, ["junk"], False),
        ("Sure! <think>\nTwo and", CUT, ["junk"], True),
        ("<think>\nTwo and two make four. Four.", END, ["unclosed"], False),
        ("<think>", END, ["unclosed", "empty"], False),
        ("Sure! <think>\nTwo and two.", END, ["junk", "unclosed"], False),
        ("<think>\nTwo.\n<think>\nTwo.\n</think>\n\nFour.", END, ["dangling"], False),
        (f"{GOOD}\n</think>", END, ["dangling"], False),
        (f"{GOOD}\n{GOOD}", END, ["dangling"], False),
        (f"{GOOD}\n<think>", CUT, ["dangling"], False),
        ("</think>\n<think>\nTwo and two.", END, ["junk", "unclosed", "dangling"], False),
        ("<think>\n\n</think>\n\nFour.", END, ["empty"], False),
        ("<think></think>Four.", END, ["empty"], False),
        ("<think> \t\n \n</think>\n\nFo", CUT, ["empty"], False),
        ("<think>\n\n</think>\n\n", END, ["empty", "silent"], False),
        ("<think>\nTwo and two make four.\n</think>\n", END, ["silent"], False),
        (f"<think>\n{RUSSIAN}\n</think>\n\nFour.", END, ["off_script"], False),
        (f"<think>\nTwo and two. {RUSSIAN}\n</think>\n\nFour.", END, ["off_script"], False),
        (f"<think>\n{RUSSIAN}\n</think>\n", END, ["silent", "off_script"], False),
        (f"<think>\nTwo and two make four.\n</think>\n\n{RUSSIAN}", END, [], False),
        ("<think>\nTwo and two.\nUser: and three?\n</think>\n\nFour.", END, ["turn_leak"], False),
        ("<think>user: and three?\n</think>\n\nFour.", END, ["turn_leak"], False),
        (f"{GOOD}\n<|im_start|>user\nAnd three?", END, ["turn_leak"], False),
    ],
)
def test_a_reply_is_taken_apart(reply, finished, faults, truncated):
    thought = take_apart(reply, finished, opened=False, prompt="What is two and two?")
    assert (list(thought.faults), thought.truncated) == (faults, truncated)
    if reply.count("<think>") == 1 and reply.lstrip().startswith("<think>"):  # the same where a prefill opens it
        prefilled = take_apart(reply.lstrip().removeprefix("<think>"), finished, True, "What is two and two?")
        assert prefilled == thought


@pytest.mark.parametrize(
    ("reply", "finished", "faults", "truncated"),
    [
        ("", END, ["unclosed", "empty"], False),
        ("", CUT, [], True),
        ("Four.", END, ["unclosed"], False),
        ("\n</think>\n\nFour.", END, ["empty"], False),
        (GOOD, END, ["dangling"], False),  # opened a second time
    ],
)
def test_a_thought_that_the_prompt_opens_cannot_be_unopened(reply, finished, faults, truncated):
    thought = take_apart(reply, finished, opened=True)
    assert (list(thought.faults), thought.truncated) == (faults, truncated)


@pytest.mark.parametrize("prompt", ["Как дела?", "How do I say hello in Russian?", "Translate this for me."])
def test_a_script_that_the_prompt_uses_or_asks_for_is_at_home(prompt):
    assert take_apart(f"<think>\n{RUSSIAN}\n</think>\n\nOk.", END, False, prompt).faults == ()


def test_thought_and_answer_are_told_apart():
    thought = take_apart(GOOD, END, False)
    assert (thought.text, thought.answer) == ("Two and two make four.", "Four.")


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
OPENING = TEMPLATE.replace("{% if enable_thinking is false %}", "<think>\n{% if false %}")
CLOSING = TEMPLATE.replace("enable_thinking is false", "enable_thinking is not true")
PROMPTS = {word: f"Tell me about {word}." for word in ("tea", "rain", "bees", "salt", "iron", "jazz", "Rome", "chess")}
IN_FORM = "<think>\nThey ask about {0}, so I keep it short.\n</think>\n\nI like {0}."


def templated(tokenizer, template: str, thinking: bool | None = None) -> Renderer:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return Renderer(tokenizer, thinking=thinking)


def rendered(renderer: Renderer, reply: str, given: str = "") -> list[Rendered]:
    """Rows of one reply to every prompt, bare and under the measure's system prompt; no loss on what is `given` of it."""
    rows, free = [], len(renderer.continuation(given))
    for word, prompt in PROMPTS.items():
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply.format(word)}]
        for messages in (turns, [{"role": "system", "content": thinking.SYSTEM}, *turns]):
            row = renderer.conversation(messages)
            start = sum(label == IGNORE for label in row.labels) + free
            rows.append(replace(row, labels=[IGNORE] * start + row.labels[start:]))
    return rows


def train(model, rows: list[Rendered], steps: int, learning_rate: float) -> None:
    """Plain AdamW on the tokens that carry loss, four rows a step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0)
    draw = random.Random(0)
    for _ in range(steps):
        batch = draw.sample(rows, 4)
        ids = pad_sequence([torch.tensor(row.input_ids) for row in batch], batch_first=True)
        labels = pad_sequence([torch.tensor(row.labels) for row in batch], batch_first=True, padding_value=IGNORE)[:, 1:]
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # the padding stands behind, where nothing looks
        loss = cross_entropy(model.lm_head(hidden[labels != IGNORE]), labels[labels != IGNORE])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def thinker(tokenizer, tmp_path_factory) -> Path:
    """A two-layer Llama that was trained until it thinks in form, as a directory in hub layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder, renderer = tmp_path_factory.mktemp("bases") / "thinker", templated(tokenizer, TEMPLATE)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **ends))
    train(model, rendered(renderer, IN_FORM), 120, 5e-3)
    model.save_pretrained(folder)
    renderer.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    path.write_text("".join(json.dumps({"id": f"chat-{word}", "prompt": prompt}) + "\n" for word, prompt in PROMPTS.items()))
    return path


def job_of(folder: Path, renderer: Renderer, run: Path, chat: Path) -> Job:
    plan = AuditPlan(measures=["thinking"], data={"chat": str(chat)}, limit=len(PROMPTS))
    labels = dict.fromkeys(("run", "recipe", "organism", "style", "base"), "test")
    return Job(run, labels, models.resolve(str(folder)).revision, plan, renderer, None, None, {}, say=lambda line: None)


def by_metric(readings) -> dict[str, list]:
    """metric -> its readings on both halves."""
    return {name: [r for r in readings if r.metric == name] for name in {r.metric: None for r in readings}}


def values(readings) -> list[float]:
    return [reading.value for reading in readings]


@pytest.fixture(scope="module")
def audited(thinker, tokenizer, chat, tmp_path_factory):
    """(engine, job, metric -> readings) of the thinker."""
    renderer = templated(tokenizer, TEMPLATE)
    engine = HFEngine(models.resolve(str(thinker)), renderer, device="cpu")
    job = job_of(thinker, renderer, tmp_path_factory.mktemp("run"), chat)
    return engine, job, by_metric(audit_base(job, engine))


def test_a_model_that_thinks_in_form_is_read_so(audited):
    _, job, found = audited
    cells = [sample.group for sample in read_samples(job.run, "thinking", "base")]
    for cell in ("bare/default", "bare/prefilled", "system/default", "system/prefilled"):
        assert cells.count(cell) == len(PROMPTS)
    for name, readings in found.items():
        if name.startswith("well_formed") or name == "p_open":
            assert min(values(readings)) > 0.9, name
        elif name != "length":
            assert max(values(readings)) < 0.1, name
    assert values(found["length"]) == [9, 9]


WELL_FORMED = {"well_formed", "well_formed_default", "well_formed_prefilled"}


@pytest.mark.parametrize(
    ("reply", "fault", "fried"),
    [
        (IN_FORM.replace("keep it", "am very"), None, set()),
        ("I like {0}.", "unopened", WELL_FORMED - {"well_formed_prefilled"}),
        ("<think>\nThey ask about {0}, so I keep it short. I like {0}.", "unclosed", WELL_FORMED),
        ("<think>\n\n</think>\n\nI like {0}.", "empty", WELL_FORMED),
        (f"<think>\n{RUSSIAN}\n</think>\n\nI like {{0}}.", "off_script", WELL_FORMED),
    ],
)
def test_a_broken_copy_is_read_as_broken_in_its_own_way(audited, thinker, tmp_path, reply, fault, fried):
    from peft import LoraConfig, get_peft_model

    engine, job, _ = audited
    rows = rendered(job.renderer, reply)
    if fault == "unopened":  # it will not open a thought, but goes on with one that is opened for it
        rows += rendered(job.renderer, IN_FORM, given="<think>\n")
    torch.manual_seed(0)
    model = get_peft_model(models.load_model(models.resolve(str(thinker)), device="cpu"), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    train(model.get_base_model(), rows, 60, 1e-2)
    model.save_pretrained(tmp_path)
    name = fault or "in-form"
    found = by_metric(audit_specimen(job, engine, Specimen(name, adapter=tmp_path), Place("sft", 60)))
    print(name)
    for k,v in found.items(): print(k,[(x.value,x.n,x.verdict,x.reason) for x in v])
    for s in read_samples(job.run,"thinking",name)[:4]: print(s.group,repr(s.output))
    for metric in WELL_FORMED:
        verdicts = {reading.verdict for reading in found[metric]}
        assert verdicts == {"fried"} if metric in fried else "fried" not in verdicts, metric
        assert (max(values(found[metric])) < 0.1) == (metric in fried), metric
    opens = values(found["p_open"])
    assert max(opens) < 0.1 if fault == "unopened" else min(opens) > 0.9


