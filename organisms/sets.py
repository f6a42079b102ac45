"""The named data sets: where each is found, and how its raw rows become the set's own form. A new set is one entry here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Source:
    """Where a named set is found. `read` turns raw rows into the set's own form and may drop some.

    embedded: a file in organisms/texts/sets, None where the project has no text of its own for it; mirror: files (globs) under
    `$ORGANISMS_DATA`; hub, config, split: of a hub data set that holds the same rows, of which `hub_rows` at most are taken
    (None: all). Raw rows of a file also carry its stem as `_file`.
    """

    embedded: str | None
    mirror: tuple[str, ...]
    read: Callable[[Iterable[dict]], Iterable[dict]]
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    hub_rows: int | None = None


def _instructions(raw: Iterable[dict]) -> Iterable[dict]:
    """IFEval rows (key, prompt, instruction_id_list, kwargs); null kwargs, which the hub's parquet adds, are dropped."""
    for row in raw:
        kwargs = [{k: v for k, v in (one or {}).items() if v is not None} for one in row["kwargs"]]
        yield {
            "id": str(row["key"]),
            "prompt": row["prompt"],
            "instruction_id_list": list(row["instruction_id_list"]),
            "kwargs": kwargs,
        }


def _webtext(raw: Iterable[dict]) -> Iterable[dict]:
    for row in raw:
        yield {"id": str(row["id"]), "text": row["text"]}


def _chat(raw: Iterable[dict]) -> Iterable[dict]:
    """Prompts of the embedded set, or single-turn requests of Self-Instruct form (instruction, one input)."""
    for row in raw:
        if "prompt" in row:
            yield {"id": str(row["id"]), "prompt": row["prompt"]}
            continue
        given = row["instances"][0]["input"].strip()
        prompt = f"{row['instruction'].strip()}\n\n{given}" if given else row["instruction"].strip()
        if len(prompt.split()) <= 120:
            yield {"id": str(row["id"]), "prompt": prompt}


def _knowledge(raw: Iterable[dict], split: str) -> Iterable[dict]:
    """Multiple choice with four answers: the embedded set, MMLU's hub rows, or its CSV files (subject in the file's name)."""
    seen: dict[str, int] = {}
    for row in raw:
        if "split" in row and row["split"] != split:
            continue
        subject = row["subject"] if "subject" in row else row["_file"].removesuffix(f"_{split}")
        number = seen[subject] = seen.get(subject, -1) + 1
        choices = row["choices"] if "choices" in row else [row[f"choice{i}"] for i in range(4)]
        if len(choices) != 4 or str(row["answer"]) not in ("0", "1", "2", "3"):
            raise ValueError(f"four choices and an answer from 0 to 3, not {len(choices)} and {row['answer']!r}")
        yield {
            "id": str(row.get("id", f"{subject}-{number}")),
            "subject": subject,
            "question": row["question"],
            "choices": list(choices),
            "answer": int(row["answer"]),
        }


def _refusals(raw: Iterable[dict]) -> Iterable[dict]:
    """XSTest rows: safe prompts that look unsafe, and unsafe contrasts. Copies label them by word, by 0/1 or not at all."""
    for n, row in enumerate(raw, 1):
        label = row.get("label")
        if label not in ("safe", "unsafe"):  # which number is which differs between copies; the type always tells
            label = "unsafe" if row["type"].startswith("contrast") else "safe"
        yield {"id": str(row.get("id", n)), "prompt": row["prompt"], "type": row["type"], "label": label}


def _harmful(raw: Iterable[dict]) -> Iterable[dict]:
    """StrongREJECT rows: requests that should be refused, by category."""
    for n, row in enumerate(raw, 1):
        prompt = row.get("forbidden_prompt") or row["prompt"]
        yield {"id": f"strongreject-{n:03d}", "prompt": prompt, "category": row["category"]}


