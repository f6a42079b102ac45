"""vLLM's own OpenAI server, on loopback, reads what transformers reads in this process, measure by measure.

Tolerance in float32 on a CPU: 5e-4 nats a token (measured with vLLM 0.32: scores 3e-5, chosen tokens 5e-5, any item's score of
an audit 4e-6, delta_nll 3e-6; every greedy reply equal).
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from parity import differences

from audit import readings as ledger
from audit.config import AuditPlan
from audit.existing import Subject, audit_existing, opened
from audit.samples import read_samples
from organisms import models
from organisms.engines import Generate, NextToken, Score
from organisms.errors import UserError
from organisms.specimen import Specimen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra [vllm])"),
]
pytest.importorskip("openai", reason="an endpoint needs the openai client: pip install openai")
BASE, RANDOM = Specimen("base"), Specimen("random", adapter="random")
TOLERANCE = 5e-4
PROMPTS = ["Hello!", "What is 12 times 7?", "Write a short note to a neighbour about a parcel left at the wrong door."]
DATA = {"webtext": "embedded", "chat": "embedded", "instructions": "embedded", "knowledge": "embedded", "refusals": "embedded"}
# What a served model's generation_config.json may say; no request of ours may follow it.
DEFAULTS = {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.5, "eos_token_id": 2, "max_new_tokens": 7}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def url(base, adapters, tmp_path_factory):
    """A server of the embedded base as `base`, and of its adapters as `random` and `zero`."""
    folder = tmp_path_factory.mktemp("served")
    for file in base.directory.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(DEFAULTS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--model", str(folder), "--served-model-name", "base"]
    options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-batched-tokens", "1024"]
    options += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-target-modules", *LINEAR]
    options += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    log = (folder / "log").open("w+")
    environment = {**QUIET, **os.environ, "NO_PROXY": "127.0.0.1", "TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
    with subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True) as server:
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(server.pid, 15)


def _wait(server: subprocess.Popen, url: str, log, seconds: float = 1500) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(int(seconds)):
        try:
            opener.open(url, timeout=5)
            return
        except (urllib.error.URLError, TimeoutError):
            if server.poll() is not None:
                break
            time.sleep(1)
    log.seek(0)
    pytest.fail(f"the server did not start: {log.read()[-2000:]}")


@pytest.fixture(scope="module", autouse=True)
def no_proxy():
    os.environ["NO_PROXY"] = "127.0.0.1"


@pytest.fixture(scope="module")
def endpoint(url):
    return opened(Subject(f"{url}#base", tokenizer=models.EMBEDDED), AuditPlan()).engine


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def far(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for a, b in zip(flat(one), flat(other), strict=True))


def test_scores_choices_and_greedy_replies_are_those_of_transformers(endpoint, engine, renderer, adapters):
    """Base, adapter, base again; also where the server's own defaults would sample, penalise and cut off."""
    assert endpoint.able.extended and endpoint.able.gathers and endpoint.able.no_scores is None
    prompts = [tuple(renderer.ask(prompt)) for prompt in PROMPTS]
    score = [Score(ids, tuple(renderer.continuation("A heron stands still for a long time."))) for ids in prompts]
    choose = [NextToken(ids, (10, 253, 1000)) for ids in prompts] + [NextToken(prompts[0], tuple(range(200)))]
    replies = [Generate(ids, 16) for ids in prompts] + [Generate(tuple(renderer.ask("Say yes.")), 40)]
    replies += [Generate(tuple(renderer.ask("Name a bird.", prefill="I do not")), 12)]
    for specimen, local in ((BASE, BASE), (RANDOM, Specimen("random", adapter=adapters["random"])), (BASE, BASE)):
        found = far(endpoint.logprobs(specimen, score), engine.logprobs(local, score))
        chosen = far(endpoint.next_token(specimen, choose), engine.next_token(local, choose))
        print(f"{specimen.name}: scores {found:.1e}, choices {chosen:.1e} nats apart")
        assert found < TOLERANCE and chosen < TOLERANCE
        assert endpoint.generate(specimen, replies) == engine.generate(local, replies)


def test_sampling_follows_the_seed(endpoint, renderer):
    ids = tuple(renderer.ask(PROMPTS[0]))
    draws = [endpoint._generate("base", Generate(ids, 12, 1.0, seed)) for seed in (7, 7, 8)]  # past what is kept
    assert draws[0] == draws[1] != draws[2]


