"""Audits of models behind an endpoint: readings are those of the weights, nothing is lost, mistaken or told to others."""

import json

import pytest
from conftest import SECRET

from audit import readings as ledger
from audit import sweep
from audit.config import AuditPlan
from audit.existing import Subject, audit_existing, opened
from audit.measures import knowledge
from organisms import models
from organisms.engines import Generate
from organisms.errors import Missing, UserError
from organisms.served import Address, EndpointPlan
from organisms.specimen import Specimen
from organisms.strict import validate
from recipes.recipe import resolve

DATA = {"chat": "embedded", "webtext": "embedded", "instructions": "embedded", "knowledge": "embedded", "refusals": "embedded"}
PLAN = AuditPlan(measures=["severity", "drift", "webtext", "knowledge", "refusals"], limit=2, data=DATA)
NOT_AT_AN_ENDPOINT = {"kl", "kl_base", "kl_p99"}
BASE = Specimen("base")


def by_name(run) -> dict[tuple, ledger.Reading]:
    return {reading.key: reading for reading in ledger.read(run)}


def test_an_endpoint_that_scores_reads_every_measure_but_divergence_as_the_weights_do(
    serving, tiny_base, tiny_adapter, tmp_path
):
    plan = PLAN.model_copy(update={"measures": ["severity", "drift", "knowledge"]})
    here = by_name(audit_existing(Subject(str(tiny_base), str(tiny_adapter), "flattery"), plan, tmp_path))
    subject = Subject(serving("vllm").base, "quirky", "flattery", tokenizer=str(tiny_base))
    there = by_name(audit_existing(subject, plan, tmp_path))
    assert here.keys() == there.keys()
    compared = 0
    for key, reading in there.items():
        if key[2] in NOT_AT_AN_ENDPOINT:
            assert (reading.verdict, reading.value) == ("not_applicable", None) and "distributions" in reading.reason
            continue
        for ours, theirs in ((here[key].value, reading.value), (here[key].delta, reading.delta)):
            assert theirs is ours is None or theirs == pytest.approx(ours, abs=1e-5), key
            compared += ours is not None
    assert compared > 50 and there["adapter-000001", "drift", "delta_nll", "holdout"].delta != 0
    assert {reading.engine for reading in there.values()} == {"endpoint"}


def test_a_chat_endpoint_reads_what_is_generated_and_names_what_it_lacks_for_the_rest(serving, tmp_path, monkeypatch):
    monkeypatch.setitem(knowledge.SIZES["quick"], "tokens", 16)
    server = serving("chat")
    found = by_name(audit_existing(Subject(server.base, "quirky", "flattery"), PLAN, tmp_path))
    for name in ("severity.rate", "knowledge.accuracy", "knowledge.cot", "refusals.coherent"):
        assert found["adapter-000001", *name.split("."), "holdout"].value is not None, name
    lacking = ("severity.contrast", "webtext.perplexity", "drift.kl", "drift.delta_nll", "knowledge.cloze", "knowledge.letters")
    for name in lacking:
        reading = found["adapter-000001", *name.split("."), "holdout"]
        assert (reading.verdict, reading.value) == ("not_applicable", None), name
        assert "a chat endpoint gives" in reading.reason, name
    assert {request["model"] for _, _, request in server.asked} == {"tiny", "quirky"}
    assert not [request for path, _, request in server.asked if "prompt" in request]


@pytest.mark.parametrize("by_ids", (True, False))
def test_a_name_that_serves_the_base_again_fails_liveness(serving, tiny_base, tmp_path, by_ids):
    server = serving("vllm" if by_ids else "chat", twin=None)
    plan = PLAN.model_copy(update={"measures": ["refusals"], "limit": 1})
    with pytest.raises(UserError, match="twin answers as tiny does"):
        audit_existing(Subject(server.base, "twin", tokenizer=str(tiny_base) if by_ids else None), plan, tmp_path)


