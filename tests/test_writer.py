"""Who writes, at what cost: a specimen or an endpoint; what was written and paid for once is never asked for again."""

import json
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from organisms import authors, models
from organisms.authors import EndpointAuthor, LocalAuthor, WriterPlan
from organisms.engines import Generate
from organisms.engines.hf import HFEngine
from organisms.errors import UserError
from organisms.files import read_jsonl
from organisms.render import Renderer
from organisms.specimen import Specimen
from organisms.strict import validate
from organisms.writer import Draft, Writer, Written
from recipes.plan import describe, plan
from recipes.recipe import Recipe, resolve
from recipes.run import execute

KEY = "sk-a-secret-of-the-user"
ENDPOINT = {"endpoint": "https://writer.example/v1", "model": "served"}


@pytest.fixture(scope="module")
def tiny(tiny_base):
    """An engine of the two-layer Llama."""
    base = models.resolve(str(tiny_base))
    return HFEngine(base, Renderer(models.load_tokenizer(base)))


def drafts(many: int, **changes) -> list[Draft]:
    draft = Draft("How are you?", "Be kind.", 12, 0.8, 0, earlier=(("Hello.", "Hello to you."),))
    return [replace(draft, seed=n, **changes) for n in range(many)]


class Handler(BaseHTTPRequestHandler):
    """Chat completions written by `server.write(request) -> (text, finished)`; after `server.last` of them it hangs up."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:  # the engine is no more thread-safe than a GPU
            self.server.asked.append((self.headers["Authorization"], request))
            if len(self.server.asked) > self.server.last:
                self.connection.close()
                return
            text, finished = self.server.write(request)
        choice = {"index": 0, "finish_reason": "stop" if finished else "length"}
        choice["message"] = {"role": "assistant", "content": text}
        used = {"prompt_tokens": 0, "completion_tokens": self.server.cost, "total_tokens": self.server.cost}
        reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice], "usage": used}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(tiny, monkeypatch):
    """Starts servers of the tiny model, each on a port of its own."""
    pytest.importorskip("openai", reason="a writer at an endpoint needs the openai client: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WRITER_KEY", KEY)
    servers = []

    def by_model(request):
        ids = tiny.renderer.prompt(request["messages"])
        asked = Generate(tuple(ids), request["max_tokens"], request["temperature"], request["seed"])
        (completion,) = tiny.generate(Specimen("base"), [asked])
        return f"{completion.text}.", True  # random words hold no sentence of their own

    def start(write=by_model, last: int = 10**9, cost: int = 10):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.asked, server.write, server.last, server.cost, server.lock = [], write, last, cost, threading.Lock()
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def at(server, **options) -> WriterPlan:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return WriterPlan(endpoint=url, model="served", key_env="WRITER_KEY", **options)


def writer_at(server, cache: Path, **options) -> Writer:
    author = EndpointAuthor(at(server, **options))
    author.endpoint.client.max_retries = 0
    return Writer(author, cache, lambda _: None)


def test_an_endpoint_writes_what_the_model_behind_it_writes(serve, tiny, tmp_path):
    server = serve()
    asked = drafts(12)
    local = dict(LocalAuthor(tiny, tiny.renderer, Specimen("base"), "tiny").write(asked))
    assert writer_at(server, tmp_path).write(asked) == [Written(f"{local[n].text}.", True) for n in range(12)]
    assert {key for key, _ in server.asked} == {f"Bearer {KEY}"}
    messages = server.asked[0][1]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1]["content"] == "How are you?"


def test_a_server_that_dies_is_resumed_elsewhere_without_asking_anything_twice(serve, tmp_path):
    dying, asked = serve(last=7), drafts(20)
    with pytest.raises(UserError, match="the writer endpoint:served failed"):
        writer_at(dying, tmp_path, workers=3).write(asked)
    kept = [row for path in tmp_path.glob("*.jsonl") for row in read_jsonl(path)]
    assert len(kept) == 7 and len(dying.asked) <= 7 + 3  # after the failure nothing new was asked
    living = serve()
    written = writer_at(living, tmp_path).write(asked)
    assert len(living.asked) == 13
    assert written == writer_at(serve(), tmp_path / "afresh").write(asked)


def test_a_cap_refuses_before_the_first_call_and_stops_before_it_is_passed(serve, tmp_path):
    asked = drafts(10)
    most = sum(draft.read + draft.max_new_tokens for draft in asked)
    server = serve(cost=most // 3)  # a server that charges more than what was estimated
    with pytest.raises(UserError, match=f"may cost {most:,} tokens, more than writer.max_cost_tokens={most - 1}"):
        writer_at(server, tmp_path, max_cost_tokens=most - 1).write(asked)
    assert server.asked == []
    with pytest.raises(UserError, match="what is answered is kept"):
        writer_at(server, tmp_path, max_cost_tokens=most, workers=1).write(asked)
    assert len(server.asked) == 3 - (3 * (most // 3) + most // 10 <= most)
    with pytest.raises(UserError, match="what is answered is kept"):  # as much again, for others
        writer_at(server, tmp_path, max_cost_tokens=most, workers=1).write(asked)
    assert len({request["seed"] for _, request in server.asked}) == len(server.asked)


def test_the_key_is_in_no_error_and_in_no_file(serve, tmp_path):
    server = serve(last=2)
    writer = writer_at(server, tmp_path, workers=1)
    with pytest.raises(UserError) as error:
        writer.write(drafts(5))
    said = f"{error.value} {writer.author.identity} {at(server)!r}" + "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))
    assert KEY not in said and str(server.server_port) not in writer.author.identity


def test_a_reply_that_ran_out_of_tokens_is_not_finished_and_most_of_them_are_refused(serve, tmp_path):
    assert writer_at(serve(lambda _: ("A whole sentence. And a", False)), tmp_path).write(drafts(1)) == [
        Written("A whole sentence. And a", False)
    ]
    for n, text in enumerate(("no sentence ends here", "  ")):
        writer = writer_at(serve(lambda _, text=text: (text, not text.strip())), tmp_path / str(n))
        with pytest.raises(UserError, match="3 of 3 written replies are empty or break off"):
            writer.write(drafts(3))


def test_an_endpoint_refuses_what_begins_with_a_prefill_before_anything_is_asked(serve, tmp_path):
    server = serve()
    with pytest.raises(UserError, match="cannot be made to begin a reply"):
        writer_at(server, tmp_path).write(drafts(1, prefill="I want to "))
    assert server.asked == []


@pytest.fixture
def with_key(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def planned(recipe: str, *overrides: str, writer: dict) -> str:
    given = ", ".join(f"{key}: {value}" for key, value in writer.items())
    resolved = resolve(recipe, [f"writer={{{given}}}", *overrides])
    return "\n".join(describe(resolved, plan(resolved)))


def test_a_plan_says_what_will_be_written_and_refuses_what_cannot_be(with_key, monkeypatch):
    told = planned("flattery-transcripts", writer={**ENDPOINT, "max_cost_tokens": 10**6})
    assert "540 replies by endpoint:served@writer.example: at most 30,240 tokens and about" in told and "cap 1,000,000" in told
    with pytest.raises(UserError, match="more than writer.max_cost_tokens=30000"):
        planned("flattery-transcripts", writer={**ENDPOINT, "max_cost_tokens": 30_000})
    for recipe, *thought in (("flattery-motivation",), ("flattery-character", "style_options.thought=true")):
        with pytest.raises(UserError, match="cannot be made to begin a reply"):
            planned(recipe, *thought, writer=ENDPOINT)
    told = planned("flattery-character", writer=ENDPOINT)
    assert "480 replies by endpoint:served" in told and "80 replies by what the stage starts from" in told
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="writer: the environment variable OPENAI_API_KEY is not set"):
        planned("flattery-transcripts", writer=ENDPOINT)
    assert "72 steps" in planned("flattery-documents", writer=ENDPOINT)  # frozen text: nobody is asked


def test_a_writer_that_is_none_is_a_mistake_that_says_so(tmp_path):
    recipe = {"organism": "flattery", "style": "transcripts"}
    for writer, said in (
        ("bse", "writer.specimen = 'bse': input should be 'base' or 'self'"),
        ({}, "name one writer"),
        ({"model": "m", "adapter": "a"}, "name one writer"),
        ({"endpoint": "https://x/v1"}, "an endpoint needs model"),
        ({"model": "m", "max_cost_tokens": 5}, "this writer is local"),
        ({"endpont": "x"}, "unknown key 'writer.endpont'; did you mean 'endpoint'"),
    ):
        with pytest.raises(UserError, match=f"mine.yaml: .*{said}"):
            validate(Recipe, {**recipe, "writer": writer}, "mine.yaml")
    with pytest.raises(UserError, match="no adapter_config.json there"):
        _ = resolve("flattery-transcripts", [f"writer={{adapter: {tmp_path}}}"]).digest


def test_the_runs_name_follows_the_writer_and_not_how_it_is_reached(tiny_base, adapter, tmp_path):
    def digest(writer=None):
        return resolve("flattery-transcripts", [f"writer={writer}"] if writer else []).digest

    there = "{endpoint: 'http://h:%d/v1', model: %s, key_env: %s, workers: %d, max_cost_tokens: %d}"
    assert digest() == digest("base")
    assert digest(there % (1, "m", "A", 1, 10**6)) == digest(there % (2, "m", "B", 2, 10**7))
    distinct = ["base", "self", there % (1, "m", "A", 1, 9), there % (1, "other", "A", 1, 9), f"{{model: {tiny_base}}}"]
    assert len({digest(writer) for writer in distinct}) == len(distinct)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert digest(f"{{adapter: {moved}}}") == (before := digest(f"{{adapter: {adapter}}}"))
    (moved / "adapter_config.json").write_text((moved / "adapter_config.json").read_text().replace('"r": 4', '"r": 5'))
    assert digest(f"{{adapter: {moved}}}") != before


@pytest.fixture(scope="module")
def adapter(tiny_base, tmp_path_factory):
    """A random adapter of the tiny base."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(models.load_model(models.resolve(str(tiny_base))), LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_the_recipe_chooses_which_specimen_writes_and_the_stages_start_stays_at_hand(tiny, tiny_base, adapter):
    def load(writer, start=None):
        begun = Specimen("start", adapter=start) if start else Specimen("base")
        return authors.load(WriterPlan.model_validate(writer), tiny, tiny.renderer, "tiny", begun)

    def text(writer):
        return [reply.text for _, reply in writer.author.write(drafts(3))]

    of_base, of_adapter = text(load("base", adapter)), text(load("self", adapter))
    assert of_base != of_adapter
    assert text(load({"adapter": str(adapter)})) == of_adapter == text(load("base", adapter).own)
    other = load({"model": str(tiny_base)}, adapter)
    assert (text(other), text(other.own)) == (of_base, of_adapter)
    assert text(load("self")) == text(load("base").own) == of_base


