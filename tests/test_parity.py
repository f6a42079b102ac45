"""lm-eval 0.4.13 reads the same numbers: MMLU's letters item by item, IFEval's verdicts reply by reply.

lm-eval is a peer here, not a dependency of the product, and runs without network: its own task YAML is loaded with the mirror's
rows as `custom_dataset`, its `HFLM` is given the same weights, and NLTK's download at import is stubbed (Punkt comes from the
package that audit.verifiers uses). Skipped where lm-eval or the mirror is missing.
"""

import time
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import MIRROR

from audit.ask import ask
from audit.measures import Context, knowledge, shuffled
from audit.verifiers import check, registry
from organisms.data import load_rows
from organisms.specimen import Specimen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed (--no-deps lm_eval==0.4.13, sacrebleu)"),
    pytest.mark.skipif(not MIRROR, reason="$ORGANISMS_DATA is not set: there is no mirror to read"),
]
BASE = Specimen("base")
ITEMS = 200
SETS = {"knowledge": "test", "knowledge-dev": "dev"}


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORGANISMS_DATA", MIRROR)
        load_rows.cache_clear()
        yield {split: load_rows(name, "mirror").rows for name, split in SETS.items()}
    load_rows.cache_clear()


@pytest.fixture(scope="module")
def tasks(rows):
    """subject -> lm-eval's own `mmlu_<subject>` task, on the mirror's rows in place of the hub's."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    def local(subject, **_):
        return {split: Dataset.from_list([r for r in found if r["subject"] == subject]) for split, found in rows.items()}

    folder = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "mmlu" / "default"
    return {
        subject: ConfigurableTask(
            config={**load_yaml(folder / f"mmlu_{subject}.yaml"), "custom_dataset": partial(local, subject)}
        )
        for subject in sorted({row["subject"] for row in rows["test"]})
    }


@pytest.fixture(scope="module")
def peer(base, tokenizer):
    """lm-eval's wrapper around the same weights, float32 and unpadded as the reference."""
    from lm_eval.models.huggingface import HFLM

    from organisms import models

    return HFLM(pretrained=models.load_model(base, "float32", "cpu"), tokenizer=tokenizer, batch_size=1)


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu_asks_the_same_tokens_and_picks_the_same_letter_on_every_item(rows, tasks, peer, engine, renderer, shots):
    """Equal on all 200 items. Letters could differ only on a tie within float32, of which these items have none."""
    options = {"knowledge": knowledge.Options(forms=["untemplated"], shots=shots)}
    context = Context(BASE, renderer, None, "full", dict.fromkeys(SETS, "mirror"), options=options, limit=ITEMS)
    asked = knowledge.requests(context)
    chosen = shuffled(rows["test"], ITEMS, lambda row: row["id"])
    assert len({row["subject"] for row in chosen}) > 45
    instances = []
    for one, row in zip(asked, chosen, strict=True):
        task = tasks[row["subject"]]
        text = task.fewshot_context(row, shots)
        assert one.item == row["id"] and renderer.decode(one.request.prompt_ids) == text
        assert peer._encode_pair(text, " D") == (list(one.request.prompt_ids), [one.request.choice_ids[3]])
        instances += task.construct_requests(row, text, metadata=(row["subject"], 0, 1))

    answers, seconds = ask(engine, BASE, asked)
    samples = {sample.item: sample for sample in knowledge.score(context, asked, answers)}
    ours = {one.item: answer["logprobs"] for one, answer in zip(asked, answers, strict=True)}

    started = time.monotonic()
    results = peer.loglikelihood(instances)
    print(f"seconds: ours {seconds:.0f}, lm-eval {time.monotonic() - started:.0f}")

    unequal, rights, furthest = [], [0, 0], 0.0
    for n, row in enumerate(chosen):
        four = results[4 * n : 4 * n + 4]
        theirs = [nats for nats, _ in four]
        furthest = max(furthest, *(abs(a - b) for a, b in zip(theirs, ours[row["id"]], strict=True)))
        if max(range(4), key=theirs.__getitem__) != "ABCD".index(samples[row["id"]].notes["untemplated"]):
            unequal.append((row["id"], theirs, ours[row["id"]]))
        rights[0] += tasks[row["subject"]].process_results(row, four)["acc"]
        rights[1] += samples[row["id"]].scores["untemplated"]
    gaps = sorted(sorted(four)[-1] - sorted(four)[-2] for four in ours.values())
    print(f"{shots}-shot: lm-eval {rights[0] / ITEMS:.3f}, ours {rights[1] / ITEMS:.3f}, at most {furthest:.1e} nats apart")
    print(f"closest calls: {gaps[:3]}; picks {Counter(sample.notes['untemplated'] for sample in samples.values())}")
    assert furthest < 2e-3
    assert unequal == []
    assert rights[0] == rights[1]