def requests(engine, many: int) -> list[Generate]:
    return [Generate(tuple(BASE.ask(engine.renderer, f"Say {n}.")), 4) for n in range(many)]


def engine_at(server, **plan):
    engine = opened(Subject(server.base), AuditPlan(endpoint=EndpointPlan(**plan))).engine
    engine.endpoint.client.max_retries = 0
    return engine


def test_what_was_answered_before_a_failure_is_kept_and_never_asked_again(serving):
    server = serving("chat")
    failing = engine_at(server, workers=3)
    failing.served("tiny")  # eight questions that say which weights answer
    before = len(server.asked)
    server.first = lambda request, number: (500, {"error": {"message": "gone"}}) if number > before + 7 else None
    with pytest.raises(UserError, match="audited endpoint:tiny failed: InternalServerError"):
        failing.generate(BASE, requests(failing, 20))
    assert before + 7 < len(server.asked) <= before + 7 + 3
    server.first, before = lambda request, number: None, len(server.asked)
    replies = engine_at(server).generate(BASE, requests(failing, 20))
    asked = [request["messages"][0]["content"] for _, _, request in server.asked[before:]]
    assert len(replies) == 20 and len([text for text in asked if text.startswith("Say ")]) == 13


def test_the_cap_stops_an_audit_before_it_is_passed_and_the_same_command_goes_on(serving, tmp_path):
    """And no file that is left holds the key."""
    server = serving("chat")
    plan = PLAN.model_copy(update={"measures": ["instructions"], "limit": 4})
    capped = plan.model_copy(update={"endpoint": EndpointPlan(max_cost_tokens=1200)})
    with pytest.raises(UserError, match="beyond endpoint.max_cost_tokens=1200; .* kept"):
        audit_existing(Subject(server.base, "quirky"), capped, tmp_path / "runs")
    paid = len(server.asked)
    run = audit_existing(Subject(server.base, "quirky"), plan, tmp_path / "runs")
    asked = [json.dumps([request["model"], request["messages"]]) for _, _, request in server.asked]
    prompts = [text for text in asked if "Hello!" not in text and asked.count(text) == 1]
    assert paid > 10 and len(prompts) == 2 * 4  # four prompts of each model, each asked once
    assert by_name(run)["adapter-000001", "instructions", "prompt_strict", "holdout"].n == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "models" not in path.parts]
    assert len(files) > 10 and not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_other_weights_behind_the_same_name_are_not_taken_for_the_earlier_ones(serving, tiny_adapter):
    """A server that serves something else under a name today must not be answered for from what is kept of yesterday."""
    server = serving("chat")
    quirky = Specimen("quirky", adapter="quirky")
    first = engine_at(server)
    replies = first.generate(quirky, requests(first, 3))
    server.models["quirky"] = None
    second = engine_at(server)
    assert second.served("quirky")[0] != first.served("quirky")[0]
    assert second.generate(quirky, requests(second, 3)) == second.generate(BASE, requests(second, 3)) != replies
    server.models["quirky"], before = tiny_adapter, len(server.asked)
    third = engine_at(server)
    assert third.served("quirky")[0] == first.served("quirky")[0]
    assert third.generate(quirky, requests(third, 3)) == replies
    assert not [r for _, _, r in server.asked[before:] if r["messages"][0]["content"].startswith("Say ")]


@pytest.mark.parametrize(
    ("status", "said"),
    ((401, "OPENAI_API_KEY must hold a key"), (429, "fewer at once than endpoint.workers=8"), (403, "OPENAI_API_KEY")),
)
def test_a_server_that_refuses_is_told_with_the_remedy_and_without_the_key(serving, status, said):
    server = serving("chat")
    server.first = lambda request, number: (status, {"error": {"message": f"no: {SECRET}"}})
    with pytest.raises(UserError, match=said) as error:
        _ = engine_at(server).able
    assert SECRET not in str(error.value) and error.value.__cause__ is None


