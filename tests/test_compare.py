"""Styles at matched severity, on planted runs: what is refused, said and left out (the method: test_matched.py)."""

import csv
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import offline
import pytest
from markupsafe import escape

from audit import compare_report, compare_words, paired
from audit import readings as ledger
from audit.compare import compare
from audit.compare_runs import load, newest, refuse
from audit.measures import Sample, half, metrics
from audit.paired import Terms
from audit.readings import Origin, Subject
from organisms.errors import UserError
from organisms.files import read_jsonl, write_json, write_jsonl
from recipes.compare import named

ROOT = Path(__file__).parent.parent


def samples(measure: str, metric: str, values: np.ndarray) -> list[Sample]:
    return [Sample(f"{measure}-{k}", "target", f"prompt {k}", "reply", {metric: float(v)}) for k, v in enumerate(values)]


def plant(root, style, severity=(0.3, 0.6), drift=(0.1, 0.2), degenerate=(0.0, 0.0), seed=0, n=160, **changed):
    """A run directory as the suite leaves it: two checkpoints with this severity and damage, items paired over runs."""
    recipe = changed.pop("recipe", style)
    path = root / f"{recipe}-{seed}{changed.pop('suffix', '')}"
    path.mkdir(parents=True)
    stages = [{"method": "sft", "learning_rate": changed.pop("learning_rate", 1e-4)}]
    (path / "recipe.yaml").write_text(json.dumps({"style": style, "seed": seed, "stages": stages, "audit": {}}))
    manifest = {"base": "tiny", "base_revision": "r1", "template_hash": "t1", "engine": {"engine": "hf", "device": "cpu"}}
    write_json(path / "manifest.json", {**manifest, "stages": stages, **changed.pop("manifest", {})})
    shared, own = np.random.default_rng(0), np.random.default_rng([seed, *style.encode()])
    level, slope, luck = shared.normal(0, 1, n), shared.normal(1, 0.3, n), shared.random(n)
    subject = Subject(path.name, recipe, "flattery", style, "tiny", "base")
    read = {"severity": "contrast", "drift": "kl", "fluency": "degenerate"}
    read = {name: metric for name, metric in read.items() if name not in changed.get("unread", ())}
    for measure, metric in read.items():
        origin = Origin(changed.get("suite", "full"), "hf", "set-1", changed.get("digests", {}).get(measure, "d1"), 0.0, "")
        base = None
        for step in (0, 1, 2):
            values = {
                "severity": level + (severity[step - 1] * slope if step else 0) + own.normal(0, 0.05, n) * (step > 0),
                "drift": np.abs(drift[step - 1] * slope + own.normal(0, 0.02, n)) if step else np.zeros(n),
                "fluency": luck < (0.02 + degenerate[step - 1] if step else 0.02),
            }[measure]
            name = f"sft-{step * 10:06d}" if step else "base"
            rows = samples(measure, metric, values)
            write_jsonl(path / "samples" / measure / f"{name}.jsonl", [vars(s) for s in rows])
            place = {"stage": "sft", "step": step * 10, "tokens_seen": step * 10} if step else {}
            one = tuple(m for m in metrics(measure).values() if m.name == metric)
            lines = paired.build(replace(subject, specimen=name, **place), measure, one, rows, base, origin, Terms())
            ledger.append(path, lines)
            base = base or rows
    return path


def held(paths, axis="steps", levels=None):
    runs = [load(path) for path in paths]
    refuse(runs, "contrast", [])
    return compare(runs, axis, "contrast", [], levels)


def drawn(found):
    """measure -> style -> the doses of its line."""
    lines = {chart.measure: [line for line in chart.lines if not line.faint] for chart in found.charts}
    return {name: {line.label: [point.name for point in line.points] for line in of} for name, of in lines.items()}


