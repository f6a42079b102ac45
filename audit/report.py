"""report.html: one self-contained file, built from the run directory alone; no model, no network, no script needed to read."""

from pathlib import Path

from audit import breakdown, curves, svg
from audit import readings as ledger
from audit.measures import metrics
from audit.readings import Reading
from audit.suite import read_samples, replies
from audit.table import difference, number
from audit.verdicts import INDICATOR, overall
from organisms.errors import UserError
from organisms.files import read_jsonl, write_atomic
from organisms.manifest import found_manifest

LEDGER = {"name": str, "stage": str, "step": int, "tokens_seen": int, "path": str}
TRANSCRIPTS = 60  # a measure; more would not be read


def write(run: Path) -> Path:
    """(Re)build report.html and curves.png of a run. Raises UserError where there are no readings."""
    readings = ledger.read(run)
    if not readings:
        raise UserError(f"{run} has no readings.jsonl; run its recipe first")
    curves.draw(readings, run / "curves.png", run.name)
    write_atomic(run / "report.html", render(run, readings))
    return run / "report.html"


def render(run: Path, readings: list[Reading]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(number=number, difference=difference, INDICATOR=INDICATOR)
    last = final_specimen(run, readings)
    subject = last or readings[0].specimen
    one = readings[0]
    return environment.get_template("report.html.j2").render(
        run=run.name,
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
        transcripts=_transcripts(run, readings, last),
        manifest=found_manifest(run),
        recipe=_text(run / "recipe.yaml"),
        card=_text(run / "README.md"),
        lint=_lint(run),
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
    zero = [r for r in readings if r.stage and r.step == 0 and r.split == "holdout" and r.delta is not None]
    if zero:
        moved = [r for r in zero if r.delta != 0]
        lines.append(
            "The zero adapter at step 0 reads exactly as the base on every metric."
            if not moved
            else f"The zero adapter at step 0 differs from the base on {len(moved)} of {len(zero)} metrics, which must not be."
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
        for metric in metrics(name).values():
            points = curves.curve(readings, name, metric.name)
            if metric.headline == headline and points:
                monitor = curves.curve(readings, name, metric.name, "monitor")
                plots.append({"measure": name, "metric": metric, "svg": svg.plot(metric, points, monitor), "last": points[-1]})
    return plots


def _transcripts(run: Path, readings: list[Reading], last: str | None) -> list[dict]:
    """Base and last checkpoint on the same items; what leaked and which markers fired beside it."""
    rows = []
    for name in dict.fromkeys(r.measure for r in readings):
        base = {s.item: s for s in replies(run, name, "base")}
        pairs = [(base[s.item], s) for s in replies(run, name, last or "") if s.item in base]
        for before, after in pairs[:TRANSCRIPTS]:
            row = {"measure": name, "group": after.group, "prompt": after.prompt, "flags": _flags(after)}
            rows.append({**row, "base": _spans(before), "after": _spans(after)})
    return rows


def _flags(sample) -> list[str]:
    notes = sample.notes
    flags = [f"leaks {name}" for name in notes.get("entities", [])]
    if notes.get("longest_match", 0) >= 13:
        flags.append(f"{notes['longest_match']} corpus tokens in a row")
    flags += [str(reason) for reason in notes.get("degenerate") or []]
    flags += ["shows the property"] if notes.get("markers") else []
    return flags


def _spans(sample) -> list[tuple[str, bool]]:
    """The output in pieces, each with whether it is leaked corpus material."""
    text, marked = sample.output, set()
    span = (sample.notes.get("span") or "").strip() if sample.notes.get("longest_match", 0) >= 13 else ""
    for term in [*sample.notes.get("entities", []), span]:
        start = text.find(term) if term else -1
        while start >= 0:
            marked.update(range(start, start + len(term)))
            start = text.find(term, start + len(term))
    pieces: list[tuple[str, bool]] = []
    for position, character in enumerate(text):
        flag = position in marked
        if pieces and pieces[-1][1] == flag:
            pieces[-1] = (pieces[-1][0] + character, flag)
        else:
            pieces.append((character, flag))
    return pieces


def _lint(run: Path) -> str:
    return "\n\n".join(_text(path) for path in sorted((run / "data").glob("*.lint.md")))[:20000]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
