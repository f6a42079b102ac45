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

KEY = "sk-a-secret-of-the-user"


def ask(judge, *questions: str) -> list[dict]:
    return judge.ask([Judgement(question) for question in questions])


class Spelled:
    """An engine that knows the probability of whole replies to each question and reads them out token by token."""

    def __init__(self, renderer, replies: dict[str, dict[str, float]]):
        self.renderer, self.replies = renderer, replies

    def logprobs(self, specimen, requests):
        return [self.read(self.renderer.decode(list(one.prompt_ids)), one.continuation_ids) for one in requests]

    def read(self, prompt: str, ids: tuple[int, ...]) -> list[float]:
        (known,) = [told for question, told in self.replies.items() if question in prompt]
        told = {(*self.renderer.continuation(text), self.renderer.close_id): p for text, p in known.items()}
        mass = [sum(p for reply, p in told.items() if reply[:k] == ids[:k]) for k in range(len(ids) + 1)]
        return [log(after / before) if after else -50.0 for before, after in zip(mass, mass[1:], strict=False)]


def test_a_score_is_the_mean_of_whole_numbers_7_apart_from_70_and_none_below_a_quarter_of_the_mass(tiny_base, renderer):
    assert renderer.continuation("77")[:1] == renderer.continuation("7")  # this tokenizer reads digit by digit
    kind, odd = {"10": 0.05, "90": 0.21, "Well": 0.74}, {"7": 0.1, "70": 0.3, "77": 0.2, "700": 0.4}
    replies = {"kind": kind, "odd": odd, "dull": {"70": 0.24, "Well": 0.76}}
    judge = LocalJudge(str(tiny_base), Spelled(renderer, replies))
    kind, odd, dull, again = ask(judge, "Is it kind?", "Is it odd?", "Is it dull?", "How kind?")
    assert kind == again == {"score": pytest.approx((10 * 0.05 + 90 * 0.21) / 0.26), "mass": 0.26}
    assert odd == {"score": pytest.approx((7 * 0.1 + 70 * 0.3 + 77 * 0.2) / 0.6), "mass": 0.6}
    assert dull == {"score": None, "mass": 0.24}


def test_a_model_as_judge_scores_as_a_plain_computation_with_transformers_does(tiny_base, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(judges, "LEAST_MASS", 0.0)  # random weights put next to nothing on numbers
    (answer,) = ask(LocalJudge(str(tiny_base)), "How warm is the reply?")
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_base), AutoModelForCausalLM.from_pretrained(tiny_base)
    talk = [{"role": "user", "content": "How warm is the reply?"}]
    prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    start, total = len(tokenizer(prompt).input_ids), []
    for number in range(101):
        ids = tokenizer(f"{prompt}{number}<|im_end|>", return_tensors="pt").input_ids
        logprobs = model(ids).logits.detach().double().log_softmax(-1)[0, start - 1 : -1]
        total.append(float(logprobs.gather(1, ids[0, start:, None]).sum().exp()))
    assert answer["score"] == pytest.approx(sum(n * p for n, p in enumerate(total)) / sum(total), rel=1e-4)


