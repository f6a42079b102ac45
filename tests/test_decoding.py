"""Replies do not depend on when other rows of their batch end."""

import pytest
import torch

from organisms import models
from organisms.engines import Generate
from organisms.engines.decoding import continued

LIMIT = 24


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