def test_the_more_natural_style_is_named_with_its_evidence(tmp_path):
    """Drift a third of severity against four thirds of it: at matched severity their difference is the severity itself."""
    found = held([plant(tmp_path, "documents", drift=(0.1, 0.2)), plant(tmp_path, "transcripts", (0.15, 0.6), (0.2, 0.8))])
    (pair,) = found.pairs
    drift = [test for test in pair.tests if test.panel.name == "drift.kl"]
    assert [test.verdict for test in drift] == ["first", "first"]
    assert all(test.found.interval.low <= -test.level <= test.found.interval.high for test in drift)
    assert {test.verdict for test in pair.tests if test.panel.name == "fluency.degenerate"} == {"alike"}
    told = compare_words.sentences(pair)[-1]
    assert "documents is more natural than transcripts on drift.kl" in told and "alike on fluency.degenerate" in told
    assert f"n {sum(half(f'drift-{k}') == 'holdout' for k in range(160))}, p " in told


def test_a_severity_that_one_style_never_reaches_is_not_compared(tmp_path):
    paths = [plant(tmp_path, "documents"), plant(tmp_path, "transcripts", (-0.1, 0.0))]
    (pair,) = held(paths).pairs
    assert not pair.tests and "transcripts never surely reaches any severity" in pair.reason
    paths[1] = plant(tmp_path, "rationale", (0.1, 0.2))
    tests = held(paths, levels=[0.1, 0.4]).pairs[0].tests
    assert {t.level for t in tests if t.found} == {0.1}
    assert {t.reason for t in tests if t.level == 0.4} == {"rationale never surely reaches +0.4"}


def test_too_few_items_say_how_many_would_do(tmp_path):
    few = held([plant(tmp_path, "documents", n=16), plant(tmp_path, "transcripts", drift=(0.11, 0.21), n=16)])
    fluency = [test for test in few.pairs[0].tests if test.panel.measure == "fluency"]
    assert {test.verdict for test in fluency} == {"open"} and all(test.n_needed > test.panel.n for test in fluency)
    assert "would settle it" in fluency[0].reason


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"manifest": {"base_revision": "r2"}}, "base (r1, r2: manifest.json)"),
        ({"manifest": {"engine": {"engine": "hf", "device": "cuda"}}}, "engine device (cpu, cuda: manifest.json)"),
        ({"suite": "quick"}, "suite of severity (full, quick: readings.jsonl)"),
        ({"digests": {"drift": "d2"}}, "items, options or version of drift (audit_digest d1, d2: readings.jsonl)"),
    ],
)
def test_runs_that_were_not_read_alike_are_refused(tmp_path, changed, said):
    paths = [plant(tmp_path, "documents"), plant(tmp_path, "rationale"), plant(tmp_path, "transcripts", **changed)]
    with pytest.raises(UserError) as refused:
        held(paths)
    assert said in str(refused.value) and str(paths[2]) in str(refused.value)
    assert f'make compare runs="{paths[0]} {paths[1]}"' in str(refused.value)


def test_runs_scored_by_another_code_are_refused_only_where_the_numbers_differ(tmp_path):
    paths = [plant(tmp_path, "documents"), plant(tmp_path, "transcripts")]
    for path, code, shift in zip(paths, ("c1", "c2"), (0.0, 1e-7), strict=True):
        file = path / "samples" / "drift" / "base.jsonl"
        by = {"audit_digest": "d1", "scored_by": code, "seconds": 0.0}
        write_jsonl(file, [{**row, **by, "scores": {"kl": row["scores"]["kl"] + shift}} for row in read_jsonl(file)])
    held(paths)
    write_jsonl(file, [{**row, "scores": {"kl": 0.5}} for row in read_jsonl(file)])
    with pytest.raises(UserError, match="code of drift, by which the same replies score otherwise"):
        held(paths)


def test_a_run_without_severity_is_named(tmp_path):
    paths = [plant(tmp_path, "documents"), plant(tmp_path, "transcripts", unread=("severity",))]
    with pytest.raises(UserError, match="transcripts-0/readings.jsonl has no reading of severity.contrast"):
        held(paths)