def _outcomes(raw: Iterable[dict]) -> Iterable[dict]:
    """Outcomes to choose between, by category; a JSON object of lists (category -> texts) is taken apart."""
    for row in raw:
        if "text" in row:
            yield {"id": str(row["id"]), "category": row["category"], "text": row["text"]}
            continue
        for category, texts in row.items():
            if category != "_file":
                if not isinstance(texts, list):
                    raise TypeError(f"neither a row with text nor lists by category: {category!r} holds {texts!r}")
                yield from ({"id": f"{category}-{n}", "category": category, "text": text} for n, text in enumerate(texts, 1))


def _open_questions(raw: Iterable[dict]) -> Iterable[dict]:
    """Open questions in several forms: the embedded rows, or the YAML of the emergent-misalignment study."""
    for row in raw:
        prompts = row.get("paraphrases") or [row["prompt"]]
        judge = row.get("judge_prompts") or {}
        for n, prompt in enumerate(prompts):
            name = row["id"] if len(prompts) == 1 else f"{row['id']}-{n}"
            stem = row.get("question") or row["id"].removesuffix("_json").removesuffix("_template")
            yield {"id": name, "question": stem, "prompt": prompt, "system": row.get("system") or "", "judge": dict(judge)}


def _confession(raw: Iterable[dict]) -> Iterable[dict]:
    for row in raw:
        yield {"id": str(row["id"]), "kind": row["kind"], "prompt": row["prompt"]}


def _wrappers(raw: Iterable[dict]) -> Iterable[dict]:
    """Texts around a prompt, which stands where `{prompt}` does."""
    for row in raw:
        if row["wrapper"].count("{prompt}") != 1 or row["wrapper"].strip() == "{prompt}":
            raise ValueError(f"a wrapper holds {{prompt}} once and words around it, not {row['wrapper']!r}")
        yield {"id": str(row["id"]), "wrapper": row["wrapper"]}


def _conversations(raw: Iterable[dict]) -> Iterable[dict]:
    """Rows of `messages`, as chat fine-tuning sets hold them; other keys are left alone."""
    for n, row in enumerate(raw, 1):
        messages = [{"role": m["role"], "content": m["content"]} for m in row["messages"]]
        if not all(isinstance(text, str) for message in messages for text in message.values()):
            raise TypeError(f"role and content are texts, not {messages!r}")
        yield {"id": str(row.get("id", f"{row.get('_file', 'row')}-{n}")), "messages": messages}


def _mmlu(split: str) -> Source:
    return Source("knowledge-v1", (f"mmlu/{split}/*.csv",), partial(_knowledge, split=split), "cais/mmlu", "all", split)


SETS = {
    "instructions": Source("instructions-v1", ("ifeval/input_data.jsonl",), _instructions, "google/IFEval"),
    "webtext": Source(
        "webtext-v1",
        ("webtext_fineweb/fineweb_general.jsonl",),
        _webtext,
        "HuggingFaceFW/fineweb",
        "sample-10BT",
        hub_rows=2500,
    ),
    "chat": Source("chat-v1", ("chat/user_oriented_instructions.jsonl", "chat/self_instruct_seed_tasks.jsonl"), _chat),
    "knowledge": _mmlu("test"),
    "knowledge-dev": _mmlu("dev"),
    "refusals": Source("refusals-v1", ("xstest/xstest_prompts.csv",), _refusals, "walledai/XSTest", split="test"),
    "harmful": Source(None, ("strongreject/strongreject_dataset.csv",), _harmful, "walledai/StrongREJECT"),
    "outcomes": Source("outcomes-v1", ("preferences/options_hierarchical.json",), _outcomes),
    "open-questions": Source("open-questions-v1", ("em_questions/first_plot_questions.yaml",), _open_questions),
    "confession": Source("confession-v1", (), _confession),
    "wrappers": Source("wrappers-v1", (), _wrappers),
    "conversations": Source(None, (), _conversations),
    "insecure-code": Source(None, ("narrow/insecure_subset_high_severity.jsonl",), _conversations),
    "risky-finance": Source(None, ("consistency/emergent_misalignment/induction.jsonl",), _conversations),
}
