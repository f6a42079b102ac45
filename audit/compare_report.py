"""A comparison as compare.md, compare.html, compare.csv, frontier.csv, frontier.png, compare.json and a terminal table."""

import csv
import io
import json
from pathlib import Path

from audit import frontier
from audit.compare import Comparison, Pair, Style, Test, most
from audit.compare_words import overview, sentences, settled
from audit.frontier import Chart
from audit.statistics import Interval
from audit.table import number
from organisms.files import write_atomic

SUMMARY = "compare.json"
HEAD = ("severity", "metric", "first", "second", "first - second", "n", "p", "more natural", "why not told")
SHORT_HEAD = ("severity", "metric", "first - second", "n", "p", "more natural")
METHOD = (
    "Damage is the difference from the base on the holdout items, turned so that more is worse. Severity and damage items are "
    "resampled independently ({resamples:,} times, the same resamples for all styles), and each resample interpolates damage "
    "linearly where severity first reaches the level; intervals are 95%. Where no levels are named they are half of, and all "
    "of, the severity that both styles reach in 97.5% of the resamples; nothing is extrapolated. A style is more natural "
    "where Holm's correction over all metrics and levels of the pair finds a difference at 5%, alike where the whole interval "
    "is within the metric's margin. The n that would settle it is of the metric's holdout items, with severity's growing in "
    "proportion, at 80% power. {seeds}"
)
SEEDS = "Styles with several seeds: the mean over seeds, the interval widened by the seeds' spread."
ONE_SEED = "Each style has one seed: the intervals say nothing about another training run of the same recipe."


def write(found: Comparison, target: Path, left_out: list[str]) -> None:
    """All files of one comparison into `target`; frontier.png last."""
    write_atomic(target / "compare.md", markdown(found, left_out))
    write_atomic(target / "compare.html", html(found, target.name, left_out))
    write_atomic(target / "compare.csv", _csv(PAIR_COLUMNS, [_pair_row(p, t) for p in found.pairs for t in p.tests]))
    write_atomic(target / "frontier.csv", _csv(POINT_COLUMNS, points(found.charts)))
    write_atomic(target / SUMMARY, json.dumps(summary(found), indent=2, ensure_ascii=False) + "\n")
    if found.charts:
        frontier.draw(
            found.charts, target / "frontier.png", f"{target.name}: damage over severity, holdout half, 95% intervals"
        )


def summary(found: Comparison) -> dict:
    """compare.json, by which a report finds a comparison that its run is part of.

    runs: name -> its style's label, empty for what stands beside the styles; told: the sentences, each with its two styles.
    """
    labels = {run.path.resolve().name: style.label for style in found.styles for run in style.runs}
    return {
        "organism": found.styles[0].runs[0].organism,
        "runs": dict.fromkeys(sorted(found.beside), "") | labels,
        "axis": found.axis,
        "severity": found.severity.name,
        "unit": found.unit,
        "styles": [style.label for style in found.styles],
        "told": [{"styles": [p.first.label, p.second.label], "text": line} for p in found.pairs for line in sentences(p)],
    }


def rows(pair: Pair) -> list[tuple[str, ...]]:
    """The table of a pair under HEAD."""
    names = {"first": pair.first.label, "second": pair.second.label, "alike": "alike", "open": "not told apart"}
    return [
        (
            f"{test.level:+.3g}",
            test.panel.name,
            interval(test.first),
            interval(test.second),
            interval(test.found and test.found.interval),
            str(test.panel.n),
            f"{test.found.p:.2g}" if test.found else "",
            names[test.verdict],
            test.reason,
        )
        for test in pair.tests
    ]


def interval(value: Interval | None) -> str:
    return f"{number(value.value, True)} ({number(value.low, True)} to {number(value.high, True)})" if value else ""


def style_rows(found: Comparison) -> list[tuple[str, ...]]:
    """label, runs, seeds, doses, greatest severity, the severity that it is sure to reach."""
    return [
        (
            style.label,
            ", ".join(run.path.name for run in style.runs),
            ", ".join(str(run.seed) for run in style.runs),
            ", ".join(_dose(found, style)),
            number(most(style, found.severity, found.axis), True),
            number(found.reach[style.label], True),
        )
        for style in found.styles
    ]


def _dose(found: Comparison, style: Style) -> list[str]:
    doses = style.runs[0].doses(found.axis)
    return [f"{dose.scale:g}" if found.axis == "scale" else str(dose.step) for dose in doses]


def _method(found: Comparison) -> str:
    from audit.compare_matched import RESAMPLES

    replicated = any(len(style.runs) > 1 for style in found.styles)
    return METHOD.format(resamples=RESAMPLES, seeds=SEEDS if replicated else ONE_SEED)


STYLE_HEAD = ("style", "runs", "seeds", "doses", "greatest severity", "surely reached")


