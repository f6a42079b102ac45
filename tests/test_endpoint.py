"""A model behind an OpenAI-compatible endpoint is read as it would be here, and what cannot be read says what is lacking."""

import json
from math import log

import pytest
from conftest import SECRET

from audit.config import AuditPlan
from audit.existing import Subject, opened
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.errors import UserError
from organisms.served import EndpointPlan
from organisms.specimen import Specimen

BASE, QUIRKY = Specimen("base"), Specimen("quirky", adapter="quirky")
EXACT = 1e-5  # nats: the same weights in the same process, one request at a time


def at(server, tokenizer: str | None = None, **plan):
    """The engine of the model that a server serves, and what opened it."""
    reached = opened(Subject(server.base, tokenizer=tokenizer), AuditPlan(endpoint=EndpointPlan(**plan)))
    reached.engine.endpoint.client.max_retries = 0
    return reached.engine


def questions(renderer) -> tuple[list[Generate], list[Score], list[NextToken]]:
    prompts = [tuple(renderer.ask(text)) for text in ("Hello!", "Name three birds.", "What is 12 times 7?")]
    generate = [Generate(ids, 12, temperature, seed) for ids in prompts for temperature, seed in ((0.0, 0), (1.0, 5))]
    score = [Score(ids, tuple(renderer.continuation("A heron stands still."))) for ids in prompts]
    return generate, score, [NextToken(ids, (5, 200, 1000)) for ids in prompts] + [NextToken(prompts[0], tuple(range(130)))]


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


@pytest.mark.parametrize("kind", ("vllm", "plain"))
def test_an_endpoint_answers_by_ids_what_the_weights_answer(serving, tiny_engine, tiny_base, tiny_adapter, kind):
    """Replies, sampled ones too, scores and choices; with vLLM's fields, and by `echo` alone."""
    engine = at(serving(kind), str(tiny_base))
    generate, score, choose = questions(tiny_engine.renderer)
    if kind == "plain":
        choose.pop()  # a request a choice
    for specimen, local in ((BASE, BASE), (QUIRKY, Specimen("quirky", adapter=tiny_adapter))):
        replies, expected = engine.generate(specimen, generate), tiny_engine.generate(local, generate)
        assert [(reply.text, reply.finished) for reply in replies] == [(reply.text, reply.finished) for reply in expected]
        assert kind != "vllm" or replies == expected  # a server of the protocol alone gives no ids
        assert flat(engine.logprobs(specimen, score)) == pytest.approx(flat(tiny_engine.logprobs(local, score)), abs=EXACT)
        found, expected = (flat(one.next_token(who, choose)) for one, who in ((engine, specimen), (tiny_engine, local)))
        assert found == pytest.approx(expected, abs=EXACT)
    assert [engine.lacks(request) for request in (generate[0], score[0], choose[0])] == [None] * 3
    assert "distributions" in engine.lacks(Divergence((1,), (2,)))


def test_a_sampling_default_of_the_server_is_never_left_to_it(serving, tiny_engine, tiny_base):
    server = serving("vllm")
    at(server, str(tiny_base)).generate(BASE, questions(tiny_engine.renderer)[0])
    for _, _, request in server.asked:
        assert {"temperature", "top_p", "max_tokens"} <= request.keys()
        if "logprobs" not in request:
            assert {"top_k", "min_p", "repetition_penalty", "seed", "frequency_penalty", "presence_penalty"} <= request.keys()
            assert request["stop_token_ids"] == tiny_engine.renderer.stop_ids and request["skip_special_tokens"] is False


def test_choices_that_are_normalised_otherwise_are_scored_as_texts(serving, tiny_engine, tiny_base):
    """Log-probabilities of a part of the vocabulary, or of a tempered distribution, are no label probabilities."""
    server = serving("vllm")
    server.shift = log(3)
    engine, (_, _, choose) = at(server, str(tiny_base)), questions(tiny_engine.renderer)
    assert not engine.able.gathers
    assert flat(engine.next_token(BASE, choose[:3])) == pytest.approx(flat(tiny_engine.next_token(BASE, choose[:3])), abs=EXACT)


def test_an_endpoint_that_scores_nothing_says_so_and_still_generates(serving, tiny_engine, tiny_base):
    engine, (generate, score, choose) = at(serving("mute"), str(tiny_base)), questions(tiny_engine.renderer)
    assert not engine.able.extended  # it takes the fields and leaves them aside
    assert "returns no log-probabilities of a given text" in engine.lacks(score[0]) and engine.lacks(choose[0])
    replies, expected = engine.generate(BASE, generate), tiny_engine.generate(BASE, generate)
    assert [(reply.text, reply.finished) for reply in replies] == [(reply.text, reply.finished) for reply in expected]


def test_a_chat_endpoint_is_asked_by_messages_and_refuses_what_it_cannot_begin(serving, tiny_engine):
    server = serving("chat")
    engine = at(server)
    asked = {"earlier": BASE.ask(engine.renderer, "How are you?", system="Be kind."), "plain": engine.renderer.plain("A heron")}
    begun = Generate(tuple(BASE.ask(engine.renderer, "How are you?", "I ")), 8)
    (reply,) = engine.generate(BASE, [Generate(tuple(asked["earlier"]), 12)])
    local = Generate(tuple(BASE.ask(tiny_engine.renderer, "How are you?", system="Be kind.")), 12)
    assert reply.text == tiny_engine.generate(BASE, [local])[0].text
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How are you?"}]
    assert server.asked[-1][2]["messages"] == talk and server.asked[-1][1] == f"Bearer {SECRET}"
    assert "opens the reply itself" in engine.lacks(begun)
    assert "takes messages" in engine.lacks(Generate(tuple(asked["plain"]), 8))
    assert "likeliest tokens" in engine.lacks(NextToken((1,), (2,))) and "given text" in engine.lacks(Score((1,), (2,)))


def test_a_server_that_cuts_replies_off_earlier_than_asked_is_refused(serving, tiny_engine):
    """vLLM shortens a reply to what is left of its context and calls it by the same word as one of full length."""
    server = serving("chat")
    engine, server.longest = at(server), 20
    engine.generate(BASE, [Generate(tuple(BASE.ask(engine.renderer, "How are you?")), 20)])
    with pytest.raises(UserError, match="stops a reply after 20 of 24 tokens"):
        engine.generate(BASE, [Generate(tuple(BASE.ask(engine.renderer, "How are you?")), 24)])


def test_the_tokenizer_of_another_model_is_refused_before_anything_is_read(serving, tmp_path, tiny_base):
    import shutil

    shutil.copytree(tiny_base, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    table = json.loads(path.read_text())
    names = [name for name, number in table["model"]["vocab"].items() if number > 1000]
    table["model"]["vocab"] |= dict(zip(names, [table["model"]["vocab"][name] for name in reversed(names)], strict=True))
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="tokenizer= names another model's tokenizer"):
        _ = at(serving("plain"), str(tmp_path / "other")).able