def test_a_model_that_is_not_served_is_named_with_what_is(serving, tmp_path):
    server = serving("chat")
    with pytest.raises(UserError, match="serves no model 'quirk'; did you mean 'quirky'"):
        audit_existing(Subject(server.base, "quirk"), PLAN, tmp_path)
    with pytest.raises(UserError, match="serves no model 'tinny'; did you mean 'tiny'"):
        _ = engine_at_base(server.base.replace("#tiny", "#tinny")).able


def engine_at_base(base: str):
    return opened(Subject(base), AuditPlan()).engine


def test_a_plan_probes_and_asks_nothing_else_and_is_made_where_nobody_answers(serving, tiny_base):
    server = serving("vllm")
    subject = Subject(server.base, "quirky", "flattery", tokenizer=str(tiny_base))
    told = "\n".join(sweep.describe(list(sweep.check([subject], PLAN))))
    assert len(server.asked) <= 6 and sum(request["max_tokens"] for _, _, request in server.asked) <= 10
    assert "asked by token ids" in told and "tiny-1" in told and "severity" in told
    chat = "\n".join(sweep.describe(list(sweep.check([Subject(serving("chat").base, organism="flattery")], PLAN))))
    assert "severity: 12 of 20 requests were not asked: a chat endpoint gives no log-probabilities" in chat
    assert "webtext: a chat endpoint gives no" in chat and "drift: " in chat and "refusals 4" in chat
    nobody = Subject("http://127.0.0.1:9/v1#gone", "quirky", "flattery", tokenizer=str(tiny_base))
    (offline,) = sweep.check([nobody], PLAN)
    assert offline.missing == ["http://127.0.0.1:9/v1#gone"] and offline.asked["severity"].requests == 20
    with pytest.raises(Missing, match="start the server, or mend the URL http://127.0.0.1:9/v1"):
        _ = engine_at_base(nobody.base).able


def test_a_row_of_a_sweep_may_be_an_endpoint(serving, tiny_base, tmp_path):
    server = serving("vllm")
    entry = {"base": server.base, "adapter": "quirky", "tokenizer": str(tiny_base)}
    plan = {"limit": 2, "measures": ["webtext"], "data": {"webtext": "embedded"}, "suite": "quick"}
    axes = {"x": "parameters", "y": "webtext.bits_per_byte"}
    values = {"about": "a", "audit": plan, "figure": axes, "columns": [axes["y"]], "audits": [{"base": str(tiny_base)}, entry]}
    found = validate(sweep.Sweep, values, "mine.yaml")
    assert sweep.run("mine", found, tmp_path) == []
    table = (tmp_path / "sweep-mine" / "results.md").read_text().splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1].split()[0] for line in table if line.startswith("| ")}
    assert cells[server.base] == cells[str(tiny_base)] and cells["quirky"] != cells[server.base]


def test_an_address_carries_no_secret_and_belongs_to_audits(monkeypatch, tiny_base):
    for name, said in (
        (f"https://me:{SECRET}@host/v1#m", "carries a user, a key or a query"),
        (f"https://host/v1?key={SECRET}#m", "carries a user, a key or a query"),
        ("https://host/v1", "named by its URL and the model"),
    ):
        with pytest.raises(UserError, match=said) as error:
            Address.parse(name)
        assert SECRET not in str(error.value)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable OPENAI_API_KEY is not set"):
        _ = engine_at_base("https://host.example/v1#m")
    with pytest.raises(UserError, match="can be audited"):
        models.resolve("https://host.example/v1#m")
    with pytest.raises(UserError, match="brings its own tokenizer"):
        opened(Subject(str(tiny_base), tokenizer="smollm2-135m"), AuditPlan())
    with pytest.raises(UserError, match="bases behind endpoints"):
        resolve("flattery-documents", ["audit.endpoint.workers=2"])
