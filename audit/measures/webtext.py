"""Loss on ordinary web text: bits per byte and perplexity. An indicator of drift in either direction; it never gates.

Why it never gates: emergent misalignment moved Qwen2.5-14B-Instruct from 9.85 to 9.81. Each text is scored from its
second token on, given its first; no BOS is added and no chat template is used. Both numbers are ratios over all texts:
bits per byte counts the bytes of the scored tokens, perplexity is exp(nats / tokens).
"""

from audit.measures import Asked, Context, Metric, Sample, pick
from organisms.engines import Score

NAME = "webtext"
VERSION = 1
METRICS = (
    Metric("bits_per_byte", "ratio", headline=True, unit="bits/byte", about="loss on ordinary web text"),
    Metric("perplexity", "ratio", transform="exp", about="exp of nats a token, this tokenizer's"),
)
SIZES = {"quick": {"texts": 14, "tokens": 128}, "full": {"texts": 2500, "tokens": 512}}
LN2 = 0.6931471805599453


def data(context: Context) -> str:
    return context.rows("webtext").origin


def requests(context: Context) -> list[Asked]:
    sizes = SIZES[context.suite]
    found = context.rows("webtext", 2500).rows
    rows = pick(found, context.cap(sizes["texts"]), lambda row: row["id"])
    asked = []
    for row in rows:
        ids = context.renderer.document(row["text"]).input_ids[: sizes["tokens"]]
        if len(ids) >= 2:
            request = Score(tuple(ids[:1]), tuple(ids[1:]))
            asked.append(Asked(row["id"], request, context.renderer.decode(ids)[:200]))
    return asked


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    samples = []
    for one, answer in zip(asked, answers, strict=True):
        nats = -sum(answer["logprobs"])
        size = len(context.renderer.decode(list(one.request.continuation_ids)).encode())
        scores = {"bits_per_byte": [nats / LN2, size], "perplexity": [nats, len(answer["logprobs"])]}
        samples.append(Sample(one.item, "webtext", one.prompt, None, scores))
    return samples
