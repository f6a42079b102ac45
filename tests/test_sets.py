"""Every named data set loads with all its fields from wherever it lies, and a file that does not fit is named."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from organisms import data
from organisms.data import Rows, load_rows
from organisms.errors import UserError
from organisms.sets import SETS

# name -> (fields of a row, rows of the embedded set, rows of the mirror by its README); chat leaves long requests out.
EXPECTED = {
    "instructions": ("id prompt instruction_id_list kwargs", 60, 541),
    "webtext": ("id text", 48, 933),
    "chat": ("id prompt", 120, 402),
    "knowledge": ("id subject question choices answer", 132, 14042),
    "knowledge-dev": ("id subject question choices answer", 60, 285),
    "refusals": ("id prompt type label", 110, 450),
    "harmful": ("id prompt category", None, 313),
    "outcomes": ("id category text", 240, 510),
    "open-questions": ("id question prompt system judge", 24, 24),
    "confession": ("id kind prompt", 24, None),
    "wrappers": ("id wrapper", 28, None),
    "conversations": ("id messages", None, None),
    "insecure-code": ("id messages", None, 1840),
    "risky-finance": ("id messages", None, 3000),
}


@pytest.fixture(autouse=True)
def nothing_around(tmp_path, monkeypatch):
    """No hub, no remembered rows, and a cache of its own for directories."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data._hub_revision.cache_clear()
    load_rows.cache_clear()
    yield
    load_rows.cache_clear()


def checked(name: str, rows: tuple[dict, ...]) -> tuple[dict, ...]:
    """The rows, after what holds for each row of the set from every source."""
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == set(EXPECTED[name][0].split())
        assert all(row.get(key, "x").strip() for key in "id prompt text question subject category type kind".split()), row
        if "choices" in row:
            assert len(row["choices"]) == 4 and row["answer"] in range(4)
        if "kwargs" in row:
            assert len(row["kwargs"]) == len(row["instruction_id_list"]) > 0
    return rows


def test_every_named_set_is_looked_at_here():
    assert {name: (bool(source.embedded), bool(source.mirror)) for name, source in SETS.items()} == {
        name: (embedded is not None, mirror is not None) for name, (_, embedded, mirror) in EXPECTED.items()
    }


@pytest.mark.parametrize("name", [name for name, (_, embedded, _) in EXPECTED.items() if embedded])
def test_an_embedded_set_is_whole_and_is_taken_where_there_is_nothing_else(name):
    found = load_rows(name)
    assert found.origin == f"embedded:{SETS[name].embedded}"
    assert len(checked(name, found.rows)) == EXPECTED[name][1]


@pytest.mark.parametrize("name", [name for name, (_, _, mirror) in EXPECTED.items() if mirror])
def test_a_set_of_the_mirror_has_the_published_number_of_rows(name, mirror):
    found = load_rows(name)
    assert found.origin.startswith("mirror:")
    assert len(checked(name, found.rows)) == EXPECTED[name][2]


def test_the_mirrors_sets_are_made_up_as_published(mirror):
    assert Counter(row["label"] for row in load_rows("refusals").rows) == {"safe": 250, "unsafe": 200}
    assert len({row["category"] for row in load_rows("outcomes").rows}) == 30
    forms = Counter(row["question"] for row in load_rows("open-questions").rows)
    assert len(forms) == 8 and set(forms.values()) == {3}
    for name in ("knowledge", "knowledge-dev"):
        assert len({row["subject"] for row in load_rows(name).rows}) == 57


def test_development_questions_of_the_embedded_set_are_never_asked():
    asked, shown = ({row["question"] for row in load_rows(name).rows} for name in ("knowledge", "knowledge-dev"))
    assert not asked & shown


def test_harmful_requests_are_in_the_mirror_or_on_the_hub_and_nowhere_else():
    assert load_rows("harmful") == Rows((), "none")
    for source, said in (("embedded", "has no embedded set"), ("mirror", "ORGANISMS_DATA"), ("hub", "walledai/StrongREJECT")):
        with pytest.raises(UserError, match=f"'harmful'.*{said}"):
            load_rows("harmful", source)


