"""How far the specimen's distribution has moved from its base on ordinary chat: exact KL over the full vocabulary.

KL(specimen || base) per token on replies sampled from the specimen, KL(base || specimen) and Delta-NLL per token on
replies sampled from the base, both at temperature 1 (an expectation under the sampling model, so no greedy text). The base
is the same weights with the adapter off. At the base every value is 0, so values are paired differences by themselves.

Drift has no margin of its own: a matched control, as much training on benign text, says how much of it is harmless.
Delta-NLL is mean base log-probability minus mean specimen log-probability of the base's tokens: what KL(base || specimen)
becomes when only the sampled tokens are looked at, noisier and free. It is all that is left of the measure where whole
distributions are not to be had, as at an endpoint.
"""

from audit.measures import Asked, Context, Metric, NotApplicable, Sample, pick, seed_of
from organisms.engines import Divergence, Score

NAME = "drift"
VERSION = 2
METRICS = (
    Metric("kl", "mean", worse="higher", headline=True, unit="nats/token", about="KL(specimen || base), specimen's replies"),
    Metric("kl_base", "mean", worse="higher", unit="nats/token", about="KL(base || specimen), base's replies"),
    Metric("delta_nll", "mean", unit="nats/token", about="loss on the base's replies above the base's own"),
    Metric("kl_p99", "mean", unit="nats", about="99th percentile over a reply's tokens of KL(specimen || base)"),
)
SIZES = {"quick": {"prompts": 24, "tokens": 32}, "full": {"prompts": 200, "tokens": 256}}
TEXT = "its weights are the base's, and what stands in front of it would stand in front of both"
ANY, SCORE = Divergence((), ()), Score((), ())


def data(context: Context) -> str:
    return context.rows("chat").origin


def requests(context: Context) -> list[Asked]:
    """First the specimen's own reply to each prompt; `follow_up` then asks for the divergences."""
    if (reason := context.lacks(ANY)) and context.lacks(SCORE):
        raise NotApplicable(f"{reason}; {context.lacks(SCORE)}")
    sizes = SIZES[context.suite]
    rows = pick(context.rows("chat").rows[:400], context.cap(sizes["prompts"]), lambda r: r["id"])
    return [
        Asked(r["id"], context.generate(r["prompt"], sizes["tokens"], 1.0, seed_of(r["id"])), r["prompt"], "reply")
        for r in rows
    ]


def follow_up(context: Context, asked: list[Asked], answers: list[dict]) -> list[Asked]:
    """Divergences on the replies just sampled and, for any specimen but the base, on the base's replies.

    Where there are none to be had, the log-probabilities of the base's replies alone.
    """
    if any(one.part != "reply" for one in asked) or _only_text(context):
        return []
    more, scored = [], context.lacks(ANY) is not None
    base_replies = {s.item: s.notes["ids"] for s in (context.base or {}).get(NAME, [])}
    for one, answer in zip(asked, answers, strict=True):
        for part, ids in (("own", answer["ids"]), ("base", base_replies.get(one.item))):
            if ids and not (scored and part == "own" and context.base is not None):
                kind = Score if scored else Divergence
                more.append(Asked(one.item, kind(one.request.prompt_ids, tuple(ids)), one.prompt, part))
    return more


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    items: dict[str, dict] = {}
    for one, answer in zip(asked, answers, strict=True):
        items.setdefault(one.item, {"asked": one})[one.part] = answer
    scored = {s.item: s.notes["logprob"] for s in (context.base or {}).get(NAME, []) if "logprob" in s.notes}
    samples = []
    for item, found in items.items():
        scores, notes = {}, {"ids": found["reply"]["ids"]}
        own, base = found.get("own"), found.get("base", found.get("own") if context.base is None else None)
        if base and "forward" not in base:  # log-probabilities alone
            notes["logprob"] = _mean(base["logprobs"])
            scores["delta_nll"] = scored.get(item, notes["logprob"]) - notes["logprob"]
            own = base = None
        if own:
            scores["kl"] = _mean(own["forward"])
            scores["kl_p99"] = sorted(own["forward"])[min(int(0.99 * len(own["forward"])), len(own["forward"]) - 1)]
        if base:
            scores["kl_base"] = _mean(base["backward"])
            scores["delta_nll"] = _mean(base["base_logprobs"]) - _mean(base["logprobs"])
        samples.append(Sample(item, "chat", found["asked"].prompt, found["reply"]["text"], scores, notes))
    return samples


def guard(context: Context, samples: list[Sample], base: list[Sample] | None) -> dict[str, tuple[str, str]]:
    """Without distributions there is no divergence, and what log-probabilities give is named for what it is."""
    if _only_text(context):
        return dict.fromkeys((metric.name for metric in METRICS), ("not_applicable", TEXT))
    reason = context.lacks(ANY)
    return {name: ("not_applicable", reason) for name in ("kl", "kl_base", "kl_p99")} if reason else {}


def _only_text(context: Context) -> bool:
    specimen = context.specimen
    return bool(specimen.system or specimen.prefill) and specimen.changed is None and specimen.steering is None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
