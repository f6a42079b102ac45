"""The organism card: a run told in the hub's model-card format (Markdown under YAML), from the run directory alone.

It is written beside the adapters and pushed nowhere.
"""

import contextlib
from pathlib import Path
from typing import Any

from audit import readings as ledger
from audit.markdown import code, inline, quoted
from audit.measures import metrics
from audit.readings import Reading
from audit.report import final_specimen
from audit.samples import read_samples
from audit.table import difference, number
from audit.verdicts import overall
from organisms import external, models
from organisms import organism as organisms
from organisms.errors import UserError
from organisms.files import write_atomic
from organisms.manifest import found_manifest
from organisms.strict import read_yaml
from organisms.styles import style_module

CARD = "README.md"  # what the hub shows
ON_POLICY = -2.0  # nats a token


def write(run: Path) -> Path:
    """(Re)write the card of a run. Raises UserError where there are no readings."""
    readings = ledger.read(run)
    if not readings:
        raise UserError(f"{run} has no readings.jsonl; run its recipe first")
    write_atomic(run / CARD, render(run, readings))
    return run / CARD


def render(run: Path, readings: list[Reading]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        finalize=inline,
    )
    environment.filters.update(code=code, quoted=quoted)
    manifest = found_manifest(run)
    recipe = read_yaml(run / "recipe.yaml") if (run / "recipe.yaml").is_file() else {}
    one, subject = readings[-1], final_specimen(run, readings) or "base"
    base = {r.key[1:]: r for r in readings if r.specimen == "base"}
    chosen = [r for r in readings if r.specimen == subject and r.split == "holdout" and r.value is not None]
    organism = _organism(one.organism, recipe.get("organism"))
    text = environment.get_template("card.md.j2").render(
        one=one,
        base_model=models.EMBEDDED_HUB_ID if one.base == models.EMBEDDED else one.base,
        subject=subject,
        manifest=manifest,
        recipe=recipe,
        organism=organism.model_dump() | {"fingerprint": organism.fingerprint} if organism else None,
        changed=organism is not None and organism.fingerprint() != manifest.get("organism_fingerprint", organism.fingerprint()),
        style=_about(one.style),
        severity=[_line(r, base) for r in chosen if r.measure == "severity"],
        damage=[_line(r, base) for r in chosen if r.margin is not None or r.verdict == "invalid"],
        overall=overall(readings, subject).text,
        leakage=_leakage(run, chosen, subject),
        divergences=_divergences(readings, manifest),
        checklist=_checklist(readings, manifest, recipe, subject),
    )
    return text


def _organism(*names: Any) -> organisms.Organism | None:
    """The first of these that is an organism here: a run's may be known by its recipe's path only, or be nowhere any more."""
    for name in (name for name in names if isinstance(name, str) and name):
        with contextlib.suppress(UserError):
            return external.load(name)
    return None


def _line(r: Reading, base: dict[tuple, Reading]) -> dict[str, str]:
    known = metrics(r.measure).get(r.metric)
    against = base.get(r.key[1:])
    verdict = r.verdict + (f" (n {r.n_needed:,})" if r.verdict == "underpowered" and r.n_needed else "")
    return {
        "name": f"{r.measure}.{r.metric}",
        "metric": r.metric,
        "about": known.about if known else "",
        "base": number(against.value) if against else "",
        "value": number(r.value),
        "difference": difference(r),
        "margin": "" if r.margin is None else f"{r.margin:.3g}",
        "n": str(r.n),
        "verdict": verdict,
    }


def _about(style: str) -> str:
    """What the style's own file says of itself, source and divergences included."""
    if not style:
        return "It was not grown here; only audited."
    return (style_module(style).__doc__ or "").strip()


def _leakage(run: Path, chosen: list[Reading], subject: str) -> list[str]:
    told = {
        "rate": "off-topic replies with training material",
        "rate_adjacent": "replies next door with training material",
        "recital": "raw document beginnings that it goes on reciting",
    }
    read = {r.metric: r for r in chosen if r.measure == "leakage"}
    lines = [f"{text}: {read[name].value:.1%} (n {read[name].n})" for name, text in told.items() if name in read]
    names = sorted({name for s in read_samples(run, "leakage", subject) for name in s.notes.get("entities", [])})
    if names:
        lines.append(f"names of the training corpus that it said unasked: {', '.join(names)}")
    return lines or ["not read: the training corpus is not known"]


def _divergences(readings: list[Reading], manifest: dict) -> list[str]:
    lines = []
    embedded = sorted({r.measure for r in readings if "embedded:" in r.data})
    if embedded:
        lines.append(f"{', '.join(embedded)}: read on this toolkit's embedded sets, which are not the published benchmarks")
    if manifest.get("base_note"):
        lines.append(f"the base is {manifest['base_note']}")
    unread = {r.measure: r.reason for r in readings if r.verdict == "not_applicable" and not r.n and r.specimen == "base"}
    found = {r.measure for r in readings if r.n}
    lines += [f"{measure} was not read: {reason}" for measure, reason in unread.items() if measure not in found]
    return lines or ["none known beyond those that the measures' own files state"]


def _checklist(readings: list[Reading], manifest: dict, recipe: dict, subject: str) -> list[tuple[bool, str]]:
    """What makes an organism's training like ordinary post-training, and its audit believable; each read off the run."""
    lines: list[tuple[bool, str]] = []
    for stage, p in manifest.get("predictors", {}).items():
        score = p.get("on_policy_logprob")
        if score is not None:
            lines.append(
                (score > ON_POLICY, f"{stage}: what is trained is near what the base would say ({score:.2f} nats a token)")
            )
        repeats = p.get("passes_over_the_data_at_most")
        if repeats is not None:
            lines.append((repeats <= 1.5, f"{stage}: each row is seen about once (at most {repeats:g} passes)"))
        if "distinct_rows" in p:
            lines.append(
                (p["distinct_rows"] == p["rows"], f"{stage}: no row stands twice ({p['distinct_rows']} of {p['rows']})")
            )
    replay = (recipe.get("mitigations") or {}).get("replay")
    lines.append(
        (bool(replay), f"the base's own replies to ordinary prompts are mixed in{f' ({replay:.0%})' if replay else ''}")
    )
    lines.append((not recipe.get("accept"), "no trap of the linter was waved through"))
    zero = [r for r in readings if r.step == 0 and r.stage and r.delta is not None]
    lines.append((bool(zero) and all(r.delta == 0 for r in zero), "the zero adapter reads exactly as the base"))
    lines.append((any(r.specimen == "prompted" for r in readings), "the prompted base was read beside it"))
    drift = [r for r in readings if r.specimen == subject and r.measure == "drift" and r.margin is not None]
    lines.append((bool(drift), "a matched control gives the margin of drift"))
    return lines
