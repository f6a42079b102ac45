"""A prefix that several requests share is computed once, and nobody can tell from the numbers."""

import dataclasses
import random

import pytest
import torch

from organisms.engines import Divergence, Generate, NextToken, Score, forward
from organisms.engines.batching import Room
from organisms.engines.prefixes import LEAST, distinct, plan, planned, shared
from organisms.specimen import Specimen

BASE = Specimen("base")
LONG = tuple(range(100, 140))


def computed(prompts, lengths) -> int:
    """Tokens to compute when the prompts share prefixes of these lengths."""
    prefixes = {p[:n] for p, n in zip(prompts, lengths, strict=True)}
    return sum(map(len, prefixes)) + sum(len(p) - n for p, n in zip(prompts, lengths, strict=True))


def test_equal_prompts_share_all_and_strangers_nothing():
    assert shared([LONG, LONG, LONG]) == [40, 40, 40]
    assert shared([LONG, tuple(range(40))]) == [0, 0]
    assert shared([]) == [] and shared([LONG]) == [0]


def test_a_common_beginning_is_shared_up_to_where_prompts_differ():
    assert shared([(*LONG, 1, 2, 3), (*LONG, 4), LONG]) == [40, 40, 40]
    assert shared([(1, 2, 3), (1, 2, 4)]) == [0, 0]  # too short to be worth a forward


def test_the_deeper_groups_win_where_they_save_more():
    few_shot = [(*LONG, *range(k, k + 60)) for k in (200, 300)]
    prompts = [(*block, question) for block in few_shot for question in range(5)]
    assert shared(prompts) == [100] * 10
    one_long_pair = [(*LONG, *range(200, 210), 1), (*LONG, *range(200, 210), 2), *((*LONG, k) for k in range(20))]
    assert shared(one_long_pair) == [40] * 22


def test_sharing_never_costs_more_and_groups_do_share():
    rng = random.Random(0)
    for _ in range(50):
        stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(30))) for _ in range(4)]
        prompts = [(*rng.choice(stems), *(rng.randrange(3) for _ in range(rng.randrange(12)))) for _ in range(12)]
        lengths = shared(prompts)
        assert computed(prompts, lengths) <= sum(map(len, prompts))
        prefixes = [p[:n] for p, n in zip(prompts, lengths, strict=True) if n]
        assert all(len(prefix) >= LEAST and prefixes.count(prefix) > 1 for prefix in prefixes)


def test_distinct_beginnings_are_those_of_the_prefix_tree():
    rng = random.Random(2)
    prompts = [tuple(rng.randrange(2) for _ in range(rng.randrange(12))) for _ in range(30)]
    assert distinct(prompts) == len({prompt[:n] for prompt in prompts for n in range(1, len(prompt) + 1)})
    assert distinct([]) == distinct([()]) == 0


def test_batches_hold_every_row_once_and_keep_sharers_apart_from_others():
    prompts = [(*LONG, k) for k in range(30)] + [tuple(range(500 + 40 * k, 540 + 40 * k)) for k in range(10)]
    found = planned(prompts, [len(p) + 5 for p in prompts], Room(tokens=120, rows=64))
    assert found.prefixes == [40] * 30 + [0] * 10
    assert sorted(i for batch in found.batches for i in batch) == list(range(40))
    for batch in found.batches:
        assert len({bool(found.prefixes[i]) for i in batch}) == 1
        assert len(batch) * max(len(prompts[i]) + 5 - found.prefixes[i] for i in batch) <= 120
    assert [len(block) for block in found.blocks] == [2, 5]  # 30 rows of 46 tokens would need 15 batches unshared


def test_what_is_kept_between_batches_has_room():
    """Forty prefixes of 40 tokens, ten rows each: in blocks of ten prefixes, and behind them no more rows than fit."""
    prompts = [(*range(100 * k, 100 * k + 40), n) for k in range(40) for n in range(10)]
    found = planned(prompts, [41] * 400, Room(tokens=4096, rows=64, overhead=16, cached=410))
    assert found.prefixes == [40] * 400
    assert sorted(i for batch in found.batches for i in batch) == list(range(400))
    for block in found.blocks:
        assert len({prompts[i][:40] for batch in block for i in batch}) == 10
        assert all(len(batch) * 41 <= 410 for batch in block)


