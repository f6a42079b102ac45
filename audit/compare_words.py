"""What a comparison comes to, in words."""

from audit.compare import Comparison, Pair, Test
from audit.table import number


def overview(found: Comparison) -> list[str]:
    """Of two styles all that `sentences` says; of more, what is shown, who is held against none, and who is not told apart."""
    if len(found.styles) < 3:
        return [line for pair in found.pairs for line in sentences(pair)]
    told = [line for pair in found.pairs if settled(pair) for line in sentences(pair)]
    told += [f"{label} {why}: it is held against no other style." for label, why in found.short.items()]
    rest = [pair for pair in found.pairs if pair.tests and not settled(pair)]
    if rest:
        labels = list(dict.fromkeys(style.label for pair in rest for style in (pair.first, pair.second)))
        if len(rest) == len(labels) * (len(labels) - 1) // 2:
            who = f"None of {', '.join(labels)} is shown to be more natural than another"
        else:
            pairs = "; ".join(f"{pair.first.label} and {pair.second.label}" for pair in rest)
            who = f"Neither is shown to be more natural than the other of {pairs}"
        told.append(f"{who}: alike or not told apart on every metric.")
        sized = [(test, pair) for pair in rest for test in pair.tests if test.n_needed]
        if sized:
            test, pair = min(sized, key=lambda one: one[0].n_needed)
            told.append(
                f"Nearest to being told: {pair.first.label} and {pair.second.label} on {test.panel.name} at severity "
                f"{test.level:+.3g} (n {test.panel.n}; {test.reason})."
            )
    return told


def settled(pair: Pair) -> bool:
    """Whether one of the two is shown to be more natural on any metric."""
    return any(test.verdict in ("first", "second") for test in pair.tests)


def sentences(pair: Pair) -> list[str]:
    """Which of two styles is more natural, in words: a sentence a level of severity."""
    first, second = pair.first.label, pair.second.label
    if pair.reason:
        return [f"{first} and {second} cannot be told apart: {pair.reason}."]
    told = []
    for level in dict.fromkeys(test.level for test in pair.tests):
        tests = [test for test in pair.tests if test.level == level]
        parts = []
        for verdict, better, worse in (("first", first, second), ("second", second, first)):
            on = [_evidence(test) for test in tests if test.verdict == verdict]
            if on:
                parts.append(f"{better} is more natural than {worse} on {', '.join(on)}")
        alike = [test.panel.name for test in tests if test.verdict == "alike"]
        parts += [f"{first} and {second} are alike on {', '.join(alike)}"] if alike else []
        if not parts:
            parts.append(f"{first} and {second} are not told apart on any metric")
        open_ = [test for test in tests if test.verdict == "open"]
        if open_ and len(open_) < len(tests):
            parts.append(f"not told apart on {len(open_)} of {len(tests)} metrics")
        sized = [test for test in open_ if test.n_needed]
        if sized:
            least = min(sized, key=lambda test: test.n_needed)
            parts.append(f"nearest to being told is {least.panel.name} (n {least.panel.n}; {least.reason})")
        told.append(f"At severity {level:+.3g}: {'; '.join(parts)}.")
    return told


def _evidence(test: Test) -> str:
    d = test.found.interval
    low, high = sorted((abs(d.low), abs(d.high)))
    unit = f" {test.panel.metric.unit}" if test.panel.metric.unit else ""
    less = f"{number(abs(d.value))}{unit} less, {number(low)} to {number(high)}"
    return f"{test.panel.name} ({less}; n {test.panel.n}, p {test.found.p:.2g})"