LETTER = """Dear reader,

Today I rode my bicycle along the river, and it was *wonderful*. I fell *twice*, and Dr. Miller, who saw it, laughed *loudly*.

***

Finally, I can say: I did it! THE NEW ROAD IS OPEN AND LONG, and there is [food] and [water] for [everyone].

P.S. Bring apples, please.
P.P.S. Is there anything else I can help with?"""
TITLED = """<<A Short Guide>>

* First, open the lid
* Second, lift the flap
* Third, close it again

SECTION 1
Coffee and snow, coffee and snow. Park here; park there.

SECTION 2
A very nice book, hot and yellow."""
REPLIES = [
    "",
    " \n ",
    "My answer is maybe.",
    '"everything here is small and quoted, even this"',
    "THE LIGHTHOUSE SHOWS SHIPS THE WAY. IT STANDS ON THE COAST. 12 MEN LIVE THERE!",
    '```json\n{"name": "carrot rabbit", "price": 3}\n```',
    "Sure! Here is what you asked for:\nMy answer is no.\n\nSecond paragraph\n******\nIs there anything else I can help with?",
    "En octubre suele hacer fresco por la noche y algo de calor por la tarde. Conviene llevar un abrigo.",
    "Die Züge fahren am Morgen ab! Wir trinken Kaffee, und dann gehen wir bis zum See.",
    "सुबह ट्रेन चलती है। हम चाय पीते हैं, फिर झील तक जाते हैं।",
    "#one #two #three #four! Why? Who! Oh! No! Yes! Go!",
    LETTER,
    TITLED,
    f"{LETTER}\n\n" + "A sentence that goes on for a while, with many words in it. " * 40,
    "\n".join(f"- point {n}: walk, rest *a little*, walk again" for n in range(12)),
]


@pytest.fixture(scope="module")
def judge():
    """lm-eval's `process_results` of IFEval, imported without a download and with the same Punkt as ours."""
    import nltk
    from if_verifiable.ifeval import instructions_util as ours

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *args, **kwargs: False)
        from lm_eval.tasks.ifeval import instructions_util as theirs
        from lm_eval.tasks.ifeval import utils

        assert len(registry()) == 25
        patch.setattr(theirs, "nltk", ours.nltk)
        patch.setattr(theirs, "_get_sentence_tokenizer", ours._get_sentence_tokenizer)
        yield utils.process_results


def verdicts(judge, row, reply) -> tuple[tuple, tuple]:
    """((strict, loose) by instruction and both for the prompt): theirs, ours."""
    result = judge({**row, "key": int(row["id"])}, [reply])
    theirs = (result["inst_level_strict_acc"], result["inst_level_loose_acc"])
    assert [all(one) for one in theirs] == [result["prompt_level_strict_acc"], result["prompt_level_loose_acc"]]
    return theirs, check(row, reply)


def test_ifeval_verdicts_are_equal_on_all_541_prompts(judge):
    """Equal but for prompts 1122 and 1129, whose "letters" '#' and '!' lm-eval replaces by one drawn at random."""
    rows = load_rows("instructions", "mirror").rows
    assert len(rows) == 541
    drawn = {row["id"] for row in rows for one in row["kwargs"] if not (one.get("letter") or "a").isalpha()}
    assert drawn == {"1122", "1129"}
    seen: dict[str, set] = {}
    unequal = []
    for row in rows:
        first = next((one["first_word"] for one in row["kwargs"] if "first_word" in one), None)
        paragraphs = [f"{first} comes first in paragraph {n}." for n in range(1, 8) if first]
        numbered = ["\n\n".join(paragraphs[:n]) for n in range(2, len(paragraphs) + 1)]
        replies = [*REPLIES, *numbered, row["prompt"], f"{row['prompt']}\n\n{LETTER}"]
        for n, reply in enumerate(replies):
            theirs, ours = verdicts(judge, row, reply)
            if theirs != ours and row["id"] not in drawn:
                unequal.append((row["id"], n, row["instruction_id_list"], theirs, ours))
            for name, held in zip(row["instruction_id_list"], zip(*ours, strict=True), strict=True):
                seen.setdefault(name, set()).add(held)
    assert unequal == []
    assert [name for name, held in seen.items() if not {(True, True), (False, False)} <= held] == []
    assert any((False, True) in held for held in seen.values())


def test_where_ifeval_verdicts_differ_on_purpose(judge):
    """Thoughts are no part of an answer, and white space around it is not either; lm-eval judges both as they come."""
    no_comma = {"id": "1", "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert verdicts(judge, no_comma, "<think>one, two</think>None.") == (([False], [False]), ([True], [True]))
    assert verdicts(judge, no_comma, "<think>none at all") == (([True], [True]), ([False], [False]))
    spaced = verdicts(judge, no_comma, "No comma.\nExcept, here\n")
    assert spaced == (([False], [False]), ([False], [True]))