def test_short_prefixes_do_not_stand_among_long_ones_where_attending_to_the_padding_costs_more():
    prompts = [(*range(length, 2 * length), n, n, n) for length in (1000, 100, 90) for n in range(20)]
    for attended, blocks in ((float("inf"), 1), (1000, 2)):
        room = Room(tokens=4096, rows=64, overhead=64, attended=attended)
        assert len(plan(prompts, list(map(len, prompts)), [len(p) - 3 for p in prompts], room).blocks) == blocks
    assert Room(100, 8, overhead=5, attended=100).cost(2, 10, 40) == 5 + 20 * 1.5


def test_what_is_shared_saves_more_than_its_forwards_and_its_padding_cost():
    """Few pairs that share ten tokens save no forward; many do, and so do few that share many tokens."""
    pairs = [(*range(1000 * k, 1000 * k + 10), *range(7 * n, 8 * n)) for k in range(1, 5) for n in (5, 20 * k)]
    assert any(shared(pairs))
    assert planned(pairs, list(map(len, pairs)), Room(tokens=4096, rows=64, overhead=64)).prefixes == [0] * len(pairs)
    few_shot = [(*range(1000 * k, 1000 * k + 400), *range(n, n + n)) for k in range(1, 4) for n in range(5, 60, 11)]
    lengths = list(map(len, few_shot))
    found = planned(few_shot, lengths, Room(tokens=4096, rows=64, overhead=64))
    assert found.prefixes == [400] * len(few_shot)
    padded = 3 * 400 + sum(len(batch) * max(lengths[i] - 400 for i in batch) for batch in found.batches)
    assert found.cost == 64 + padded + 64 * len(found.batches) < sum(lengths) / 2


def test_no_plan_costs_more_than_one_without_sharing():
    rng, room = random.Random(1), Room(tokens=200, rows=8, overhead=16)
    for _ in range(30):
        stems = [tuple(rng.randrange(3) for _ in range(rng.randrange(60))) for _ in range(4)]
        prompts = [(*rng.choice(stems), *(rng.randrange(3) for _ in range(rng.randrange(12)))) for _ in range(20)]
        lengths = [len(p) + rng.randrange(1, 9) for p in prompts]
        found = planned(prompts, lengths, room)
        assert found.cost <= plan(prompts, lengths, [0] * 20, room).cost
        assert sorted(i for batch in found.batches for i in batch) == list(range(20))


def test_what_prefixes_have_in_common_is_shared_once_more():
    """Pairs of continuations behind unlike questions behind one header, as preferences are asked by content."""
    asked = [(*LONG, *range(1000 * k, 1000 * k + 40)) for k in range(1, 21)]
    prompts = [question for question in asked for _ in range(2)]
    found = planned(prompts, [80 + n for n in (5, 6)] * 20, Room(tokens=4096, rows=64, overhead=64))
    assert found.prefixes == [80] * 40
    assert found.cost == 3 * 64 + 40 + 20 * 40 + 40 * 6 and len(found.batches) == 1


def requests(renderer):
    """Questions with several continuations each, under one system prompt, of unlike lengths."""
    questions = ["Name a bird.", "Which of these is a river: the Danube, the Alps, or the Sahara?", "Say hello to my aunt."]
    replies = ["A heron.", "The Danube is one, as far as I know.", "No", "Hello there, dear aunt of my friend!"]
    return [(tuple(renderer.ask(q)), tuple(renderer.continuation(r))) for q in questions for r in replies]


class Depths:
    """Counts how many prefixes are being computed for one another at once: the levels on which they are shared."""

    def __init__(self, monkeypatch):
        self.depth = self.deepest = 0
        cached = forward.Forward.cached

        def counted(*given):
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)
            try:
                return cached(*given)
            finally:
                self.depth -= 1

        monkeypatch.setattr(forward.Forward, "cached", counted)


