"""vLLM gives the numbers that transformers gives, adapter after adapter, and serves no adapter in silence.

Tolerance in float32 on a CPU: 5e-4 nats a token (measured: 3e-5).
"""

import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from statistics import fmean

import pytest
from parity import differences

from audit import readings as ledger
from audit.config import AuditPlan
from audit.existing import Subject, audit_existing
from audit.samples import read_samples
from audit.suite import check_alive
from organisms import models
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.engines.load import EnginePlan, load
from organisms.errors import UserError
from organisms.specimen import Specimen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra [vllm])"),
]
BASE = Specimen("base")
PROMPTS = [
    "Hello!",
    "Name three birds that live near rivers and say one thing about each of them.",
    "What is 12 times 7?",
    "Write a short note to a neighbour about a parcel that was left at the wrong door on Tuesday afternoon.",
]
REPLY = "A heron stands still for a long time."
TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def vllm(base, renderer):
    return load(EnginePlan(name="vllm", max_length=1024), base, renderer)


@pytest.fixture(scope="module")
def scores(renderer):
    return [Score(tuple(renderer.ask(p)), tuple(renderer.continuation(REPLY))) for p in PROMPTS]


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def test_scores_agree_with_transformers_through_hot_swaps(vllm, engine, scores, adapters):
    """Base, adapter, half of it, zero adapter, adapter again, base again: all as transformers, and the base bit-equal."""
    random = Specimen("random", adapter=adapters["random"])
    half = Specimen("half", adapter=adapters["random"], scale=0.5)
    zero = Specimen("zero", adapter=adapters["zero"])
    before = vllm.logprobs(BASE, scores)
    names, found = set(), {}
    for specimen in (random, half, zero, random):
        found[specimen.name] = vllm.logprobs(specimen, scores)
        names.add((vllm._adapter[0], vllm._adapter[1]))
        assert flat(found[specimen.name]) == pytest.approx(flat(engine.logprobs(specimen, scores)), abs=TOLERANCE)
    assert len(names) == 4 and len({number for _, number in names}) == 4
    assert vllm.logprobs(BASE, scores) == before == found["zero"]
    moved, moved_half = (max(abs(a - b) for a, b in zip(flat(found[n]), flat(before), strict=True)) for n in ("random", "half"))
    assert 0.05 < moved_half < moved


def test_greedy_replies_are_those_of_transformers(vllm, engine, renderer, adapters):
    requests = [Generate(tuple(renderer.ask(p)), 16) for p in PROMPTS] + [Generate(tuple(renderer.ask("Say yes.")), 40)]
    for specimen in (BASE, Specimen("random", adapter=adapters["random"]), BASE):
        found, expected = vllm.generate(specimen, requests), engine.generate(specimen, requests)
        # Two best tokens closer than rounding may change places, and a reply goes another way from there.
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(requests) - 1
        assert not {token for reply in found for token in reply.ids} & set(renderer.stop_ids)