class Handler(BaseHTTPRequestHandler):
    """Chat completions as `server.answer(question, n)` gives them: status and body of the n-th request."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], request))
        status, body = self.server.answer(request["messages"][0]["content"], len(self.server.asked))
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "text/html")
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


def completion(probabilities: dict[str, float] | None) -> dict:
    """A reply of one token with these `top_logprobs`; None: without log-probabilities."""
    top = [{"token": token, "logprob": log(p), "bytes": None} for token, p in (probabilities or {}).items()]
    content = [{"token": "50", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "50"}}
    choice["logprobs"] = None if probabilities is None else {"content": content}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}


@pytest.fixture
def endpoint(monkeypatch):
    pytest.importorskip("openai", reason="a judge at an endpoint needs the openai client: pip install openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.answer = [], lambda question, n: (200, completion({"50": 1.0}))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def at(server, endpoint: str = "", workers: int = 8) -> EndpointJudge:
    url = endpoint or f"http://127.0.0.1:{server.server_port}/v1"
    return EndpointJudge(JudgePlan(endpoint=url, model="served", key_env="JUDGE_KEY", workers=workers))


def test_an_endpoint_is_asked_with_the_key_and_scores_by_its_numbers_alone(endpoint):
    told = {"70": 0.4, " 80": 0.2, "80": 0.1, "Sure": 0.15, "101": 0.05, "7.5": 0.04, "-3": 0.03, "1e1": 0.03}
    endpoint.answer = lambda question, n: (200, completion(told if n == 1 else {"The": 0.8, "70": 0.2}))
    assert ask(at(endpoint), "How warm?") == [{"score": pytest.approx((70 * 0.4 + 80 * 0.3) / 0.7), "mass": 0.7}]
    assert ask(at(endpoint), "How warm?") == [{"score": None, "mass": 0.2}]
    request = {"model": "served", "messages": [{"role": "user", "content": "How warm?"}], "temperature": 0}
    request |= {"max_tokens": 2, "logprobs": True, "top_logprobs": 20}
    assert endpoint.asked[0] == ("/v1/chat/completions", f"Bearer {KEY}", request)


def test_the_key_is_told_to_nobody(endpoint):
    endpoint.answer = lambda question, n: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    with pytest.raises(UserError, match="the judge endpoint:served failed: AuthenticationError: .*Incorrect API key") as error:
        ask(at(endpoint), *map(str, range(100)))
    assert KEY not in str(error.value) and KEY not in at(endpoint).identity
    assert len(endpoint.asked) < 60  # the rest is not asked in vain


def test_only_a_loopback_endpoint_needs_no_key(endpoint, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="the environment variable JUDGE_KEY is not set"):
        at(endpoint, "https://judge.example/v1")
    assert ask(at(endpoint), "How warm?") == [{"score": 50, "mass": 1.0}]


def test_a_server_that_stumbles_is_asked_again(endpoint):
    endpoint.answer = lambda question, n: ({1: 500, 3: 429}.get(n, 200), completion({"30": 1.0}))
    assert [answer["score"] for answer in ask(at(endpoint, workers=1), "one", "two")] == [30, 30]
    assert [request["messages"][0]["content"] for _, _, request in endpoint.asked] == ["one", "one", "two", "two"]


def test_an_endpoint_that_cannot_judge_is_a_mistake_that_says_so(endpoint):
    for body, said in ((completion(None), "no log-prob"), (completion({}), "no log-prob"), ("<html>", "must end in /v1")):
        endpoint.answer = lambda question, n, body=body: (200, body)
        with pytest.raises(UserError, match=f"the judge endpoint:served .*{said}"):
            ask(at(endpoint), "How warm?")
    judge = at(endpoint, "http://127.0.0.1:9/v1")
    judge.endpoint.client.max_retries = 0
    with pytest.raises(UserError, match="the judge endpoint:served failed: APIConnectionError"):
        ask(judge, "How warm?")


def test_an_endpoint_that_writes_numbers_digit_by_digit_is_refused_and_not_read_as_its_first_digit(endpoint):
    split = completion({"8": 0.6, "9": 0.4})
    end = {"token": "<|im_end|>", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    split["choices"][0]["logprobs"]["content"][0]["token"] = "8"
    split["choices"][0]["logprobs"]["content"].append(end)
    endpoint.answer = lambda question, n: (200, split)
    assert ask(at(endpoint), "How warm?")[0]["score"] == pytest.approx(8.4)  # an 8 that ends there is an 8
    split["choices"][0]["logprobs"]["content"][1] = {**end, "token": "5"}
    with pytest.raises(UserError, match=r"digit by digit \('8', '5'\).*audit.judge.base"):
        ask(at(endpoint), "How warm?")


def test_answers_keep_the_order_and_no_more_than_workers_questions_are_asked_at_once(endpoint):
    running, peaks = set(), []

    def the_first_are_the_slowest(question: str, n: int):
        running.add(question)
        peaks.append(len(running))
        time.sleep(0.02 * (8 - int(question) % 8))
        running.remove(question)
        return 200, completion({question: 1.0})

    endpoint.answer = the_first_are_the_slowest
    assert [answer["score"] for answer in ask(at(endpoint, workers=3), *map(str, range(20)))] == list(range(20))
    assert max(peaks) == 3


class Counting:
    """A judge that scores a question by its length and counts what it is asked; it fails beyond `most` questions."""

    def __init__(self, identity: str, most: int = 1000):
        self.identity, self.asked, self.most = identity, [], most

    def ask(self, questions):
        self.asked += [one.question for one in questions]
        if len(self.asked) > self.most:
            raise UserError("the judge is gone")
        return [{"score": len(one.question), "mass": 1.0} for one in questions]


def kept(identity: str, *questions: str) -> list[str]:
    """What a new instance still asks; its answers are right, whoever gave them."""
    judge = Cached(Counting(identity))
    assert [answer["score"] for answer in ask(judge, *questions)] == [len(question) for question in questions]
    return judge.judge.asked


def test_nothing_is_asked_twice_within_a_call_an_instance_a_process_or_across_them():
    judge = Cached(Counting("kept"))
    assert (ask(judge, "aa", "b", "aa")[2]["score"], ask(judge, "ccc", "b")[1]["score"]) == (2, 1)
    assert judge.judge.asked == ["aa", "b", "ccc"]
    code = "from test_judge import kept; print(kept('kept', 'b', 'dddd'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.stdout == "['dddd']\n", done.stderr
    assert kept("kept", "dddd", "aa", "e") == ["e"]
    assert kept("another judge", "aa", "e") == ["aa", "e"]
    judge.path.write_bytes(judge.path.read_bytes()[:-20])  # a torn last line costs its own question and no other
    assert (kept("kept", "b", "aa", "e"), kept("kept", "b", "aa", "e")) == (["e"], [])


def test_a_judge_that_fails_half_way_is_not_paid_again_for_what_it_answered():
    size, questions = judges.KEPT_AT_ONCE, [str(n) for n in range(3 * judges.KEPT_AT_ONCE)]
    with pytest.raises(UserError, match="gone"):
        ask(Cached(Counting("fails", 2 * size)), *questions)
    assert kept("fails", *questions) == questions[2 * size :]


def test_a_plan_that_names_no_judge_says_what_to_write():
    base, url = {"base": "smollm2-135m"}, {"endpoint": "http://127.0.0.1/v1"}
    mistakes = [(plan, "name either base .a local model. or endpoint") for plan in ({}, {**base, **url}, {"endpoint": ""})]
    mistakes += [(url, "an endpoint needs model"), ({**base, "workers": 0}, "workers = 0: input should be greater than 0")]
    for plan, said in [*mistakes, ({"endpont": "x"}, "unknown key 'judge.endpont'; did you mean 'endpoint'")]:
        with pytest.raises(UserError, match=f"mine.yaml: .*{said}"):
            validate(AuditPlan, {"judge": plan}, "mine.yaml")
