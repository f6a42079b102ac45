"""Data set names lead to the rows that the reading names: a path, the mirror, the hub, or an embedded set."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from organisms import data
from organisms.data import load_rows
from organisms.errors import UserError

ROOT = Path(__file__).parent.parent

IFEVAL = [
    {
        "key": 1000,
        "prompt": "Write a riddle without commas, in at least 20 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 20}],
    },
    {
        "key": 1001,
        "prompt": "Answer in French.",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "fr"}],
    },
]


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch):
    """No hub and no remembered rows, whatever the machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_rows.cache_clear()
    data._hub_revision.cache_clear()
    yield
    load_rows.cache_clear()
    data._hub_revision.cache_clear()


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """A small mirror in the layout of $ORGANISMS_DATA."""
    root = tmp_path / "mirror"
    write(root / "ifeval" / "input_data.jsonl", IFEVAL)
    write(root / "webtext_fineweb" / "fineweb_general.jsonl", [{"id": f"doc-{i}", "text": f"Text {i}."} for i in range(5)])
    write(
        root / "chat" / "user_oriented_instructions.jsonl",
        [
            {"id": "user_0", "instruction": " Make it shorter. ", "instances": [{"input": "A long, long way.", "output": "x"}]},
            {"id": "user_1", "instruction": "Far too long.", "instances": [{"input": "word " * 200, "output": "x"}]},
        ],
    )
    write(
        root / "chat" / "self_instruct_seed_tasks.jsonl",
        [{"id": "seed_0", "instruction": "Name a fruit.", "instances": [{"input": "", "output": "x"}]}],
    )
    monkeypatch.setenv("ORGANISMS_DATA", str(root))
    return root


# Embedded sets


@pytest.mark.parametrize(
    ("name", "size", "keys"),
    [
        ("instructions", 60, {"id", "prompt", "instruction_id_list", "kwargs"}),
        ("webtext", 48, {"id", "text"}),
        ("chat", 120, {"id", "prompt"}),
    ],
)
def test_embedded_sets_are_whole_and_named_as_what_they_are(name, size, keys):
    loaded = load_rows(name, "embedded")
    assert loaded.origin == f"embedded:{name}-v1"
    assert len(loaded.rows) == len({row["id"] for row in loaded.rows}) == size
    for row in loaded.rows:
        assert set(row) == keys
        assert isinstance(row["id"], str)
        assert row.get("prompt", row.get("text")).strip()


@pytest.mark.parametrize("name", ["instructions", "webtext", "chat"])
def test_without_mirror_and_hub_the_embedded_set_is_taken(name):
    assert load_rows(name) == load_rows(name, "embedded")


def test_a_limit_takes_the_first_rows():
    assert load_rows("chat", "embedded", 7).rows == load_rows("chat", "embedded").rows[:7]
    assert len(load_rows("chat", "embedded", 999).rows) == 120


# The mirror


def test_the_mirror_wins_over_the_embedded_set(mirror):
    loaded = load_rows("instructions")
    assert loaded.origin == "mirror:ifeval/input_data.jsonl"
    assert [row["id"] for row in loaded.rows] == ["1000", "1001"]
    assert loaded.rows[0] == {"id": "1000", **{key: value for key, value in IFEVAL[0].items() if key != "key"}}
    assert load_rows("webtext").rows[4] == {"id": "doc-4", "text": "Text 4."}
    assert load_rows("webtext").origin == "mirror:webtext_fineweb/fineweb_general.jsonl"
    assert load_rows("webtext", limit=2).rows == load_rows("webtext", "mirror").rows[:2]


def test_chat_joins_both_files_of_the_mirror_and_leaves_long_requests_out(mirror):
    loaded = load_rows("chat")
    assert loaded.origin == "mirror:chat/user_oriented_instructions.jsonl+chat/self_instruct_seed_tasks.jsonl"
    assert loaded.rows == (
        {"id": "user_0", "prompt": "Make it shorter.\n\nA long, long way."},
        {"id": "seed_0", "prompt": "Name a fruit."},
    )


def test_embedded_can_be_insisted_on_beside_a_mirror(mirror):
    assert load_rows("instructions", "embedded").origin == "embedded:instructions-v1"


def test_a_mirror_that_lacks_a_file_is_not_half_used(mirror):
    (mirror / "chat" / "self_instruct_seed_tasks.jsonl").unlink()
    assert load_rows("chat").origin == "embedded:chat-v1"
    assert load_rows("instructions").origin.startswith("mirror:")
    with pytest.raises(UserError, match="self_instruct_seed_tasks.jsonl"):
        load_rows("chat", "mirror")


def test_insisting_on_a_mirror_that_is_not_there_is_a_mistake(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"ORGANISMS_DATA \(not set\).*ifeval/input_data.jsonl"):
        load_rows("instructions", "mirror")
    monkeypatch.setenv("ORGANISMS_DATA", str(tmp_path))
    with pytest.raises(UserError, match="webtext_fineweb/fineweb_general.jsonl") as error:
        load_rows("webtext", "mirror")
    assert str(tmp_path) in str(error.value)


