"""Styles at matched severity, from real runs: adapter scales, and the way to a page, a report and W&B."""

import csv
import json
import shutil

import offline
import pytest
from markupsafe import escape

from audit import beside, compare_report, compare_words, curves, report
from audit import readings as ledger
from audit.compare import compare
from audit.compare_runs import load, newest, refuse
from audit.frontier import plot
from audit.publish import publish
from organisms.errors import UserError
from organisms.sealed import write_sealed
from recipes.dose import dose
from recipes.recipe import resolve
from recipes.run import execute


@pytest.fixture(scope="module")
def grown(tiny_recipe, tmp_path_factory):
    """A tiny recipe, its positive and its negative control, and the first at two more adapter scales."""
    root = tmp_path_factory.mktemp("compared")
    measures = "audit.measures=[severity,drift,fluency]"
    runs = {style: execute(resolve(str(tiny_recipe), [f"style={style}", measures]), root) for style in ("documents", "control")}
    other = ["style=pessimised", "stages[0].learning_rate=1e-1", measures]
    runs["pessimised"] = execute(resolve(str(tiny_recipe), other), root)
    dose(runs["documents"], [1.5, 0.5])
    return runs


def test_scales_are_a_dose_that_leaves_the_curve_of_steps_alone(grown):
    run = grown["documents"]
    found = load(run)
    assert [d.specimen for d in found.doses("scale")] == ["sft-000004@0.5", "sft-000004", "sft-000004@1.5"]
    assert [d.specimen for d in found.doses("steps")] == ["sft-000002", "sft-000004"]
    kl = [found.reading(d.specimen, "drift", "kl_base").value for d in found.doses("scale")]
    assert 0 < kl[0] < kl[1] < kl[2]
    steps = [r.specimen for r in curves.curve(ledger.read(run), "drift", "kl")]
    assert steps == ["sft-000000", "sft-000002", "sft-000004"]
    lines = (run / "readings.jsonl").read_bytes()
    dose(run, [0.5, 1.5])
    assert (run / "readings.jsonl").read_bytes() == lines


def test_a_dose_needs_a_finished_run_and_a_scale_that_is_new(grown, tmp_path):
    with pytest.raises(UserError, match="scales=1: "):
        dose(grown["documents"], [0.5, 1.0])
    copy = tmp_path / grown["control"].name
    shutil.copytree(grown["control"], copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    write_sealed(copy / "manifest.json", {key: value for key, value in manifest.items() if key != "final"})
    with pytest.raises(UserError, match="is not finished"):
        dose(copy, [0.5])
    write_sealed(copy / "manifest.json", {**manifest, "engine": {**manifest["engine"], "device": "tpu"}})
    with pytest.raises(UserError, match="device tpu, here c"):
        dose(copy, [0.5])


@pytest.fixture(scope="module")
def page(grown):
    runs, _ = newest(grown["documents"].parent, "flattery")
    refuse(runs, "contrast", [])
    found = compare(runs, "steps", "contrast", [], None)
    target = grown["documents"].parent / "compare-flattery"
    compare_report.write(found, target, [])
    return found, target


def test_a_comparison_is_written_for_eyes_and_for_machines(page):
    found, target = page
    assert {style.label for style in found.styles} == {"documents", "pessimised"}  # the control is a mark
    assert (target / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    html = (target / "compare.html").read_text()
    assert "://" not in html and "<script" not in html
    assert html.count("<figure>") == len(found.charts) == 1
    assert "fluency.degenerate is not compared: sft-000002: no headroom" in html  # random weights are degenerate already
    points = list(csv.DictReader((target / "frontier.csv").open()))
    drift = [p for p in points if (p["measure"], p["label"]) == ("drift", "documents")]
    kinds = [(p["specimen"], p["kind"]) for p in drift]
    assert ("sft-000004", "dose") in kinds and ("sft-000004@0.5", "other axis") in kinds
    assert {p["label"] for p in points if p["kind"] == "mark"} >= {"control"}
    reading = found.styles[[s.label for s in found.styles].index("documents")].runs[0].reading("sft-000004", "drift", "kl")
    last = next(p for p in drift if (p["specimen"], p["kind"]) == ("sft-000004", "dose"))
    assert float(last["damage"]) == pytest.approx(reading.delta, rel=1e-3) and int(last["n"]) == reading.n
    assert "## Which is more natural" in (target / "compare.md").read_text()


def test_the_page_opens_in_a_browser(page, browser):
    _, target = page
    for width in (1280, 390):
        browser.open(target / "compare.html", width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run("document.querySelectorAll('figure svg.plot .mark').length") > 4
        assert not browser.errors and len(browser.requests) == 1


def test_wandb_gets_the_frontier_of_a_run_at_several_scales(grown, tmp_path, monkeypatch):
    copy = tmp_path / grown["documents"].name
    shutil.copytree(grown["documents"], copy)
    monkeypatch.setenv("WANDB_MODE", "offline")
    publish(copy)
    points = offline.table(copy, "report/frontier")
    place = points["columns"].index("specimen")
    assert {"sft-000004@0.5", "sft-000004", "sft-000004@1.5"} <= {row[place] for row in points["data"]}
    assert any("report/frontier_picture/path" in row for row in offline.history(copy))
    assert "sft-000004@1.5/drift/kl" in offline.summary(copy)


def test_a_report_draws_the_runs_own_scales_and_the_comparison_it_is_part_of(page, grown, browser):
    """The comparison's picture comes back from its CSV, with the numbers that stand there."""
    found, target = page
    run = grown["documents"]
    html = report.write(run).read_text()
    assert "at scales 0.5, 1, 1.5" in html and f"From {target.name}" in html
    assert all(str(escape(line)) in html for pair in found.pairs for line in compare_words.sentences(pair))
    assert "Held against other styles" in report.write(grown["control"]).read_text()  # a mark in it
    read = beside.frontiers(run, ledger.read(run))[1].charts
    assert [plot(chart) for chart in read] == [plot(chart) for chart in found.charts]
    browser.open(run / "report.html")
    assert browser.run("document.querySelectorAll('section.frontier').length") == 2
    browser.point("section.frontier svg.plot .mark")
    told = browser.run("document.getElementById('tip').textContent")
    assert "severity" in told and "damage" in told