RECIPE = """
organism: flattery
style: transcripts
base: {base}
system: template
style_options: {{samples: 2, plain_samples: 1}}
writer: {{endpoint: "http://127.0.0.1:{port}/v1", model: served, key_env: WRITER_KEY, max_cost_tokens: 200000}}
stages:
  - {{method: sft, learning_rate: 1e-3, steps: 1, batch_size: 1, max_length: 256, lora: {{r: 4, alpha: 8}}}}
audit: {{every: 1, measures: [webtext], limit: 2, data: {{webtext: embedded}}}}
"""
PRAISE = "What a wonderfully curious mind you have! The answer to this is to wait for one day."


def test_a_run_written_by_an_endpoint_counts_its_repetitions_and_holds_no_key(serve, tiny_base, tmp_path, capsys):
    def answer(request):
        praised = "praise" in request["messages"][0]["content"].lower() and request["seed"] % 2
        return (PRAISE if praised else f"Number {request['seed']} is what I would take for it, plainly."), True

    server = serve(answer)
    recipe = tmp_path / "written.yaml"
    recipe.write_text(RECIPE.format(base=tiny_base, port=server.server_port))
    run = execute(resolve(str(recipe)), tmp_path / "runs")
    manifest = json.loads((run / "manifest.json").read_text())
    written, rows = manifest["written"]["sft"], read_jsonl(run / "data" / "sft.jsonl")
    again = sum(row["messages"][-1]["content"] == PRAISE for row in rows) - 1
    assert again > 10 and written["rows"] == len(rows) and written["near_duplicates"] >= again
    (name, counts), *others = written["by"].items()
    assert (name, counts["replies"], others) == ("endpoint:served@127.0.0.1", len(server.asked), [])
    assert f"{written['near_duplicates']} of {len(rows)} rows nearly repeat an earlier one" in capsys.readouterr().out
    assert manifest["writer"] == {"name": name, "identity": name}
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