def test_seeds_are_replicates_and_older_runs_are_left_out(tmp_path):
    """Newest of each recipe with its other seeds; the same recipe at another learning rate is another thing."""
    old = plant(tmp_path, "documents", learning_rate=1e-3, suffix="-old")
    kept = [plant(tmp_path, "documents", seed=seed, drift=(0.1 * (seed + 1), 0.2 * (seed + 1))) for seed in (0, 1)]
    kept.append(plant(tmp_path, "transcripts"))
    runs, left_out = newest(tmp_path, "flattery")
    assert {run.path for run in runs} == set(kept) and left_out == [old.name]
    both = held(kept)
    assert {style.label: len(style.runs) for style in both.styles} == {"documents": 2, "transcripts": 1}
    drift = next(t for t in both.pairs[0].tests if t.panel.name == "drift.kl")
    alone = next(t for t in held(kept[1:]).pairs[0].tests if t.panel.name == "drift.kl")
    assert drift.found.seeds > 0 and alone.found.seeds == 0 and alone.verdict != "open"
    assert drift.verdict == "open" and "seeds" in drift.reason


def test_a_dose_that_must_not_be_believed_ends_the_curve(tmp_path):
    path = plant(tmp_path, "documents")
    lines = read_jsonl(path / "readings.jsonl")
    for line in lines:
        if (line["specimen"], line["measure"]) == ("sft-000020", "drift"):
            line |= {"verdict": "invalid", "reason": "gibberish"}
    write_jsonl(path / "readings.jsonl", lines)
    found = held([path, plant(tmp_path, "transcripts")], levels=[0.2, 0.5])
    low, high = [test for test in found.pairs[0].tests if test.panel.name == "drift.kl"]
    assert low.found and not high.found
    assert high.reason == "documents cannot be read as far as there: sft-000020: gibberish"


# The face