@pytest.mark.parametrize("overhead", [0, 64])
@pytest.mark.parametrize("adapter", [None, "random"])
def test_shared_and_unshared_numbers_agree(engine, renderer, adapters, monkeypatch, adapter, overhead):
    """overhead 0: everything that can be shared is, on two levels."""
    specimen = Specimen("x", adapter=adapters[adapter]) if adapter else BASE
    asked = requests(renderer)
    scores = [Score(*one) for one in asked]
    nexts = [NextToken(prompt, (10, 253, 1000)) for prompt, _ in asked]
    kls = [Divergence(*one) for one in asked]
    assert any(shared([prompt[:-1] for prompt, _ in asked]))
    monkeypatch.setattr("organisms.engines.hf.OVERHEAD", {"cpu": overhead, "gpu": overhead})
    depths = Depths(monkeypatch)
    together = engine.logprobs(specimen, scores), engine.next_token(specimen, nexts), engine.divergence(specimen, kls)
    assert depths.deepest == (2 if overhead == 0 else 1)
    monkeypatch.setattr(type(engine), "_shares_prefixes", False)
    alone = engine.logprobs(specimen, scores), engine.next_token(specimen, nexts), engine.divergence(specimen, kls)
    for a, b in zip(together[0] + together[1], alone[0] + alone[1], strict=True):
        assert a == pytest.approx(b, abs=2e-4)
    for a, b in zip(together[2], alone[2], strict=True):
        for values, others in zip(dataclasses.astuple(a), dataclasses.astuple(b), strict=True):
            assert values == pytest.approx(others, abs=2e-4)


@pytest.mark.parametrize("overhead", [0, 1000])
@pytest.mark.parametrize("adapter", [None, "random"])
def test_replies_are_the_same_with_and_without_a_shared_prefix(engine, renderer, adapters, monkeypatch, adapter, overhead):
    """Greedy and sampled; prompts of unlike length, prefilled in one batch with padding or in several, put together."""
    monkeypatch.setattr("organisms.engines.hf.OVERHEAD", {"cpu": overhead, "gpu": overhead})
    parts = []
    stacked = forward.stacked
    monkeypatch.setattr(forward, "stacked", lambda done: parts.append(len(done)) or stacked(done))
    specimen = Specimen("x", adapter=adapters[adapter]) if adapter else BASE
    prompts = ["Name a bird.", "Which of these is a river: the Danube, the Alps, or the Sahara?", "Say hello."]
    asked = [Generate(tuple(renderer.ask(p)), 12, temperature, k) for k, p in enumerate(prompts) for temperature in (0.0, 1.0)]
    together = engine.generate(specimen, asked)
    assert bool(parts) == (overhead == 0)
    monkeypatch.setattr(type(engine), "_shares_prefixes", False)
    assert [reply.ids for reply in together] == [reply.ids for reply in engine.generate(specimen, asked)]


def test_a_prefix_is_computed_once_for_all_of_its_batches_and_by_each_where_memory_is_short(engine, renderer, monkeypatch):
    """Memory runs out once, while the rests of the first batch are computed: nothing is kept from then on, nothing is lost."""
    asked = [Score(*one) for one in requests(renderer)]
    monkeypatch.setattr("organisms.engines.hf.OVERHEAD", {"cpu": 0, "gpu": 0})
    computed, run = [], forward.run

    def watched(model, ids, mask, keep, **options):
        if fails and options.get("past_key_values") is not None and keep > 1:
            fails.pop()
            raise torch.OutOfMemoryError("planted")
        computed.append(ids.numel())
        return run(model, ids, mask, keep, **options)

    monkeypatch.setattr(forward, "run", watched)
    fails = []
    expected, once = engine.logprobs(BASE, asked), sum(computed)
    rests = sum(len(one.continuation_ids) for one in asked)
    assert distinct([one.prompt_ids[:-1] for one in asked]) <= once <= distinct([one.prompt_ids[:-1] for one in asked]) + rests
    computed.clear()
    fails = [True]
    again = engine.logprobs(BASE, asked)
    assert not fails and sum(computed) > once
    for a, b in zip(expected, again, strict=True):
        assert a == pytest.approx(b, abs=2e-4)


def test_a_base_with_attention_windows_does_not_share(renderer, tokenizer, tmp_path):
    """Padding behind a shared prefix would stand inside the window, so such rows are computed whole."""
    from transformers import MistralConfig, MistralForCausalLM

    from organisms import models
    from organisms.engines.hf import HFEngine

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    model = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), sliding_window=8, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = HFEngine(models.resolve(str(tmp_path)), renderer)
    assert not engine._shares_prefixes
    asked = [Score(*one) for one in requests(renderer)]
    for request, values in zip(asked, engine.logprobs(BASE, asked), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *request.continuation_ids]])).logits[0]
        rows = torch.log_softmax(logits.float(), -1)[len(request.prompt_ids) - 1 : -1]
        expected = [rows[i, token].item() for i, token in enumerate(request.continuation_ids)]
        assert values == pytest.approx(expected, abs=5e-4)