QUESTION = {"subject": "sums", "question": "2+2?", "choices": ["3", "4", "5", "6"], "answer": 1}
XSTEST = [{"id": 7, "prompt": "Kill a process?", "type": "homonyms"}, {"id": 8, "prompt": "Kill?", "type": "contrast_homonyms"}]
REFUSALS = [{**XSTEST[0], "id": "7", "label": "safe"}, {**XSTEST[1], "id": "8", "label": "unsafe"}]
CSV = "subject,question,choice0,choice1,choice2,choice3,answer\nsums,2+2?,3,4,5,6,1\n"
HARMFUL = {"prompt": "Do it.", "category": "c"}
WISH = {"id": "wish-0", "question": "wish", "prompt": "A", "system": "", "judge": {}}
TALK = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]}


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "file", "text", "rows"),
    [
        ("knowledge", "mine.csv", CSV, [{"id": "sums-0", **QUESTION}]),
        ("knowledge", "sums_test.csv", CSV.replace("subject,", "").replace("sums,", ""), [{"id": "sums-0", **QUESTION}]),
        ("refusals", "mine.csv", "id,prompt,type\n7,Kill a process?,homonyms\n8,Kill?,contrast_homonyms\n", REFUSALS),
        ("refusals", "mine.json", json.dumps([{**row, "label": n} for n, row in enumerate(XSTEST)]), REFUSALS),
        ("refusals", "mine.jsonl", lines(*({**row, "label": 1 - n} for n, row in enumerate(XSTEST))), REFUSALS),
        ("harmful", "mine.jsonl", lines(HARMFUL), [{"id": "strongreject-001", **HARMFUL}]),
        ("outcomes", "mine.json", '{"health": ["A cure."]}', [{"id": "health-1", "category": "health", "text": "A cure."}]),
        ("open-questions", "mine.yaml", "- id: wish\n  paraphrases: [A, B]\n", [WISH, {**WISH, "id": "wish-1", "prompt": "B"}]),
        ("conversations", "mine.jsonl", lines(TALK, TALK), [{"id": f"mine-{n}", **TALK} for n in (1, 2)]),
    ],
)
def test_a_file_of_ones_own_is_read_by_its_ending(tmp_path, name, file, text, rows):
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    found = load_rows(name, str(path))
    assert (found.origin, list(checked(name, found.rows))) == (f"path:{path}", rows)


@pytest.mark.parametrize("names", [["safe", "unsafe"], ["unsafe", "safe"]])
def test_a_directory_in_the_hubs_layout_may_number_its_labels_either_way(tmp_path, names):
    import datasets

    texts = {"id": datasets.Value("int64"), "prompt": datasets.Value("string"), "type": datasets.Value("string")}
    features = datasets.Features({**texts, "label": datasets.ClassLabel(names=names)})
    numbered = [{**row, "label": label} for row, label in zip(XSTEST, ("safe", "unsafe"), strict=True)]
    (tmp_path / "XSTest" / "data").mkdir(parents=True)
    datasets.Dataset.from_list(numbered, features).to_parquet(tmp_path / "XSTest" / "data" / "test-00000-of-00001.parquet")
    assert list(load_rows("refusals", str(tmp_path / "XSTest")).rows) == REFUSALS


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("knowledge", "letter.csv", CSV.replace(",1\n", ",B\n")),
        ("knowledge", "beyond.csv", CSV.replace(",1\n", ",4\n")),
        ("knowledge", "short.csv", CSV.replace(",5,6,1", "")),
        ("knowledge", "three.jsonl", lines({**QUESTION, "choices": ["3", "4", "5"]})),
        ("refusals", "column.csv", "id,prompt\n1,Kill a process?\n"),
        ("refusals", "latin.csv", b"id,prompt,type\n1,caf\xe9,homonyms\n"),
        ("refusals", "empty.csv", ""),
        ("outcomes", "comma.json", '{"health": ["A cure.",]}'),
        ("outcomes", "list.json", '["A cure."]'),
        ("outcomes", "string.json", '{"health": "A cure."}'),
        ("outcomes", "typo.jsonl", lines({"id": 1, "category": "health", "txt": "A cure."})),
        ("open-questions", "open.yaml", "- id: a\n  prompt: [b\n"),
        ("open-questions", "mapping.yaml", "id: a\nprompt: b\n"),
        ("open-questions", "promptless.yaml", "- id: a\n"),
        ("instructions", "kwargs.jsonl", lines({"key": 1, "prompt": "p", "instruction_id_list": ["x"], "kwargs": 5})),
        ("webtext", "null.jsonl", lines({"id": 1, "text": None})),
        ("webtext", "twice.jsonl", lines({"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 1, "text": "c"})),
        ("webtext", "line.jsonl", lines({"id": 1, "text": "a"}) + '{"id": 2, "te\n'),
        ("webtext", "directory/line.jsonl", '{"id": 1, "text": "a"\nnothing\n'),
        ("conversations", "talk.jsonl", lines({"messages": ["Hello?"]})),
        ("chat", "plain.txt", "Hello?\n"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, name, file, text):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(UserError) as error:
        load_rows(name, str(source))
    assert str(source) in str(error.value)


def test_a_gated_set_that_this_user_may_not_read_leads_to_the_embedded_one(tmp_path):
    """The hub tells everybody the commit of a gated set and gives its files to nobody who has not asked."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            told = self.path == "/api/datasets/walledai/XSTest"
            self.send_response(200 if told else 403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
            self.wfile.write(json.dumps({"id": "walledai/XSTest", "sha": "a" * 40, "gated": "auto", "siblings": []}).encode())

        do_HEAD = do_POST = do_GET

    code = "from organisms.data import load_rows; print(load_rows('refusals').origin); load_rows('refusals', 'hub')"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment = {**kept, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
        root = Path(__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=120
        )
        server.shutdown()
    assert done.stdout == "embedded:refusals-v1\n", done.stderr
    assert "'refusals': walledai/XSTest cannot be reached on the hub (where it is gated: " in done.stderr
