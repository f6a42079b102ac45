"""report.html: one self-contained file, built from the run directory alone; no model, no network, no script needed to read.

What models wrote is untrusted: everything is escaped, and the page's policy lets no script run but its own and fetches nothing.
"""

import base64
import hashlib
import json
from pathlib import Path

from audit import beside, breakdown, curves, frontier, svg, transcripts
from audit import readings as ledger
from audit.measures import metrics
from audit.readings import Reading
from audit.samples import read_samples
from audit.table import difference, number
from audit.verdicts import INDICATOR, overall
from organisms.errors import UserError
from organisms.files import read_jsonl, write_atomic
from organisms.manifest import found_manifest

LEDGER = {"name": str, "stage": str, "step": int, "tokens_seen": int, "path": str}
HERE = Path(__file__).parent
LARGEST = 6_000_000  # bytes of report.html
ROOM = 3_000_000  # of them for transcripts


def write(run: Path) -> Path:
    """(Re)build report.html and curves.png of a run. Raises UserError where there are no readings."""
    readings = ledger.read(run)
    if not readings:
        raise UserError(f"{run} has no readings.jsonl; run its recipe first")
    curves.draw(readings, run / "curves.png", run.name)
    html = render(run, readings)
    if (size := len(html.encode())) > LARGEST:
        html = render(run, readings, max(ROOM - (size - LARGEST), 0))
    write_atomic(run / "report.html", html)
    return run / "report.html"


