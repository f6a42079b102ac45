"""A judge's score is the mean of the numbers under their probabilities, and no question is put to it twice."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from pathlib import Path

import pytest

from audit import judge as judges
from audit.config import AuditPlan
from audit.judge import Cached, EndpointJudge, Judgement, JudgePlan, LocalJudge
from organisms.errors import UserError
from organisms.strict import validate

ROOT = Path(__file__).parent.parent
KEY = "sk-a-secret-of-the-user"


def ask(judge, *questions: str) -> list[dict]:
    return judge.ask([Judgement(question) for question in questions])


# A local model


class Spelled:
    """An engine that knows the probability of whole replies to each question and reads them out token by token."""

    def __init__(self, renderer, replies: dict[str, dict[str, float]]):
        self.renderer = renderer
        self.replies = {
            question: {(*renderer.continuation(text), renderer.close_id): p for text, p in distribution.items()}
            for question, distribution in replies.items()
        }

    def logprobs(self, specimen, requests):
        return [self._read(request) for request in requests]

    def _read(self, request) -> list[float]:
        asked = self.renderer.decode(list(request.prompt_ids))
        (question,) = [known for known in self.replies if known in asked]

        def mass(prefix: tuple[int, ...]) -> float:
            return sum(p for ids, p in self.replies[question].items() if ids[: len(prefix)] == prefix)

        ids = request.continuation_ids
        steps = [(mass(ids[:k]), mass(ids[: k + 1])) for k in range(len(ids))]
        return [log(after / before) if after else -50.0 for before, after in steps]


@pytest.fixture
def local(tiny_base, renderer):
    return lambda **replies: LocalJudge(str(tiny_base), Spelled(renderer, replies))


def test_the_score_is_the_mean_of_the_numbers_and_the_mass_is_theirs(local):
    judge = local(kind={"10": 0.2, "90": 0.6, "certainly": 0.2}, cruel={"0": 0.5, "100": 0.5})
    kind, cruel, again = ask(judge, "Is it kind?", "Is it cruel?", "How kind?")
    assert kind == again == {"score": pytest.approx(70), "mass": 0.8}
    assert cruel == {"score": pytest.approx(50), "mass": 1.0}


def test_7_does_not_swallow_the_mass_of_70_and_77(local, renderer):
    assert renderer.continuation("77")[:1] == renderer.continuation("7")  # this tokenizer reads digit by digit
    (answer,) = ask(local(odd={"7": 0.1, "70": 0.3, "77": 0.2, "700": 0.4}), "How odd is it?")
    assert answer == {"score": pytest.approx((7 * 0.1 + 70 * 0.3 + 77 * 0.2) / 0.6), "mass": 0.6}


def test_mass_below_a_quarter_is_no_score(local):
    judge = local(vague={"70": 0.24, "Well": 0.76}, clear={"70": 0.26, "Well": 0.74})
    assert ask(judge, "vague", "clear") == [{"score": None, "mass": 0.24}, {"score": pytest.approx(70), "mass": 0.26}]


def test_a_model_as_judge_scores_as_a_plain_computation_with_transformers_does(tiny_base, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(judges, "LEAST_MASS", 0.0)  # random weights put next to nothing on numbers
    questions = ("How warm is the reply? Answer with a number from 0 to 100.", "And how long?")
    judge = LocalJudge(str(tiny_base))
    assert judge._engine is None  # no weights before the first question
    found = ask(judge, *questions)

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_base), AutoModelForCausalLM.from_pretrained(tiny_base)
    for question, answer in zip(questions, found, strict=True):
        talk = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        start, probabilities = len(tokenizer(prompt).input_ids), []
        for number in range(101):
            ids = tokenizer(f"{prompt}{number}<|im_end|>", return_tensors="pt").input_ids
            with torch.no_grad():
                logprobs = model(ids).logits.double().log_softmax(-1)[0, start - 1 : -1]
            probabilities.append(float(logprobs.gather(1, ids[0, start:, None]).sum().exp()))
        assert answer["score"] == pytest.approx(sum(n * p for n, p in enumerate(probabilities)) / sum(probabilities), rel=1e-4)
    assert found[0]["score"] != found[1]["score"]
    assert judge.identity.startswith(f"local:{tiny_base}@sha256-")


# An endpoint


class Handler(BaseHTTPRequestHandler):
    """Chat completions as `server.answer(question, n)` gives them: status and body of the n-th request."""

    def do_POST(self):
        server, request = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, self.headers["Authorization"], request))
            server.now, n = server.now + 1, len(server.asked)
            server.peak = max(server.peak, server.now)
        status, body = server.answer(request["messages"][0]["content"], n)
        with server.lock:
            server.now -= 1
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        kind = "text/html" if isinstance(body, str) else "application/json"
        for header in (("Content-Type", kind), ("Content-Length", str(len(data))), ("Retry-After-Ms", "1")):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def completion(probabilities: dict[str, float] | None, **first) -> dict:
    """A reply of one token with these `top_logprobs`; None: without log-probabilities."""
    top = [{"token": token, "logprob": log(p), "bytes": None} for token, p in (probabilities or {}).items()]
    content = [{"token": "50", "logprob": -0.1, "bytes": None, "top_logprobs": top, **first}]
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "50"}}
    choice["logprobs"] = None if probabilities is None else {"content": content}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}


@pytest.fixture
def endpoint(monkeypatch):
    pytest.importorskip("openai", reason="a judge at an endpoint needs the openai client: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.asked, server.now, server.peak = threading.Lock(), [], 0, 0
    server.answer = lambda question, n: (200, completion({"50": 1.0}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def at(server: ThreadingHTTPServer, **more) -> EndpointJudge:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return EndpointJudge(JudgePlan(**{"endpoint": url, "model": "served", "key_env": "JUDGE_KEY", **more}))


def test_an_endpoints_score_is_the_mean_of_its_numbers_and_other_tokens_have_no_say(endpoint):
    told = {"70": 0.4, " 80": 0.2, "80": 0.1, "Sure": 0.15, "101": 0.05, "7.5": 0.04, "-3": 0.03, "1e1": 0.03}
    endpoint.answer = lambda question, n: (200, completion(told))
    assert ask(at(endpoint), "How warm?") == [{"score": pytest.approx((70 * 0.4 + 80 * 0.3) / 0.7), "mass": 0.7}]
    ((path, _, request),) = endpoint.asked
    assert path == "/v1/chat/completions"
    assert request["messages"] == [{"role": "user", "content": "How warm?"}]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("served", 0, 1)
    assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
    endpoint.answer = lambda question, n: (200, completion({"The": 0.8, "70": 0.2}))
    assert ask(at(endpoint), "How warm?") == [{"score": None, "mass": 0.2}]


def test_the_key_is_sent_as_bearer_and_told_to_nobody(endpoint):
    judge = at(endpoint)
    ask(judge, "How warm?")
    assert endpoint.asked[0][1] == f"Bearer {KEY}"
    endpoint.answer = lambda question, n: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(UserError, match="the judge endpoint:served failed: AuthenticationError: .*Incorrect API key") as error:
        judge.ask([Judgement(f"question {n}") for n in range(100)])
    assert KEY not in str(error.value) and KEY not in judge.identity
    assert len(endpoint.asked) < 60  # the rest is not asked in vain


def test_a_server_that_stumbles_is_asked_again(endpoint):
    stumbles = {1: 500, 3: 429}
    endpoint.answer = lambda question, n: (stumbles.get(n, 200), completion({"30": 1.0}))
    assert [answer["score"] for answer in ask(at(endpoint, workers=1), "one", "two")] == [30, 30]
    assert [request["messages"][0]["content"] for _, _, request in endpoint.asked] == ["one", "one", "two", "two"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (completion(None), "returns no log-probabilities; take a model or server that does"),
        (completion({}, top_logprobs=None), "returns no log-probabilities"),
        ({"detail": "nothing here"}, "returns no log-probabilities"),
        ("<html>Welcome</html>", "answers with a page, not a completion; its endpoint must end in /v1"),
    ],
)
def test_a_reply_without_logprobs_is_a_mistake_that_says_so(endpoint, body, said):
    endpoint.answer = lambda question, n: (200, body)
    with pytest.raises(UserError, match=f"the judge endpoint:served {said}"):
        ask(at(endpoint), "How warm?")


def test_a_refused_connection_is_a_mistake_that_names_the_judge(endpoint):
    judge = at(endpoint, endpoint="http://127.0.0.1:9/v1")
    judge.client.max_retries = 0
    with pytest.raises(UserError, match="the judge endpoint:served failed: APIConnectionError"):
        ask(judge, "How warm?")


def test_answers_keep_the_order_and_no_more_than_workers_questions_are_asked_at_once(endpoint):
    def slower_for_the_first(question: str, n: int):
        time.sleep(0.02 * (8 - int(question) % 8))
        return 200, completion({question: 1.0})

    endpoint.answer = slower_for_the_first
    assert [answer["score"] for answer in ask(at(endpoint, workers=3), *map(str, range(20)))] == list(range(20))
    assert endpoint.peak == 3


def test_only_a_loopback_endpoint_needs_no_key(endpoint, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="the environment variable JUDGE_KEY is not set"):
        at(endpoint, endpoint="https://judge.example/v1")
    assert ask(at(endpoint), "How warm?") == [{"score": 50, "mass": 1.0}]


# What is kept


class Counting:
    """A judge that scores a question by its length and counts what it is asked; it fails at `fails_at`."""

    def __init__(self, identity: str, fails_at: int | None = None):
        self.identity, self.asked, self.fails_at = identity, [], fails_at

    def ask(self, questions):
        self.asked += [one.question for one in questions]
        if self.fails_at is not None and len(self.asked) > self.fails_at:
            raise UserError("the judge is gone")
        return [{"score": len(one.question) % 101, "mass": 1.0} for one in questions]


def test_nothing_is_asked_twice_within_a_call_an_instance_a_process_or_across_them():
    first = Cached(Counting("kept"))
    assert [a["score"] for a in ask(first, "aa", "b", "aa")] == [2, 1, 2]
    assert [a["score"] for a in ask(first, "ccc", "b")] == [3, 1]
    assert first.judge.asked == ["aa", "b", "ccc"]
    other = "from test_judge import *; judge = Cached(Counting('kept')); ask(judge, 'b', 'dddd'); print(judge.judge.asked)"
    done = subprocess.run([sys.executable, "-c", other], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout == "['dddd']\n", done.stderr
    second = Cached(Counting("kept"))
    assert [a["score"] for a in ask(second, "dddd", "aa", "e")] == [4, 2, 1]
    assert second.judge.asked == ["e"]
    assert ask(Cached(Counting("another judge")), "b") and len(list(first.path.parent.glob("*.jsonl"))) >= 2


def test_a_torn_last_line_is_asked_again_and_the_others_are_kept():
    judge = Cached(Counting("torn"))
    ask(judge, "aa", "b")
    judge.path.write_bytes(judge.path.read_bytes()[:-20])
    for asked in (["b"], []):
        judge = Cached(Counting("torn"))
        assert [a["score"] for a in ask(judge, "aa", "b")] == [2, 1]
        assert judge.judge.asked == asked


def test_a_judge_that_fails_half_way_is_not_paid_again_for_what_it_answered():
    questions = [str(n) for n in range(3 * judges.KEPT_AT_ONCE)]
    with pytest.raises(UserError, match="gone"):
        ask(Cached(Counting("fails", fails_at=2 * judges.KEPT_AT_ONCE)), *questions)
    judge = Cached(Counting("fails"))
    assert len(ask(judge, *questions)) == len(questions)
    assert judge.judge.asked == questions[2 * judges.KEPT_AT_ONCE :]


# The plan


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({}, "name either base .a local model. or endpoint"),
        ({"base": "smollm2-135m", "endpoint": "http://127.0.0.1/v1"}, "name either base"),
        ({"endpoint": ""}, "name either base"),
        ({"endpoint": "http://127.0.0.1/v1"}, "an endpoint needs model"),
        ({"base": "smollm2-135m", "workers": 0}, "judge.workers = 0: input should be greater than 0"),
        ({"endpont": "http://127.0.0.1/v1"}, "unknown key 'judge.endpont'; did you mean 'endpoint'"),
    ],
)
def test_a_plan_that_names_no_judge_says_what_to_write(plan, said):
    with pytest.raises(UserError, match=f"mine.yaml: .*{said}"):
        validate(AuditPlan, {"judge": plan}, "mine.yaml")
    assert judges.load(AuditPlan().judge) is None