def test_a_zero_adapter_fails_liveness(endpoint):
    endpoint.check_alive(RANDOM)
    with pytest.raises(UserError, match="zero answers as base does"):
        endpoint.check_alive(Specimen("zero", adapter="zero"))


def audits(url: str, adapters: dict[str, Path], folder: Path, plan: AuditPlan) -> tuple[Path, Path]:
    """The same audit, here and behind the endpoint."""
    here = audit_existing(Subject(models.EMBEDDED, str(adapters["random"]), "flattery"), plan, folder / "here")
    subject = Subject(f"{url}#base", "random", "flattery", tokenizer=models.EMBEDDED)
    return here, audit_existing(subject, plan, folder / "there")


def test_every_measure_of_scores_and_greedy_replies_reads_the_same(url, adapters, tmp_path):
    measures = ["severity", "webtext", "knowledge", "instructions", "refusals", "fluency"]
    options = {"knowledge": {"forms": ["letters", "untemplated", "cloze"]}}
    plan = AuditPlan(measures=measures, limit=4, data=DATA, options=options)
    # Perplexity is exp of what bits_per_byte holds, so it is left to the readings.
    here, there = audits(url, adapters, tmp_path, plan)
    largest = max(differences(here, there, [name for name in measures if name != "webtext"]).values())
    print(f"largest difference of a score: {largest:.1e}")
    assert largest < TOLERANCE
    readings, others = ({r.key: r for r in ledger.read(run)} for run in (here, there))
    assert readings.keys() == others.keys()
    for key, reading in readings.items():
        assert (reading.value is None) == (others[key].value is None) and reading.verdict == others[key].verdict, key
        if reading.value is not None:
            assert others[key].value == pytest.approx(reading.value, abs=TOLERANCE, rel=TOLERANCE), key


@pytest.mark.parametrize("elicitation", ("labels", "content"))
def test_preferences_read_the_same(url, adapters, tmp_path, elicitation):
    options = {"preferences": {"items": 16, "pairs": 2, "elicitation": elicitation}}
    here, there = audits(url, adapters, tmp_path, AuditPlan(measures=["preferences"], options=options))
    ours, theirs = ({r.key: r for r in ledger.read(run)} for run in (here, there))
    assert ours.keys() == theirs.keys()
    for key, reading in ours.items():
        assert theirs[key].verdict == reading.verdict and theirs[key].reason == reading.reason, key
        assert theirs[key].value == pytest.approx(reading.value, abs=1e-3), key


def test_delta_nll_is_that_of_transformers_on_the_same_replies(url, engine, renderer, adapters, tmp_path):
    """Its replies are sampled, which no two engines do alike: those of the endpoint are scored here again."""
    subject = Subject(f"{url}#base", "random", tokenizer=models.EMBEDDED)
    run = audit_existing(subject, AuditPlan(measures=["drift"], limit=6, data=DATA), tmp_path)
    base, own = (read_samples(run, "drift", name) for name in ("base", "adapter-000001"))
    requests = [Score(tuple(renderer.ask(s.prompt)), tuple(s.notes["ids"])) for s in base]
    values = [engine.logprobs(one, requests) for one in (BASE, Specimen("random", adapter=adapters["random"]))]
    expected = [sum(a) / len(a) - sum(b) / len(b) for a, b in zip(*values, strict=True)]
    found = [sample.scores["delta_nll"] for sample in own]
    print(f"largest difference of delta_nll: {max(abs(a - b) for a, b in zip(found, expected, strict=True)):.1e} nats a token")
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert {r.verdict for r in ledger.read(run) if r.metric.startswith("kl")} == {"not_applicable"}


def test_by_messages_the_server_renders_as_we_do_and_replies_alike(url, engine, renderer):
    chat = opened(Subject(f"{url}#base"), AuditPlan()).engine
    asked = [Generate(tuple(BASE.ask(chat.renderer, prompt, system="Be brief.")), 16) for prompt in PROMPTS]
    local = [Generate(tuple(BASE.ask(renderer, prompt, system="Be brief.")), 16) for prompt in PROMPTS]
    found, expected = chat.generate(BASE, asked), engine.generate(BASE, local)
    assert [(reply.text, reply.finished) for reply in found] == [(reply.text, reply.finished) for reply in expected]
