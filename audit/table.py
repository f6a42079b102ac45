"""Readings as a terminal table."""

from audit.measures import metrics
from audit.paired import BASE_REASON
from audit.readings import Reading

STYLE = {"fried": "bold red", "natural": "green", "underpowered": "yellow", "expected": "cyan", "invalid": "red"}


def show(readings: list[Reading], specimen: str) -> None:
    """Print the holdout half of one specimen: value, difference from the base with interval, verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{specimen}: difference from the base, holdout half, 95% intervals")
    table = Table(title=title, title_justify="left")
    for name, justify in (
        ("measure", "left"),
        ("value", "right"),
        ("difference", "right"),
        ("n", "right"),
        ("verdict", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=name != "verdict")
    for reading in readings:
        if reading.specimen != specimen or reading.split != "holdout" or reading.value is None:
            continue
        known = metrics(reading.measure).get(reading.metric)
        name = f"{reading.measure}.{reading.metric}"
        verdict = reading.verdict if reading.verdict != "not_applicable" else "-"
        if reading.verdict == "underpowered" and reading.n_needed:
            verdict += f" (n {reading.n_needed:,})"
        style = STYLE.get(reading.verdict, "")
        table.add_row(
            Text(name, "bold" if known and known.headline else ""),
            number(reading.value),
            difference(reading),
            str(reading.n),
            Text(verdict, style),
        )
    width = None if _terminal() else 110
    console = Console(width=width, highlight=False)
    console.print(table)
    for reading, reason in unread(readings, specimen):
        console.print(f"{reading.measure}: {reading.verdict.replace('_', ' ')}: {reason}", markup=False)


def unread(readings: list[Reading], specimen: str) -> list[tuple[Reading, str]]:
    """Headlines that give no believable number, with the reason."""
    return [
        (r, r.reason)
        for r in readings
        if r.specimen == specimen and r.split == "holdout" and r.reason != BASE_REASON
        if (known := metrics(r.measure).get(r.metric)) and known.headline
        if r.verdict == "invalid" or (r.verdict == "not_applicable" and (known.worse or r.value is None))
    ]


def difference(reading: Reading) -> str:
    """'+0.41 (+0.32 to +0.52)', or nothing for the base."""
    if reading.delta is None:
        return ""
    if reading.delta_low is None or reading.delta_high is None:
        return f"{reading.delta:+.3g}"
    return f"{number(reading.delta, True)} ({number(reading.delta_low, True)} to {number(reading.delta_high, True)})"


def number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return ""
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()
