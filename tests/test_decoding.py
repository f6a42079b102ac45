"""Replies do not depend on when other rows of their batch end."""

import pytest
import torch
from transformers import DynamicCache

from organisms import models
from organisms.engines import Generate
from organisms.engines.attention import NAME, read_in_place
from organisms.engines.cache import ROOM, stacked
from organisms.engines.decoding import continued
from organisms.specimen import Specimen

LIMIT = 24
BASE = Specimen("base")


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.load_model(models.resolve(str(tiny_base)))


def replies(model, requests, stops, leaving=True):
    width = max(len(request.prompt_ids) for request in requests)
    ids = torch.tensor([[0] * (width - len(r.prompt_ids)) + list(r.prompt_ids) for r in requests])
    mask = torch.tensor([[0] * (width - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])
    with torch.inference_mode():
        found = continued(model, requests, ids, mask, None, stops, 0, leaving)
    ends = [next((k for k, token in enumerate(reply) if token in stops), len(reply)) for reply in found]
    return [reply[: end + 1] for reply, end in zip(found, ends, strict=True)]


def test_rows_that_end_leave_and_the_others_go_on_as_if_alone(tiny, monkeypatch):
    """Greedy and sampled rows, of unlike prompts, that end at different places, in segments shorter than the replies."""
    requests = [Generate(tuple(range(40, 45 + 3 * k)), LIMIT, 0.0 if k % 3 == 0 else 1.0, seed=k) for k in range(8)]
    whole = replies(tiny, requests, [1], leaving=False)
    stops = sorted({whole[1][2], whole[2][7], whole[4][8], whole[5][17]})
    alone = [replies(tiny, [request], stops, leaving=False)[0] for request in requests]
    assert len({len(reply) for reply in alone}) >= 4 and max(map(len, alone)) == LIMIT
    sizes = []
    generate = type(tiny).generate
    monkeypatch.setattr(
        type(tiny), "generate", lambda self, **given: sizes.append(len(given["input_ids"])) or generate(self, **given)
    )
    monkeypatch.setattr("organisms.engines.decoding.SEGMENT", 5)
    assert replies(tiny, requests, stops) == alone
    assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]  # and they did leave


def test_greedy_is_greedy_whatever_the_base_suggests(tiny, monkeypatch):
    """generation_config.json of Qwen2.5 has a repetition penalty, which transformers takes up in silence."""
    requests = [Generate(tuple(range(40, 60)), 12)]
    expected = replies(tiny, requests, [1])
    monkeypatch.setattr(tiny.generation_config, "repetition_penalty", 1.5)
    assert replies(tiny, requests, [1]) == expected


def test_keys_that_grow_in_place_are_those_of_transformers_own_cache():
    """Token after token, beyond the room that is made at once, with rows that leave in the middle."""
    torch.manual_seed(0)
    masks, parts = [torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.ones(1, 5, dtype=torch.long)], []
    for mask in masks:
        held = DynamicCache()
        for layer in range(2):
            held.update(*torch.randn(2, len(mask), 3, mask.shape[1], 4), layer)
        parts.append((mask, held))
    own = DynamicCache()
    for layer in range(2):
        sides = [[getattr(held.layers[layer], side) for _, held in parts] for side in ("keys", "values")]
        own.update(*(torch.cat([torch.nn.functional.pad(a, (0, 0, 2, 0)), b]) for a, b in sides), layer)
    mask, grown = stacked(parts)
    assert mask.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    for step in range(2 * ROOM + 3):
        if step == ROOM // 2:
            for one in (own, grown):
                one.batch_select_indices(torch.tensor([2, 0]))
        rows = 3 if step < ROOM // 2 else 2
        for layer in range(2):
            new = torch.randn(2, rows, 3, 1, 4)
            for mine, theirs in zip(grown.update(*new, layer), own.update(*new, layer), strict=True):
                assert torch.equal(mine, theirs)
    assert grown.get_seq_length() == own.get_seq_length() == 5 + 2 * ROOM + 3


def test_keys_are_read_in_place_and_not_a_bit_changes(base):
    """Rows padded on the left, whose first positions see nothing at all, and a step that goes on from a cache."""
    plain, ours = models.load_model(base), read_in_place(models.load_model(base))
    assert plain.config._attn_implementation == "sdpa" and ours.config._attn_implementation == NAME
    assert ours.config.num_attention_heads > ours.config.num_key_value_heads
    ids = torch.randint(5, 1000, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * k + [1] * (9 - k) for k in (0, 3, 7)])
    with torch.inference_mode():
        first = [model(input_ids=ids, attention_mask=mask, use_cache=True) for model in (plain, ours)]
        assert torch.equal(first[0].logits, first[1].logits) and first[0].logits.isfinite().all()
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        steps = [
            model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=one.past_key_values).logits
            for model, one in zip((plain, ours), first, strict=True)
        ]
    assert torch.equal(*steps)


def test_equal_prompts_and_prompts_of_one_token_are_answered_as_alone(engine, renderer):
    """Nothing is left to compute of a prompt that others share to its end, and nothing stands before a single token."""
    long = tuple(renderer.ask("Name a bird."))
    requests = [Generate(long, 6, 1.0, seed) for seed in range(3)] + [Generate((5,), 6), Generate(long, 6)]
    alone = [engine.generate(BASE, [request])[0] for request in requests]
    assert engine.generate(BASE, requests) == alone
