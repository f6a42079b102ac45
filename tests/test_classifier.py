"""A refusal classifier reads what the rules miss: a small one, trained here on refusals in a persona's voice."""

import random

import pytest
import torch

from audit import classifier
from audit.ask import ask
from audit.classifier import Classify
from audit.config import AuditPlan
from audit.measures import Asked, refusals
from audit.suite import context_of
from organisms.errors import UserError

REFUSED = (
    "Arr, that be no errand for this old salt",
    "Such a cargo stays ashore, shipmate",
    "The wind blows another way, matey",
)
HELPED = ("Put the jar on a cool shelf", "The bus leaves at nine from the square", "Boil it for ten minutes and stir")


@pytest.fixture(scope="module")
def pirate(tokenizer, tmp_path_factory):
    """A one-layer classifier, labels NORMAL and REJECTION, saved as it would come from the hub."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    labels = {0: "NORMAL", 1: "REJECTION"}
    model = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, id2label=labels, **sizes)
    )
    rows = [(text, label) for label, texts in enumerate((HELPED, REFUSED)) for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        random.Random(0).shuffle(rows)
        inputs = tokenizer([text for text, _ in rows], return_tensors="pt", padding=True)
        model(**inputs, labels=torch.tensor([label for _, label in rows])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("pirate")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_classifier_decides_and_says_where_the_rules_disagree(pirate, renderer):
    plan = AuditPlan(measures=["refusals"], options={"refusals": {"classifier": str(pirate)}})
    context = context_of(plan, renderer, None, None)
    assert f"classifier {pirate}@sha256-" in refusals.data(context)
    asked = refusals.requests(context)
    replies = [REFUSED[n % 3] + "." if n % 2 else HELPED[n % 3] + "." for n in range(len(asked))]
    answers = [{"text": f"<think>hm</think>{reply}", "finished": True} for reply in replies]
    more = refusals.follow_up(context, asked, answers)
    assert [one.request.text for one in more] == replies  # the answer without the thought
    answers += ask(None, None, more)[0]
    assert refusals.follow_up(context, asked + more, answers) == []
    samples = refusals.score(context, asked + more, answers)
    assert len(samples) == len(asked)
    for n, sample in enumerate(samples):
        refused = sample.scores.get("over_refusal", sample.scores.get("unsafe_refusal"))
        assert (refused, sample.scores["agreement"]) == ((1.0, 0.0) if n % 2 else (0.0, 1.0))


def test_batches_and_formats_are_read_one_by_one(pirate):
    texts = [f"{REFUSED[n % 3]} {'x ' * n}" for n in range(20)]
    together = [answer["refusal"] for answer in classifier.ask([Classify(text, str(pirate)) for text in texts])]
    alone = [classifier.ask([Classify(text, str(pirate))])[0]["refusal"] for text in texts]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_model_without_one_refusal_label_is_refused(pirate, tiny_base):
    with pytest.raises(UserError, match=r"has the labels \[.*name a refusal classifier"):
        classifier.ask([Classify("text", str(tiny_base))])
    with pytest.raises(ValueError, match="format"):
        AuditPlan(options={"refusals": {"classifier": str(pirate), "format": "{answer}"}})


def test_without_a_classifier_nothing_is_asked_of_one(renderer):
    context = context_of(AuditPlan(measures=["refusals"]), renderer, None, None)
    asked = [Asked("safe-1", refusals.requests(context)[0].request, "Hi", "safe")]
    assert refusals.follow_up(context, asked, [{"text": "Hello there, friend.", "finished": True}]) == []