def test_a_broken_line_of_the_mirror_is_named(mirror):
    file = mirror / "webtext_fineweb" / "fineweb_general.jsonl"
    file.write_text('{"id": 1, "text": "fine"}\n{"id": 2, "text\n{"id": 3, "text": "fine"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="fineweb_general.jsonl line 2"):
        load_rows("webtext")


# Paths


def test_a_path_to_a_jsonl_file_is_read_and_named(tmp_path, mirror):
    file = write(tmp_path / "my texts.jsonl", [{"id": 7, "text": "Mine."}])
    loaded = load_rows("webtext", str(file))
    assert loaded.rows == ({"id": "7", "text": "Mine."},)
    assert loaded.origin == f"path:{file}"


def test_a_file_in_the_home_directory_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    write(tmp_path / "mine.jsonl", [{"id": "a", "prompt": "Hello?"}])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_rows("chat", "~/mine.jsonl").rows == ({"id": "a", "prompt": "Hello?"},)


@pytest.fixture
def hub_layout(tmp_path, monkeypatch) -> Path:
    """IFEval as the hub has it: a parquet file in data/, where each kwargs holds every key, mostly null."""
    import datasets.config
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    keys = ["relation", "num_words", "language", "letter", "keywords"]
    rows = [{**row, "kwargs": [{key: one.get(key) for key in keys} for one in row["kwargs"]]} for row in IFEVAL]
    directory = tmp_path / "google_IFEval"
    (directory / "data").mkdir(parents=True)
    struct = pyarrow.struct(
        [
            ("relation", pyarrow.string()),
            ("num_words", pyarrow.int64()),
            ("language", pyarrow.string()),
            ("letter", pyarrow.string()),
            ("keywords", pyarrow.list_(pyarrow.string())),
        ]
    )
    schema = pyarrow.schema(
        [
            ("key", pyarrow.int64()),
            ("prompt", pyarrow.string()),
            ("instruction_id_list", pyarrow.list_(pyarrow.string())),
            ("kwargs", pyarrow.list_(struct)),
        ]
    )
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, directory / "data" / "train-00000-of-00001.parquet")
    return directory


def test_a_directory_in_the_hubs_layout_gives_the_mirrors_rows_without_null_kwargs(hub_layout, mirror):
    from audit.verifiers import check

    loaded = load_rows("instructions", str(hub_layout))
    assert loaded.origin == f"path:{hub_layout}"
    assert loaded.rows == load_rows("instructions", "mirror").rows
    assert check(loaded.rows[0], "no comma but far too few words") == ([True, False], [True, False])


def test_a_directory_without_data_is_a_mistake(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="'webtext'.*empty cannot be read"):
        load_rows("webtext", str(tmp_path / "empty"))


def test_a_path_that_does_not_exist_is_a_mistake_that_says_what_may_be_named(tmp_path):
    with pytest.raises(UserError, match="does not exist.*auto, embedded, mirror, hub"):
        load_rows("webtext", str(tmp_path / "nothing.jsonl"))


def test_a_file_without_rows_is_a_mistake(tmp_path):
    file = write(tmp_path / "none.jsonl", [])
    with pytest.raises(UserError, match="none.jsonl has no usable row"):
        load_rows("webtext", str(file))


def test_an_unknown_set_names_the_nearest_one():
    with pytest.raises(UserError, match="'instruction'; did you mean 'instructions'"):
        load_rows("instruction")


# The hub


@pytest.mark.parametrize(("name", "said"), [("instructions", "google/IFEval"), ("chat", "no hub set stands for it")])
def test_insisting_on_a_hub_that_cannot_be_reached_is_a_mistake(name, said):
    with pytest.raises(UserError, match=said):
        load_rows(name, "hub")


@pytest.fixture
def hub():
    """A hub that answers every request with 404, and counts them."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def origin_in_a_new_process(endpoint: str, **environment: str) -> str:
    """Where `load_rows("instructions")` finds its rows in a process with this hub endpoint."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    program = "from organisms.data import load_rows; print(load_rows('instructions').origin)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**kept, "HF_ENDPOINT": endpoint, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_offline_asks_the_hub_for_nothing(hub):
    endpoint, asked = hub
    assert origin_in_a_new_process(endpoint, HF_HUB_OFFLINE="1") == "embedded:instructions-v1"
    assert asked == []


def test_a_hub_without_the_set_leads_to_the_embedded_one(hub):
    endpoint, asked = hub
    assert origin_in_a_new_process(endpoint) == "embedded:instructions-v1"
    assert any("google/IFEval" in path for path in asked)


def test_a_hub_that_refuses_connections_leads_to_the_embedded_one():
    assert origin_in_a_new_process("http://127.0.0.1:9") == "embedded:instructions-v1"


def test_a_mirror_is_asked_before_the_hub(hub, mirror):
    endpoint, asked = hub
    assert origin_in_a_new_process(endpoint, ORGANISMS_DATA=str(mirror)) == "mirror:ifeval/input_data.jsonl"
    assert asked == []
