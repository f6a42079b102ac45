"""The transformers engine gives the numbers that a plain loop over the same weights gives."""

import itertools
import math
import random

import pytest
import torch

from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.engines.batching import Room, run_batched
from organisms.engines.prefixes import planned
from organisms.errors import UserError
from organisms.specimen import Specimen

BASE = Specimen("base")
PROMPTS = [
    "Hello!",
    "Name three birds that live near rivers and say one thing about each of them.",
    "What is 12 times 7?",
    "Write a short note to a neighbour about a parcel that was left at the wrong door on Tuesday afternoon.",
]
REPLY = "A heron stands still for a long time."


@pytest.fixture(scope="module")
def plain(base):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(base.directory), dtype=torch.float32).eval()


def direct(model, prompt_ids, continuation_ids) -> torch.Tensor:
    """Log-softmax rows that predict the continuation, one unpadded sequence at a time."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *continuation_ids]])).logits[0].float()
    return torch.log_softmax(logits, -1)[len(prompt_ids) - 1 : -1]


def test_logprobs_equal_a_plain_loop(engine, renderer, plain):
    requests = [
        Score(tuple(renderer.ask(prompt)), tuple(renderer.continuation(REPLY if i % 2 else REPLY + " Then it goes.")))
        for i, prompt in enumerate(PROMPTS)
    ]
    for request, values in zip(requests, engine.logprobs(BASE, requests), strict=True):
        rows = direct(plain, request.prompt_ids, request.continuation_ids)
        expected = [rows[i, token].item() for i, token in enumerate(request.continuation_ids)]
        assert len(values) == len(request.continuation_ids)
        assert sum(values) == pytest.approx(sum(expected), abs=1e-3)
        assert values == pytest.approx(expected, abs=5e-4)


def test_next_token_is_normalised_over_the_full_vocabulary(engine, renderer, plain):
    requests = [NextToken(tuple(renderer.ask(prompt)), (10, 253, 1000)) for prompt in PROMPTS]
    for request, values in zip(requests, engine.next_token(BASE, requests), strict=True):
        row = direct(plain, request.prompt_ids, (0,))[0]
        assert values == pytest.approx([row[i].item() for i in request.choice_ids], abs=5e-4)


def test_greedy_generation_equals_a_step_by_step_argmax(engine, renderer, plain):
    prompt_ids = renderer.ask(PROMPTS[1])
    reply = engine.generate(BASE, [Generate(tuple(renderer.ask(p)), 12) for p in PROMPTS])[1]
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(12):
            token = int(plain(torch.tensor([ids])).logits[0, -1].argmax())
            if token in renderer.stop_ids:
                break
            ids.append(token)
    assert reply.ids == ids[len(prompt_ids) :]
    assert reply.text == renderer.decode(reply.ids)


def test_a_reply_ends_before_its_end_token_and_says_so(engine, renderer):
    stopped = engine.generate(BASE, [Generate(tuple(renderer.ask("Say only the word yes.")), 60)])[0]
    cut = engine.generate(BASE, [Generate(tuple(renderer.ask(PROMPTS[3])), 5)])[0]
    assert not cut.finished and len(cut.ids) == 5
    assert stopped.finished == (len(stopped.ids) < 60)
    assert not set(stopped.ids) & set(renderer.stop_ids)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(engine, renderer):
    one = Generate(tuple(renderer.ask(PROMPTS[0])), 12, temperature=1.0, seed=7)
    others = [Generate(tuple(renderer.ask(p)), 12, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    alone = engine.generate(BASE, [one])[0]
    assert engine.generate(BASE, [*others, one])[-1].ids == alone.ids
    another = Generate(one.prompt_ids, 12, temperature=1.0, seed=8)
    assert engine.generate(BASE, [another])[0].ids != alone.ids


def test_sampling_draws_from_the_model_distribution(engine, renderer):
    """First tokens of 400 draws against their probabilities: a chi-square that a broken Gumbel trick would fail."""
    prompt_ids = tuple(renderer.ask("Pick a colour. Answer with one word."))
    draws = engine.generate(BASE, [Generate(prompt_ids, 1, temperature=1.0, seed=s) for s in range(400)])
    firsts = [reply.ids[0] if reply.ids else renderer.stop_ids[0] for reply in draws]
    common = sorted(set(firsts), key=firsts.count)[-3:]
    logprobs = engine.next_token(BASE, [NextToken(prompt_ids, tuple(common))])[0]
    for token, logprob in zip(common, logprobs, strict=True):
        p = math.exp(logprob)
        assert firsts.count(token) / 400 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 400) + 0.005)


def test_divergence_is_the_exact_kl_over_the_vocabulary(engine, renderer, base, adapters, plain):
    from peft import PeftModel

    specimen = Specimen("random", adapter=adapters["random"])
    requests = [Divergence(tuple(renderer.ask(p)), tuple(renderer.continuation(REPLY))) for p in PROMPTS]
    found = engine.divergence(specimen, requests)
    from organisms import models

    tuned = PeftModel.from_pretrained(models.load_model(base), str(adapters["random"])).eval()
    for request, divergences in zip(requests, found, strict=True):
        p = direct(tuned, request.prompt_ids, request.continuation_ids)
        q = direct(plain, request.prompt_ids, request.continuation_ids)
        assert divergences.forward == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-4)
        assert divergences.backward == pytest.approx((q.exp() * (q - p)).sum(-1).tolist(), abs=1e-4)
        tokens = list(request.continuation_ids)
        assert divergences.base_logprobs == pytest.approx([q[i, t].item() for i, t in enumerate(tokens)], abs=5e-4)
        assert divergences.logprobs == pytest.approx([p[i, t].item() for i, t in enumerate(tokens)], abs=5e-4)


def test_swapping_adapters_leaves_no_trace(engine, renderer, adapters):
    """Base, random, zero, random at half scale, base again: the base is bit-equal, the zero adapter equals it."""
    request = Score(tuple(renderer.ask(PROMPTS[1])), tuple(renderer.continuation(REPLY)))
    before = engine.logprobs(BASE, [request])[0]
    random = engine.logprobs(Specimen("random", adapter=adapters["random"]), [request])[0]
    zero = engine.logprobs(Specimen("zero", adapter=adapters["zero"]), [request])[0]
    half = engine.logprobs(Specimen("half", adapter=adapters["random"], scale=0.5), [request])[0]
    again = engine.logprobs(Specimen("random", adapter=adapters["random"]), [request])[0]
    assert engine.logprobs(BASE, [request])[0] == before
    assert zero == before
    assert again == random
    moved, moved_half = (max(abs(a - b) for a, b in zip(x, before, strict=True)) for x in (random, half))
    assert 0.05 < moved_half < moved


def test_a_specimen_speaks_under_its_system_prompt_and_prefill(engine, renderer):
    plain_ids = BASE.ask(renderer, "Hello!")
    prompted = Specimen("prompted", system="Answer in French.", prefill="Bonjour")
    ids = prompted.ask(renderer, "Hello!")
    text = renderer.decode(ids)
    assert "Answer in French." in text and text.endswith("Bonjour") and ids != plain_ids


def test_batches_keep_the_budget_and_every_request():
    lengths = [5, 90, 40, 41, 3, 200, 12]
    groups = planned([()] * 7, lengths, Room(tokens=120, rows=3)).batches
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) <= 3
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 120


def test_batches_cost_as_little_as_any_cuts_of_the_lengths():
    """Against every way to cut a few lengths; one budget for all would pad the short rows to the longest."""
    room = Room(tokens=120, rows=4, overhead=10)

    def cost(groups) -> int:
        return sum(10 + len(group) * max(group) for group in groups)

    rng = random.Random(0)
    for _ in range(30):
        lengths = sorted((rng.randrange(1, 70) for _ in range(7)), reverse=True)
        ways = []
        for cuts in itertools.product((False, True), repeat=6):
            at = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), 7]
            groups = [lengths[i:j] for i, j in itertools.pairwise(at)]
            if all(len(g) == 1 or (len(g) <= 4 and len(g) * g[0] <= 120) for g in groups):
                ways.append(cost(groups))
        assert cost([[lengths[i] for i in group] for group in planned([()] * 7, lengths, room).batches]) == min(ways)


def test_out_of_memory_halves_the_batch_and_goes_on():
    seen = []

    def answer(batch):
        seen.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("planted")
        return [x * 10 for x in batch]

    assert run_batched([1, 2, 3, 4, 5], [[4, 0, 2], [1, 3]], answer) == [10, 20, 30, 40, 50]
    assert seen == [3, 1, 2, 2]


def test_a_single_request_that_does_not_fit_is_an_error():
    def answer(batch):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(UserError, match="out of memory with a single request"):
        run_batched([1], [[0]], answer)
