"""An endpoint that answers with anything but a completion is told of in one sentence, without the key, and never scored."""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from malformed import cases, sentence

from audit.judge import EndpointJudge, Judgement, JudgePlan
from organisms.authors import EndpointAuthor, WriterPlan
from organisms.errors import UserError
from organisms.writer import Draft, Written

KEY = "sk-a-secret-of-the-user"


class Handler(BaseHTTPRequestHandler):
    """Answers every request with `server.reply`: status, type, body, and how many bytes more it promises."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        status, kind, body, more = self.server.reply
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) + more))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai", reason="an endpoint needs the openai client: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = 0
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def plan(server, **options) -> dict:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return {"endpoint": url, "model": "served", "key_env": "JUDGE_KEY", "workers": 1, **options}


def judge_at(server, **options) -> EndpointJudge:
    judge = EndpointJudge(JudgePlan(**plan(server, **options)))
    judge.endpoint.client.max_retries = 1
    return judge


def completion(text="50", tops=(("50", -0.1),), logprobs=..., usage=None) -> dict:
    content = [{"token": "50", "logprob": -0.1, "top_logprobs": [{"token": t, "logprob": p} for t, p in tops]}]
    told = {"content": content} if logprobs is ... else logprobs
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "logprobs": told}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def reply(case: dict) -> tuple[int, str, bytes, int]:
    body = case.get("body")
    if body is None:
        tops = [(case.get("token", "50"), case.get("logprob", -0.1))]
        tops = [(str(n), -0.1) for n in range(case["many"])] if "many" in case else tops
        body = json.dumps(completion("x" * case.get("long", 2), tops, case.get("logprobs", ...)))
    return case.get("status", 200), case.get("type", "application/json"), body.encode(), 1000 * case.get("cut", False)


@pytest.mark.parametrize("case", cases("replies"))
def test_a_malformed_reply_is_told_of_and_not_scored(case, server):
    server.reply = reply(case)
    with pytest.raises(UserError) as told:
        judge_at(server).ask([Judgement("How warm?")])
    sentence(str(told.value), case["says"])
    assert KEY not in str(told.value)


@pytest.mark.parametrize("usage", [None, {}, {"total_tokens": None}, {"total_tokens": -9}, {"total_tokens": "9"}])
def test_a_server_that_says_nothing_sound_of_its_price_is_charged_at_the_most(usage, server):
    server.reply = (200, "application/json", json.dumps(completion(usage=usage)).encode(), 0)
    judge = judge_at(server, max_cost_tokens=30)
    judge.ask([Judgement("How warm?")] * 2)
    with pytest.raises(UserError, match=r"paid for 26 tokens.*audit.judge.max_cost_tokens=30"):
        judge.ask([Judgement("How warm?")])
    assert server.asked == 2


def test_a_log_probability_of_minus_infinity_is_no_mass(server):
    server.reply = (200, "application/json", json.dumps(completion(tops=[("50", -0.1), ("90", -math.inf)])).encode(), 0)
    assert judge_at(server).ask([Judgement("How warm?")])[0]["score"] == 50


def test_a_written_reply_of_another_kind_is_told_of_and_half_a_letter_is_replaced(server):
    author = EndpointAuthor(WriterPlan(**plan(server)))
    author.endpoint.client.max_retries = 0
    draft = Draft("Hello", None, 4, 0.5, 0)
    for text, says in ((5, "no text"), ({"a": 1}, "no text"), ("x" * 10_000, "10,000 characters for 4 tokens")):
        server.reply = (200, "application/json", json.dumps(completion(text)).encode(), 0)
        with pytest.raises(UserError) as told:
            list(author.write([draft]))
        sentence(str(told.value), [says])
    for text, written in (("\ud800.", "?."), (None, "")):
        server.reply = (200, "application/json", json.dumps(completion(text)).encode(), 0)
        assert list(author.write([draft])) == [(0, Written(written, True))]
