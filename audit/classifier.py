"""A refusal classifier from the hub or a directory, beside the rules: one reply in, the probability of a refusal out.

Any sequence classifier does that has one label for refusals or rejections. By their model cards these fit:
`protectai/distilroberta-base-rejection-v1`, which reads the reply alone (the default format), and `NousResearch/Minos-v1`,
which reads both, format "<|user|>\\n{prompt}\\n<|assistant|>\\n{reply}".
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from organisms import models
from organisms.errors import UserError

REFUSAL = re.compile(r"^(?:refus|reject)", re.IGNORECASE)
BATCH = 16


@dataclass(frozen=True)
class Classify:
    """A text for the named classifier. Answer: `refusal`, a probability."""

    text: str
    classifier: str


def ask(requests: list[Classify]) -> list[dict]:
    """Answers in the order of the requests. Raises UserError for a model that is no refusal classifier."""
    import torch

    answers: list[dict] = []
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        tokenizer, model, label = _load(batch[0].classifier)
        # Replies refuse in their first words, so what is too long loses its end.
        inputs = tokenizer([one.text for one in batch], return_tensors="pt", padding=True, truncation=True, max_length=512)
        with torch.inference_mode():
            probabilities = model(**inputs.to(model.device)).logits.float().softmax(-1)[:, label]
        answers += [{"refusal": round(p, 6)} for p in probabilities.tolist()]
    return answers


@lru_cache(maxsize=1)
def _load(name: str) -> tuple[Any, Any, int]:
    """(tokenizer, model, index of the refusal label)."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = models.resolve(name)
    labels = {int(index): label for index, label in models.model_config(base).get("id2label", {}).items()}
    refusals = [index for index, label in labels.items() if REFUSAL.match(label)]
    if len(refusals) != 1:
        raise UserError(
            f"audit.options.refusals.classifier: {name} has the labels {sorted(labels.values())}, of which none, or more than "
            "one, begins with refus- or reject-; name a refusal classifier, e.g. protectai/distilroberta-base-rejection-v1"
        )
    directory = models.fetched(base)
    model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return tokenizer, model.eval().to(models.default_device()), refusals[0]