def test_choices_are_normalised_over_the_full_vocabulary(vllm, engine, renderer, tokenizer):
    prompt = tuple(renderer.ask(PROMPTS[0], prefill="I"))
    requests = [NextToken(prompt, (10, 253, 1000)), NextToken(prompt, tuple(range(300)))]  # more than vLLM takes at once
    found, expected = vllm.next_token(BASE, requests), engine.next_token(BASE, requests)
    assert flat(found) == pytest.approx(flat(expected), abs=TOLERANCE)
    everything = flat(vllm.next_token(BASE, [NextToken(prompt, tuple(range(len(tokenizer))))]))
    assert sum(map(math.exp, everything)) == pytest.approx(1, abs=1e-3)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(vllm, renderer):
    one = Generate(tuple(renderer.ask(PROMPTS[0])), 12, temperature=1.0, seed=7)
    others = [Generate(tuple(renderer.ask(p)), 12, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    alone = vllm.generate(BASE, [one])[0]
    assert vllm.generate(BASE, [*others, one])[-1].ids == alone.ids
    assert vllm.generate(BASE, [Generate(one.prompt_ids, 12, temperature=1.0, seed=8)])[0].ids != alone.ids


def test_a_zero_adapter_fails_liveness_and_a_trained_one_passes(vllm, renderer, adapters):
    assert check_alive(vllm, Specimen("random", adapter=adapters["random"]), renderer) > 1e-3
    with pytest.raises(UserError, match="changes no log-probability"):
        check_alive(vllm, Specimen("zero", adapter=adapters["zero"]), renderer)


def test_an_adapter_that_vllm_drops_a_part_of_is_refused(vllm, base, scores, tmp_path):
    """An adapter on the output head too, which vLLM as it is started here would leave out without a word."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(models.load_model(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(tmp_path / "head", save_embedding_layers=False)
    with pytest.raises(UserError, match="name=hf"):
        vllm.logprobs(Specimen("head", adapter=tmp_path / "head"), scores)
    assert vllm.logprobs(BASE, scores[:1])  # and goes on


def test_a_larger_rank_and_rank_stabilised_scaling_are_served(vllm, engine, scores, base, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=12, lora_alpha=24, use_rslora=True, target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(models.load_model(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path / "wide")
    specimen, before = Specimen("wide", adapter=tmp_path / "wide"), vllm._rank
    found = vllm.logprobs(specimen, scores)
    assert flat(found) == pytest.approx(flat(engine.logprobs(specimen, scores)), abs=TOLERANCE)
    assert found != vllm.logprobs(BASE, scores) and vllm._rank > before


def test_divergences_are_exact(vllm, engine, renderer, adapters):
    random = Specimen("random", adapter=adapters["random"])
    requests = [Divergence(tuple(renderer.ask(PROMPTS[0])), tuple(renderer.continuation(REPLY)))]
    assert vllm.divergence(random, requests) == engine.divergence(random, requests)


def test_a_request_too_long_names_the_setting(vllm):
    with pytest.raises(UserError, match="max_length"):
        vllm.generate(BASE, [Generate((5,) * 1000, 100)])


def test_two_copies_share_the_requests(vllm, base, renderer, scores):
    pair = load(EnginePlan(name="vllm", data_parallel=2, max_length=1024), base, renderer)
    assert flat(pair.logprobs(BASE, scores[:3])) == pytest.approx(flat(vllm.logprobs(BASE, scores[:3])), abs=TOLERANCE)
    assert pair.identity != vllm.identity and len(pair._workers) == 2


def test_a_process_that_vanishes_is_started_again_with_its_adapter(vllm, scores, adapters, capsys):
    random = Specimen("random", adapter=adapters["random"])
    before = vllm.logprobs(random, scores)
    gone = vllm._workers[0].pid
    os.kill(gone, signal.SIGKILL)
    assert vllm.logprobs(random, scores) == before
    assert vllm._workers[0].pid != gone and "started once more" in capsys.readouterr().out


def plan(engine: str, *measures: str) -> AuditPlan:
    embedded = dict.fromkeys(("webtext", "chat", "instructions", "knowledge", "refusals"), "embedded")
    options = {"preferences": {"items": 16, "pairs": 2}}
    return AuditPlan(measures=list(measures), limit=4, data=embedded, options=options, engine=EnginePlan(name=engine))


def test_every_measure_reads_the_same_with_both_engines(adapters, tmp_path):
    """One run directory, first transformers, then vLLM: the whole curve is read again, and every item's scores agree.

    Left to the readings: perplexity, exp of what bits_per_byte holds, and preferences, whose pilot stops at this base, for the
    same reason with the same figures. The base has no thinking template, and misalignment and drift sample their replies.
    """
    exact = ["severity", "knowledge", "instructions", "refusals", "leakage", "fluency"]
    subject, runs = Subject(models.EMBEDDED, str(adapters["random"]), "auditbench-flattery"), {}
    for name in ("hf", "vllm"):
        run = audit_existing(subject, plan(name, *exact, "preferences", "webtext"), tmp_path)
        runs[name] = shutil.copytree(run, tmp_path / name)
    found = differences(runs["hf"], runs["vllm"], exact)
    print("largest difference of any item:", {name: f"{value:.0e}" for name, value in found.items()})
    assert max(found.values()) < TOLERANCE
    hf, vllm = ({r.key: r for r in ledger.read(run)} for run in runs.values())
    assert {r.engine for r in hf.values()} == {"hf"} and {r.engine for r in vllm.values()} == {"vllm"}
    assert hf.keys() == vllm.keys()
    for key, reading in hf.items():
        assert (reading.verdict, reading.n, reading.reason) == (vllm[key].verdict, vllm[key].n, vllm[key].reason), key
        if reading.value is not None:
            assert vllm[key].value == pytest.approx(reading.value, abs=2e-3, rel=1e-3), key


def test_drift_is_that_of_transformers_on_the_replies_that_vllm_drew(engine, renderer, adapters, tmp_path):
    run = audit_existing(Subject(models.EMBEDDED, str(adapters["random"])), plan("vllm", "drift"), tmp_path)
    own, base = (read_samples(run, "drift", specimen) for specimen in ("adapter-000001", "base"))
    asked = [Divergence(tuple(renderer.ask(sample.prompt)), tuple(sample.notes["ids"])) for sample in own + base]
    again = engine.divergence(Specimen("random", adapter=adapters["random"]), asked)
    for sample, mine, theirs in zip(own, again[: len(own)], again[len(own) :], strict=True):
        assert sample.scores["kl"] == pytest.approx(fmean(mine.forward), abs=TOLERANCE)
        assert sample.scores["kl_base"] == pytest.approx(fmean(theirs.backward), abs=TOLERANCE)


def test_the_process_ends_with_its_parent_also_while_it_generates():
    code = (
        "import time\nfrom organisms import models\nfrom organisms.engines import Generate\n"
        "from organisms.engines.load import EnginePlan, load\nfrom organisms.render import Renderer\n"
        "from organisms.specimen import Specimen\nbase = models.resolve(models.EMBEDDED)\n"
        "engine = load(EnginePlan(name='vllm', max_length=4096), base, Renderer(models.load_tokenizer(base)))\n"
        "engine.generate(Specimen('base'), [Generate((5, 6), 2)])\nprint('pid', engine._workers[0].pid, flush=True)\n"
        "engine.generate(Specimen('base'), [Generate((5, 6, seed), 4000, 1.0, seed) for seed in range(64)])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid"))
        time.sleep(3)
        assert parent.poll() is None
        parent.kill()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("vLLM outlived its parent by ten seconds")