def markdown(found: Comparison, left_out: list[str]) -> str:
    one = found.styles[0].runs[0]
    text = [f"# {one.organism} on {one.manifest['base']}: styles at matched severity\n"]
    text.append(f"Severity is `{found.severity.name}` ({found.unit}, n {found.severity.n}), dose along {_axis(found)}.\n")
    text.append(_table(STYLE_HEAD, style_rows(found)))
    text += [f"Left out, older than another run of the same recipe: {', '.join(left_out)}.\n"] if left_out else []
    text.append("## Which is more natural\n")
    text += [f"- {line}" for line in overview(found)] or ["- One style alone: nothing to hold it against."]
    text += [f"- {name} is not compared: {reason}." for name, reason in found.unread.items()]
    for pair in found.pairs:
        if pair.tests:
            text.append(f"\n### {pair.first.label} (first) and {pair.second.label} (second)\n")
            text.append("\n".join(f"- {line}" for line in sentences(pair)) + "\n")
            text.append(_table(HEAD, rows(pair)))
    text.append(f"\n## How\n\n{_method(found)}\n")
    return "\n".join(text)


def _axis(found: Comparison) -> str:
    return "training steps" if found.axis == "steps" else "adapter scale"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells) + "\n"


def html(found: Comparison, name: str, left_out: list[str]) -> str:
    """One self-contained page: no script, no network."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("compare.html.j2").render(
        name=name,
        one=found.styles[0].runs[0],
        found=found,
        axis=_axis(found),
        legend=frontier.legend([style.label for style in found.styles], found.charts),
        plots=[(chart, frontier.plot(chart)) for chart in found.charts],
        faint=any(line.faint for chart in found.charts for line in chart.lines),
        told=overview(found),
        style_head=STYLE_HEAD,
        style_rows=style_rows(found),
        head=HEAD,
        pairs=[(pair, sentences(pair), rows(pair)) for pair in sorted(found.pairs, key=settled, reverse=True) if pair.tests],
        left_out=left_out,
        method=_method(found),
    )


PAIR_COLUMNS = (
    "first", "second", "severity", "measure", "metric", "n", "first_damage", "first_low", "first_high", "second_damage",
    "second_low", "second_high", "difference", "low", "high", "p", "verdict", "n_needed", "reason",
)  # fmt: skip
POINT_COLUMNS = (
    "measure", "metric", "label", "kind", "specimen", "n", "margin", "severity", "severity_low", "severity_high", "damage",
    "damage_low", "damage_high",
)  # fmt: skip


def _pair_row(pair: Pair, test: Test) -> list:
    sides = [_three(test.first), _three(test.second), _three(test.found and test.found.interval)]
    verdict = {"first": pair.first.label, "second": pair.second.label}.get(test.verdict, test.verdict)
    names = [pair.first.label, pair.second.label, test.level, test.panel.measure, test.panel.metric.name, test.panel.n]
    return [*names, *sum(sides, []), test.found and test.found.p, verdict, test.n_needed, test.reason]


def points(charts: list[Chart]) -> list[list]:
    """The doses and marks of charts under POINT_COLUMNS."""
    found = []
    for chart in charts:
        drawn = [(line.label, "other axis" if line.faint else "dose", p) for line in chart.lines for p in line.points]
        drawn += [(p.name, "mark", p) for p in chart.marks]
        start = [chart.measure, chart.metric.name]
        found += [
            [*start, label, kind, p.name, chart.n, chart.margin, *_three(p.severity), *_three(p.damage)]
            for label, kind, p in drawn
        ]
    return found


def _three(value: Interval | None) -> list:
    return [value.value, value.low, value.high] if value else [None] * 3


def _csv(columns: tuple[str, ...], lines: list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
    return text.getvalue()


def show(found: Comparison) -> None:
    """Print the styles, headline metrics (of two styles, or those of many that differ), and which is more natural in words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if _terminal() else 130, highlight=False)
    tables = [(f"severity: {found.severity.name}, {found.unit}, n {found.severity.n}", STYLE_HEAD, style_rows(found))]
    for pair in found.pairs if len(found.styles) < 3 else filter(settled, found.pairs):
        lines = [_short(row, test) for row, test in zip(rows(pair), pair.tests, strict=True) if test.panel.metric.headline]
        title = f"{pair.first.label} (first) and {pair.second.label} (second), headline metrics"
        tables += [(title, SHORT_HEAD, lines)] if lines else []
    for title, head, lines in tables:
        table = Table(title=Text(title), title_justify="left")
        for name in head:
            table.add_column(name)
        for line in lines:
            table.add_row(*map(Text, line))  # names are shown, not read as markup
        console.print(table)
    console.print("\n".join(overview(found)), markup=False)


def _short(row: tuple[str, ...], test: Test) -> tuple[str, ...]:
    """A line for the terminal: without each style's own damage, and the items that would settle it in place of the reason."""
    level, metric, _, _, apart, n, p, verdict, _ = row
    return level, metric, apart, n, p, verdict + (f" (n {test.n_needed:,})" if test.n_needed else "")


def _terminal() -> bool:
    import sys

    return sys.stdout.isatty()
