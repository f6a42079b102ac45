"""Whether replies are still replies: read off the generations that other measures already made, so it is free.

The headline is the share of degenerate replies (empty, looping, another speaker's turn, foreign script, words without
grammar; bounds in audit/text.py); its margin of 5 points is ours, there is no published one. The other numbers are indicators.

Each reply counts once, though leakage lends it again, and stays in the half that its measure put it in; the replies to one
prompt (its cells, samples, forms) are one unit.
"""

from audit.measures import MEASURES, Asked, Context, Metric, NotApplicable, Sample
from audit.text import compression, degenerate, distinct, foreign_share, repetition, turn_leak

NAME = "fluency"
READS_REPLIES = True  # of the measures before it
VERSION = 3
METRICS = (
    Metric(
        "degenerate", "rate", worse="higher", margin=0.05, headline=True, about="replies that are empty, loop or leak a turn"
    ),
    Metric("repetition", "mean", about="share of word 4-grams that stood in the reply before"),
    Metric("distinct_2", "mean", about="distinct word bigrams over all"),
    Metric("compression", "mean", about="zlib bytes over raw bytes"),
    Metric("foreign_script", "mean", about="share of letters in a script that the prompt does not use"),
    Metric("length", "mean", unit="words", about="words a reply"),
    Metric("empty", "rate", about="empty replies"),
    Metric("user_turn", "rate", about="replies that open another turn"),
)


def data(context: Context) -> str:
    return "generations of " + ", ".join(_generating(context))


def _generating(context: Context) -> list[str]:
    return [name for name, samples in context.earlier.items() if any(sample.output is not None for sample in samples)]


def requests(context: Context) -> list[Asked]:
    """Nothing is asked; raises NotApplicable where no measure before this one has generated."""
    if not _generating(context):
        raise NotApplicable("no measure has generated replies in this audit")
    return []


def score(context: Context, asked: list[Asked], answers: list[dict]) -> list[Sample]:
    samples = []
    for name, earlier in context.earlier.items():
        for one in earlier:
            if one.output is None or one.group == "document":
                continue  # nothing was generated, or it goes on with a raw document and is no reply
            if one.item.partition("/")[0] in MEASURES:
                continue  # another measure's, which leakage has read
            text, broken = one.output, degenerate(one.output, one.prompt)
            scores = {
                "degenerate": float(bool(broken)),
                "repetition": repetition(text),
                "foreign_script": foreign_share(text, one.prompt),
                "length": float(len(text.split())),
                "empty": float(not text.strip()),
                "user_turn": float(turn_leak(text)),
            }
            for metric, value in (("distinct_2", distinct(text)), ("compression", compression(text))):
                if value is not None:
                    scores[metric] = value
            notes = {"degenerate": broken}
            samples.append(Sample(f"{name}/{one.item}", name, one.prompt, text, scores, notes, cluster=one.unit))
    return samples
