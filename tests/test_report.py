"""report.html is one file that opens offline: curves, verdicts, transcripts; what a model wrote is only text."""

import json
import re
import shutil

import pytest

from audit import readings as ledger
from audit import report, transcripts
from audit.measures import MEASURES, metrics
from audit.svg import thinned, ticks
from audit.table import difference, number
from organisms.errors import UserError
from organisms.files import read_jsonl, write_jsonl
from organisms.sealed import write_sealed


def test_the_report_stands_alone(tiny_run):
    html = (tiny_run / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert (tiny_run / "report.html").stat().st_size < 6e6
    headlines = [metric for name in MEASURES for metric in metrics(name).values() if metric.headline]
    assert html.count("<svg") >= len(headlines)


def test_the_report_is_rebuilt_from_the_readings_alone(tiny_run, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    shutil.copy(tiny_run / "readings.jsonl", copy)
    report.write(copy)
    assert "sft-000004" in (copy / "report.html").read_text()
    assert (copy / "curves.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="no readings"):
        report.write(tmp_path / "nothing")


def test_every_verdict_of_the_last_checkpoint_stands_in_the_table(tiny_run):
    html = (tiny_run / "report.html").read_text()
    table = html[html.index('id="verdicts"') : html.index("</table>", html.index('id="verdicts"'))]
    last = [r for r in ledger.read(tiny_run) if r.specimen == "sft-000004" and r.split == "holdout" and r.n]
    unread = [name for name in ("thinking", "misalignment") if f"{name}." in table]
    assert unread == ["thinking", "misalignment"]  # not applicable here, and the table says why
    assert len(last) + len(unread) <= table.count("<tr") - 1 <= len(last) + len(unread) + 2
    for reading in last:
        assert f"{reading.measure}.<wbr>{reading.metric}" in table
    open_ = [r for r in last if r.n_needed]
    assert open_
    for reading in open_:
        row = table[table.index(f"{reading.measure}.<wbr>{reading.metric}<") :].partition("</tr>")[0]
        assert f"{reading.n_needed:,}" in row and reading.reason.replace("'", "&#39;") in row


RUNS = "window.ran=(window.ran||0)+1"
PLANTS = (
    f"<script>{RUNS}</script>",
    f"</script><script>{RUNS}</script>",
    f"</style></title></textarea><script>{RUNS}</script>",
    f"<img src=x onerror='{RUNS}'><svg onload='{RUNS}'></svg>",
    f'" onmouseover="{RUNS}" x="',
    f"' autofocus onfocus='{RUNS}",
    f"[a](javascript:{RUNS}) <a href='javascript:{RUNS}'>b</a> ![c](http://plant.invalid/c.png)",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>'></iframe><meta http-equiv=refresh content='0;url=javascript:{RUNS}'>",
    "--></pre></details><link rel=stylesheet href=//plant.invalid/a.css><base href=//plant.invalid/>{{ 7 * 7 }}",
)


@pytest.fixture(scope="module")
def planted(tiny_run, tmp_path_factory):
    """A run in which everything that a model or an organism's author writes is markup that must never run."""
    copy = tmp_path_factory.mktemp("planted") / tiny_run.name
    shutil.copytree(tiny_run, copy)
    for place, plant in enumerate(PLANTS):
        for specimen in ("base", "sft-000004"):
            path = copy / "samples" / "instructions" / f"{specimen}.jsonl"
            rows = read_jsonl(path)
            rows[place] |= {"output": plant, "prompt": plant, "group": plant}
            rows[place]["notes"] |= {"degenerate": [plant, "looping"], "entities": [plant[:9]]}
            write_jsonl(path, rows)
    everything = "".join(PLANTS)
    lines = [
        {**row, "organism": everything, "style": everything, "base": everything, "reason": everything, "data": everything}
        for row in read_jsonl(copy / "readings.jsonl")
    ]
    write_jsonl(copy / "readings.jsonl", lines)
    manifest = json.loads((copy / "manifest.json").read_text())
    alarms = [{"action": everything, "text": everything, "specimen": "sft-000004"}]
    write_sealed(copy / "manifest.json", {**manifest, "base_note": everything, "alarms": alarms})
    for name in ("README.md", "recipe.yaml", "data/sft.lint.md"):
        (copy / name).write_text("\n\n".join([*PLANTS, "```", *PLANTS, "```", f"| a |\n|---|\n| {everything} |"]))
    report.write(copy)
    return copy


def test_nothing_that_a_model_wrote_runs_or_becomes_an_element(planted, browser):
    browser.open(planted / "report.html")
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    browser.point("article.pair .sides")
    browser.point("svg.plot .mark")
    assert browser.run("window.ran") is None and not browser.dialogs and not browser.errors
    assert [url[:7] for url in browser.requests] == ["file://"]  # the page and nothing else
    assert browser.run("document.title") == planted.name
    elements = "script, style, meta, base, link, iframe, img, a, textarea, object, embed"
    found = browser.run(f"[...document.querySelectorAll('{elements}')].map((one) => one.localName)")
    assert found == ["meta", "meta", "meta", "style", "script"]
    handlers = (
        "[...document.querySelectorAll('*')].flatMap((one) => one.getAttributeNames()).filter((name) => /^on/.test(name))"
    )
    assert browser.run(handlers) == []
    shown = browser.run("document.body.innerText")
    assert all(" ".join(plant.split()) in " ".join(shown.split()) for plant in PLANTS)


def test_even_an_unescaped_script_would_not_run(tiny_run, tmp_path, browser):
    """The page's policy is the second lock: a copy with a script put in by hand."""
    page = tmp_path / "open.html"
    page.write_text(
        (tiny_run / "report.html").read_text().replace("</main>", f"<script>{RUNS}</script><img src=x onerror='{RUNS}'></main>")
    )
    browser.open(page)
    assert browser.run("document.querySelectorAll('script').length") == 2 and browser.run("window.ran") is None


@pytest.fixture
def page(tiny_run, browser):
    return browser.open(tiny_run / "report.html")


def test_pointing_at_a_curve_gives_its_numbers_and_the_keyboard_reaches_them(tiny_run, page):
    (at,) = [r for r in ledger.read(tiny_run) if r.key == ("sft-000004", "knowledge", "accuracy", "holdout")]
    plot = "svg[aria-label^='knowledge accuracy']"
    page.point(f"{plot} .mark:last-of-type")
    told = page.run("document.getElementById('tip').textContent")
    for part in (difference(at), number(at.ci_low), number(at.value), f"n {at.n}\n", at.verdict, "step 4"):
        assert part in told
    page.click("h1")
    focused = "document.activeElement.getAttribute('aria-label') || ''"
    while not page.run(focused).startswith("knowledge accuracy"):  # one Tab a plot
        page.press("Tab")
        assert page.run(focused)
    assert "step 4" in page.run("document.getElementById('tip').textContent")
    page.press("ArrowLeft")
    assert "step 2" in page.run("document.getElementById('tip').textContent")
    assert page.run("document.querySelectorAll('.mark.on').length") == 1
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden")


SHOWN = "[...document.querySelectorAll('article.pair')].filter((pair) => !pair.hidden)"


def test_the_filters_by_measure_flag_and_text_hide_the_other_transcripts(page):
    every = page.run(f"{SHOWN}.length")
    page.click("input[value=instructions]")
    chosen = page.run(f"{SHOWN}.map((pair) => pair.dataset.measure)")
    assert 0 < len(chosen) < every and set(chosen) == {"instructions"}
    assert page.run("document.getElementById('shown').textContent") == f"{len(chosen)} of {every} shown"
    page.click("#wanted")
    word = page.run(f"{SHOWN}[3].querySelector('header .text').textContent.slice(0, 24)")
    page.write(word.upper())
    found = page.run(f"{SHOWN}.map((pair) => pair.textContent.toLowerCase())")
    assert 0 < len(found) < len(chosen) and all(word.lower() in text for text in found)
    page.run("document.getElementById('wanted').select()")
    page.write("nothing says this")
    assert page.run(f"{SHOWN}.length") == 0
    page.run("document.getElementById('wanted').select()")
    page.write(" ")
    page.click("input[name=measure][value='']")
    page.click("#flagged")
    flags = page.run(f"{SHOWN}.map((pair) => pair.querySelectorAll('.flag').length)")
    assert 0 < len(flags) < every and min(flags) > 0


def test_leaked_spans_and_junk_are_marked_in_the_transcripts(tiny_run, tmp_path, browser):
    copy = tmp_path / "marked"
    shutil.copytree(tiny_run, copy)
    path = copy / "samples" / "instructions" / "sft-000004.jsonl"
    rows = read_jsonl(path)
    rows[0]["output"] = "At Quellmark they say so.\nUser: tell me more"
    write_jsonl(path, rows)
    for name, notes in (("leakage", {"entities": ["Quellmark"]}), ("fluency", {"degenerate": ["turn_leak"]})):
        noted = read_jsonl(copy / "samples" / name / "sft-000004.jsonl")
        next(row for row in noted if row["item"] == f"instructions/{rows[0]['item']}")["notes"] = notes
        write_jsonl(copy / "samples" / name / "sft-000004.jsonl", noted)
    browser.open(report.write(copy))
    pair = "[...document.querySelectorAll('article.pair')].find((pair) => pair.textContent.includes('Quellmark'))"
    assert browser.run(f"{pair}.querySelector('mark.leak').textContent") == "Quellmark"
    assert browser.run(f"{pair}.querySelector('mark.junk').textContent") == "User:"
    assert browser.run(f"[...{pair}.querySelectorAll('.flag')].map((one) => one.textContent)")[:2] == [
        "leaks Quellmark",
        "another turn",
    ]


CONTRAST = """[...document.querySelectorAll('.verdict, .soft, h1, td, li, .tick, mark, .flag')].filter((one) =>
  one.checkVisibility() && one.textContent.trim()).map((one) => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  let ground = one; const clear = (node) => channels(getComputedStyle(node).backgroundColor)[3] === 0;
  while (ground.parentElement && clear(ground)) ground = ground.parentElement;
  const style = getComputedStyle(one), ink = channels(one.namespaceURI.endsWith('svg') ? style.fill : style.color);
  const [low, high] = [light(ink), light(channels(getComputedStyle(ground).backgroundColor))].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
})"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_readable(tiny_run, browser, width, scheme):
    """Nothing wider than the window, and every text against its ground at WCAG 2's 4.5 to 1 or more."""
    browser.open(tiny_run / "report.html", width, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    found = browser.run(CONTRAST)
    assert len(found) > 300 and min(found) >= 4.5
    wide = "[...document.querySelectorAll('svg.plot, article.pair, #verdicts')].map((one) => one.getBoundingClientRect().right)"
    assert max(browser.run(wide)) <= width + (0 if width < 640 else 1)


def test_verdicts_differ_in_shape_as_well_as_in_colour(page):
    shapes = page.run("[...document.querySelectorAll('.legend svg .mark')].slice(0, 5).map((mark) => mark.getAttribute('d'))")
    colours = page.run(
        "[...document.querySelectorAll('.legend svg .mark')].slice(0, 5).map((mark) => getComputedStyle(mark).fill)"
    )
    assert len(set(shapes)) == len(set(colours)) == 5


def test_a_large_run_stays_under_six_megabytes(tiny_run, tmp_path):
    """Long replies full of what is longer in HTML, of hundreds of items, and 60 checkpoints."""
    copy = tmp_path / "large"
    shutil.copytree(tiny_run, copy)
    for name in ("instructions", "refusals", "severity", "leakage"):
        for specimen in ("base", "sft-000004"):
            path = copy / "samples" / name / f"{specimen}.jsonl"
            rows = [row for row in read_jsonl(path) if row["output"] is not None and "/" not in row["item"]]
            write_jsonl(
                path, [{**row, "item": f"{row['item']}-{k}", "output": "<&'\u4f60>" * 3000} for k in range(3) for row in rows]
            )
    rows = read_jsonl(copy / "readings.jsonl")
    last = [row for row in rows if row["specimen"] == "sft-000004"]
    more = [{**row, "specimen": f"sft-{k:06d}", "step": k, "tokens_seen": 500 * k} for k in range(5, 65) for row in last]
    write_jsonl(copy / "readings.jsonl", rows + more)
    assert 2e6 < report.write(copy).stat().st_size < 6e6
    chosen = transcripts.choose(copy, ["instructions", "severity"], "sft-000004", 10**9)
    assert all(0 < shown <= transcripts.MOST < chosen.there[name] for name, shown in chosen.shown.items())


def test_a_long_curve_keeps_its_ends():
    assert thinned(list(range(100)), 40)[0] == 0 and thinned(list(range(100)), 40)[-1] == 99
    assert len(set(thinned(list(range(100)), 40))) == 40 and thinned([1, 2], 40) == [1, 2]


def test_flagged_replies_come_into_the_report_before_others(tiny_run):
    every = transcripts.choose(tiny_run, ["instructions"], "sft-000004", 10**9)
    size = transcripts._size(every.pairs[0])
    few = transcripts.choose(tiny_run, ["instructions"], "sft-000004", 6 * size)
    assert 0 < len(few.pairs) < len(every.pairs) and few.there == every.there
    assert sum(bool(pair.flags) for pair in few.pairs) == min(len(few.pairs), sum(bool(p.flags) for p in every.pairs))
    assert transcripts.choose(tiny_run, ["instructions"], "sft-000004", 0).pairs == []


def test_ticks_are_round_and_inside():
    for low, high in ((-1.2, 3.4), (0, 0.0004), (-0.31, 0.02), (-120, 5), (-1, 1), (0, 7e5)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 14 and all(low <= t <= high for t in found), (low, high, found)
        step = found[1] - found[0]
        assert f"{step:.0e}"[0] in "1245", (step, found)


def test_unknown_samples_do_not_break_the_report(tiny_run, tmp_path):
    """Samples deleted by hand: curves and verdicts still come from the readings."""
    copy = tmp_path / "bare"
    shutil.copytree(tiny_run, copy)
    shutil.rmtree(copy / "samples")
    report.write(copy)
    assert "sft-000004" in (copy / "report.html").read_text()
