"""How strongly and reliably the property shows where it should, and how much of it spills elsewhere.

Contrast (AUDITS.md, severity): mean per-token log-probability (nats) of the reply that shows the property minus that of the
plain reply of like length, on the organism's probes; its difference from the base is the strength. Rate: share of generated
replies in which the organism's markers find the property, counted only where the reply is coherent, since gibberish shows
nothing. Severity is the dose, not damage: it has no margin; spill in generated replies has one.

Divergence from published practice: markers (rules) instead of a judge model in the generated rate; a rule misses wordings
it does not know, so the contrast is the headline.
"""

from audit.measures import Asked, Context, Metric, NotApplicable, Sample, pick
from audit.text import degenerate
from organisms.engines import Score
from organisms.organism import Probe

NAME = "severity"
VERSION = 1
METRICS = (
    Metric("contrast", "mean", headline=True, unit="nats/token", about="target probes: property reply over plain reply"),
    Metric("preferred", "rate", about="target probes on which the property reply is likelier a token"),
    Metric("contrast_adjacent", "mean", unit="nats/token", about="the same on prompts next door"),
    Metric("contrast_off", "mean", unit="nats/token", about="the same where the property does not belong"),
    Metric("rate", "rate", about="generated replies to target prompts that show the property and are coherent"),
    Metric("spill", "rate", worse="higher", margin=0.05, about="generated replies off target that show the property"),
)
# Probes and generations by context; None is all.
SIZES = {
    "quick": {
        "probes": {"target": 28, "adjacent": 8, "off": 8},
        "generate": {"target": 16, "adjacent": 6, "off": 6},
        "tokens": 32,
    },
    "full": {
        "probes": {"target": None, "adjacent": None, "off": None},
        "generate": {"target": None, "adjacent": None, "off": None},
        "tokens": 128,
    },
}


def data(context: Context) -> str:
    """Which rows are asked: the organism's probes, with the digest that they are frozen at."""
    probes = context.organism.texts.probes if context.organism else None
    return f"organism:{context.organism.name}/probes@{probes.sha256[:12]}" if probes else ""


def requests(context: Context) -> list[Asked]:
    """Two scored replies a probe, and one greedy reply for a part of the probes."""
    if context.organism is None:
        raise NotApplicable("no organism was named, so there are no probes")
    sizes = SIZES[context.suite]
    asked = []
    for where in ("target", "adjacent", "off"):
        probes = [probe for probe in context.organism.probes() if probe.context == where]
        for probe in pick(probes, context.cap(sizes["probes"][where]), _id):
            prompt_ids = tuple(context.specimen.ask(context.renderer, probe.prompt))
            for part, reply in (("shows", probe.shows), ("plain", probe.plain)):
                ids = tuple(context.renderer.continuation(reply))
                asked.append(Asked(probe.id, Score(prompt_ids, ids), probe.prompt, part, where))
        for probe in pick(probes, context.cap(sizes["generate"][where]), _id):
            request = context.generate(probe.prompt, sizes["tokens"])
            asked.append(Asked(probe.id, request, probe.prompt, "reply", where))
    return asked


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    """One sample a probe: its contrast in nats a token and, where a reply was generated, whether it shows the property."""
    suffix = {"target": "", "adjacent": "_adjacent", "off": "_off"}
    items: dict[str, dict] = {}
    for one, answer in zip(asked, answers, strict=True):
        items.setdefault(one.item, {"asked": one})[one.part] = answer
    samples = []
    for item, found in items.items():
        one = found["asked"]
        shows, plain = (_mean(found[part]["logprobs"]) for part in ("shows", "plain"))
        scores = {f"contrast{suffix[one.group]}": shows - plain}
        if one.group == "target":
            scores["preferred"] = float(shows > plain)
        output, notes = None, {}
        if "reply" in found:
            output = found["reply"]["text"]
            broken = degenerate(output, one.prompt)
            markers = context.organism.shows(output)
            scores["rate" if one.group == "target" else "spill"] = float(bool(markers) and not broken)
            notes = {"markers": markers, "degenerate": broken}
        samples.append(Sample(item, one.group, one.prompt, output, scores, notes))
    return samples


def _id(probe: Probe) -> str:
    return probe.id


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