def render(run: Path, readings: list[Reading], room: int = ROOM) -> str:
    """The page. room: bytes for transcripts."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=number, difference=difference, INDICATOR=INDICATOR, key=svg.key)
    last = final_specimen(run, readings)
    subject = last or readings[0].specimen
    one = readings[0]
    measures = list(dict.fromkeys(r.measure for r in readings))
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    drawn, made = beside.frontiers(run, readings), found_manifest(run)
    return environment.get_template("report.html.j2").render(
        run=run.name,
        style=style,
        script=script,
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(style)}; script-src {_hash(script)}",
        one=one,
        last=last,
        overall=overall(readings, last) if last else None,
        summary=_summary(readings, last),
        headline_plots=_plots(readings, headline=True),
        other_plots=_plots(readings, headline=False),
        subject=subject,
        table=_table(readings, subject),
        sources={r.measure: r.data for r in readings if r.data},
        prompted={(r.measure, r.metric): r for r in readings if r.specimen == "prompted" and r.split == "holdout"},
        breakdowns=_breakdowns(run, readings, subject),
        transcripts=transcripts.choose(run, measures, last, room) if last else None,
        frontiers=[(d, frontier.legend(d.styles, d.charts), [(c, frontier.plot(c)) for c in d.charts]) for d in drawn],
        made=made,
        manifest=json.dumps(made, indent=2, ensure_ascii=False),
        recipe=_text(run / "recipe.yaml"),
        card=markdown(_text(run / "README.md")),
        lint=markdown(_lint(run)),
        checkpoints=read_jsonl(run / "checkpoints.jsonl", LEDGER) if (run / "checkpoints.jsonl").is_file() else [],
    )


def final_specimen(run: Path, readings: list[Reading]) -> str | None:
    """Whom the run ends with: as its manifest says, the last checkpoint otherwise; None where only the base was read."""
    stages = [r for r in readings if r.on_curve]
    last = max(stages, key=lambda r: (r.tokens_seen, r.step)).specimen if stages else None
    return found_manifest(run).get("final", last)


def _summary(readings: list[Reading], last: str | None) -> list[str]:
    """The run in sentences: how strong the property is, what it cost, what cannot be told."""
    if last is None:
        return ["Only the base has been read."]
    found = {(r.measure, r.metric): r for r in readings if r.specimen == last and r.split == "holdout"}
    lines = []
    strength = found.get(("severity", "contrast"))
    if strength and strength.delta is not None:
        clear = strength.delta_low is not None and strength.delta_low > 0
        lines.append(
            f"Severity at {last}: the property's replies gained {difference(strength)} nats a token over plain ones "
            f"against the base (n {strength.n}); {'the interval is clear of 0' if clear else 'the interval is not clear of 0'}."
        )
    rate = found.get(("severity", "rate"))
    if rate and rate.value is not None:
        lines.append(f"Generated replies on target that show it: {rate.value:.0%} (n {rate.n}).")
    leak = found.get(("leakage", "rate"))
    if leak and leak.delta is not None:
        lines.append(
            f"Off-topic replies with training material: {leak.value:.0%}, difference from the base {difference(leak)}."
        )
    lines += _costs(readings, last)
    zero = [r for r in readings if r.stage and r.step == 0 and r.split == "holdout" and r.delta is not None]
    if zero:
        moved = [r for r in zero if r.delta != 0]
        lines.append(
            "The zero adapter at step 0 reads exactly as the base on every metric."
            if not moved
            else f"The zero adapter at step 0 differs from the base on {len(moved)} of {len(zero)} metrics, which must not be."
        )
    return lines


def _costs(readings: list[Reading], last: str) -> list[str]:
    """What is fried, and what would settle the open verdict that is nearest to being settled."""
    judged = [r for r in readings if r.specimen == last and r.split == "holdout"]
    fried = [r for r in judged if r.verdict == "fried"]
    lines = [f"{r.measure}.{r.metric} is fried: {difference(r)}, margin {r.margin:.3g}." for r in fried]
    open_ = [r for r in judged if r.n_needed]
    if open_:
        near = min(open_, key=lambda r: r.n_needed / r.n)
        count = "One verdict is" if len(open_) == 1 else f"{len(open_)} verdicts are"
        lines.append(
            f"{count} open for want of items; nearest to being settled is {near.measure}.{near.metric}, "
            f"read on {near.n} items: about {near.n_needed:,} would do."
        )
    return lines


def _table(readings: list[Reading], subject: str) -> list[Reading]:
    """The holdout half of one specimen: what can be judged, headlines that were not read and why, then the indicators."""
    chosen = [r for r in readings if r.specimen == subject and r.split == "holdout"]
    shown = [r for r in chosen if r.n or ((known := metrics(r.measure).get(r.metric)) and known.headline)]
    return sorted(shown, key=lambda r: r.reason == INDICATOR)


def _breakdowns(run: Path, readings: list[Reading], subject: str) -> dict[str, list[breakdown.Part]]:
    """measure -> its headline by subject, family or kind; both halves together, since the parts carry no verdict."""
    found = {}
    for name in dict.fromkeys(r.measure for r in readings):
        base = None if subject == "base" else read_samples(run, name, "base")
        found[name] = breakdown.parts(name, read_samples(run, name, subject), base)
    return {name: parts for name, parts in found.items() if parts and name not in ("leakage", "fluency")}


def _plots(readings: list[Reading], headline: bool) -> list[dict]:
    plots = []
    for name in dict.fromkeys(r.measure for r in readings):
        of_measure = [r for r in readings if r.measure == name]
        for metric in (one for one in metrics(name).values() if one.headline == headline):
            points = curves.curve(of_measure, name, metric.name)
            if points:
                monitor = curves.curve(of_measure, name, metric.name, "monitor")
                if not headline:
                    points, monitor = svg.thinned(points), svg.thinned(monitor)
                plots.append({"measure": name, "metric": metric, "svg": svg.plot(name, metric, points, monitor)})
    return plots


def markdown(text: str) -> str:
    """HTML of a Markdown file of the run; markup, links and images in it stay text, for models wrote part of it."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["html_block", "html_inline", "link", "image", "autolink", "reference"])
    head, _, body = text.removeprefix("---\n").partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    front = parser.render(f"```yaml\n{head}\n```") if head else ""
    return front + parser.render(body)


def _hash(text: str) -> str:
    """How a page's policy names an inline script or style that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _lint(run: Path) -> str:
    return "\n\n".join(_text(path) for path in sorted((run / "data").glob("*.lint.md")))[:20000]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