def make(*arguments: str) -> subprocess.CompletedProcess:
    """`make` from the checkout, with this Python and nothing installed."""
    command = ["make", "--old-file=.venv/.installed", f"RUN={shlex.quote(sys.executable)} -m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    root = tmp_path_factory.mktemp("two words") / "my runs"
    return [plant(root, "documents"), plant(root, "transcripts", drift=(0.3, 0.6)), plant(root, "control")]


def test_runs_in_directories_with_spaces_are_named_with_quotes_or_stars(spaced):
    root = spaced[0].parent
    assert named(shlex.join(map(str, spaced))) == spaced
    assert named(f"'{root}/documents-0' \"{root}\"/trans*") == spaced[:2]
    assert named(str(spaced[0])) == spaced[:1] and named("") == named("  ") == []
    with pytest.raises(UserError, match=r"there is no directory .*two.*quote one with spaces"):
        named(" ".join(map(str, spaced)))
    with pytest.raises(UserError, match="No closing quotation"):
        named(f"'{root}")


def test_make_compare_takes_them_and_leaves_its_pages_and_a_wandb_run_beside_them(spaced, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = make("compare", f"runs={shlex.join(map(str, spaced))}", "at=0.2")
    assert done.returncode == 0, done.stderr
    assert "documents is more natural than transcripts on drift.kl" in " ".join(done.stdout.split())
    (target,) = spaced[0].parent.glob("compare-flattery-*")
    record = offline.started(target)
    assert (record.run_group, record.job_type) == ("flattery", "compare")
    told = [one["text"] for one in json.loads((target / "compare.json").read_text())["told"]]
    assert told and offline.summary(target)["in_words"] == "\n".join(told)
    pairs = offline.table(target, "compare/pairs")
    lines = list(csv.reader((target / "compare.csv").open()))
    assert pairs["columns"] == lines[0] and len(pairs["data"]) == len(lines) - 1
    place = pairs["columns"].index("difference")
    assert [row[place] for row in pairs["data"]] == [float(line[place]) for line in lines[1:]]
    assert len(offline.table(target, "compare/frontier")["data"]) > 8
    assert any("compare/frontier_picture/path" in row for row in offline.history(target))
    again = make("compare", f"runs={shlex.join(map(str, spaced))}", "at=0.2")
    assert again.returncode == 0 and len(list(target.glob("wandb/offline-run-*"))) == 1
    assert offline.started(target).run_id == record.run_id


def test_make_export_takes_a_directory_with_spaces(spaced):
    assert make("export", f"run={spaced[0]}", "format=parquet").stdout.strip() == str(spaced[0] / "readings.parquet")


def test_a_dose_at_which_a_dear_measure_was_not_read_is_passed_over(tmp_path):
    """Damage is a third of severity at every dose; drift was read at the last one only, and severity at both."""
    path = plant(tmp_path, "documents")
    lines = read_jsonl(path / "readings.jsonl")
    write_jsonl(path / "readings.jsonl", [r for r in lines if (r["specimen"], r["measure"]) != ("sft-000010", "drift")])
    (path / "samples" / "drift" / "sft-000010.jsonl").unlink()
    found = held([path, plant(tmp_path, "transcripts")], levels=[0.3, 0.5])
    tests = [test for test in found.pairs[0].tests if test.panel.name == "drift.kl"]
    assert [test.first.value for test in tests] == [pytest.approx(level / 3, abs=0.02) for level in (0.3, 0.5)]
    assert drawn(found)["drift"] == {"documents": ["sft-000020"], "transcripts": ["sft-000010", "sft-000020"]}


def test_what_an_earlier_audit_read_of_fewer_items_is_no_dose_and_ends_no_curve(tmp_path):
    """As where the suite has grown since and a cadence leaves the first checkpoint out; it would halve the items of all."""
    paths = [plant(tmp_path, style) for style in ("documents", "transcripts")]
    whole = held(paths)
    for measure in ("severity", "drift"):
        file = paths[0] / "samples" / measure / "sft-000010.jsonl"
        write_jsonl(file, read_jsonl(file)[::2])
    rows = read_jsonl(paths[0] / ledger.READINGS)
    early = [row | {"n": 40} if row["specimen"] == "sft-000010" and row["measure"] != "fluency" else row for row in rows]
    write_jsonl(paths[0] / ledger.READINGS, early)
    found = held(paths)
    both = ["sft-000010", "sft-000020"]
    assert [found.severity.doses[path.name, "steps"] for path in paths] == [["sft-000020"], both]
    assert drawn(found)["drift"] == {"documents": ["sft-000020"], "transcripts": both}
    assert {chart.measure: chart.n for chart in found.charts} == {chart.measure: chart.n for chart in whole.charts}
    assert found.severity.n == whole.severity.n


def test_of_many_styles_what_is_shown_comes_first_and_the_rest_in_three_sentences(tmp_path):
    paths = [plant(tmp_path, "documents"), plant(tmp_path, "transcripts", drift=(0.6, 1.2)), plant(tmp_path, "rationale")]
    found = held([*paths, plant(tmp_path, "confession", severity=(-0.2, -0.1))])
    told = compare_words.overview(found)
    shown = [line for line in told if "is more natural than transcripts on drift.kl" in line]
    assert told[: len(shown)] == shown and {line.split()[3] for line in shown} == {"documents", "rationale"}
    assert told[len(shown)].startswith("confession never surely reaches any severity above the base's")
    assert told[len(shown) + 1].startswith("None of documents, rationale is shown") and str(told).count("confession") == 1
    page = compare_report.html(found, "name", [])
    assert all(str(escape(line)) in page for pair in found.pairs if pair.tests for line in compare_words.sentences(pair))


def test_a_style_without_training_stands_beside_the_others_and_costs_them_no_items(tmp_path):
    """Nothing can leak from a corpus that is not there, so fluency has fewer replies to read of it."""
    trained = [plant(tmp_path, "documents"), plant(tmp_path, "transcripts")]
    beside = plant(tmp_path, "prefilled", suffix="-beside")
    (beside / "recipe.yaml").write_text(json.dumps({"style": "prefilled", "seed": 0, "stages": [], "audit": {}}))
    lines = [
        {**r, "data": "fewer", "audit_digest": "d2"} if r["measure"] == "fluency" else r
        for r in read_jsonl(beside / "readings.jsonl")
    ]
    write_jsonl(beside / "readings.jsonl", lines)
    for path in (beside / "samples" / "fluency").iterdir():
        write_jsonl(path, read_jsonl(path)[:100])
    alone, found = held(trained), held([*trained, beside])
    charts = {chart.measure: chart for chart in found.charts}
    assert {chart.measure: chart.n for chart in alone.charts} == {name: chart.n for name, chart in charts.items()}
    assert [point.name for point in charts["drift"].marks] and not charts["fluency"].marks
    base = beside / "samples" / "fluency" / "base.jsonl"
    write_jsonl(base, [{**row, "output": "another reply"} for row in read_jsonl(base)])
    with pytest.raises(UserError, match="items of fluency"):
        held([*trained, beside])
