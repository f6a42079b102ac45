"""report.html is one file that opens offline: curves with intervals, verdicts, transcripts; model output is only text."""

import re
import shutil
import subprocess

import pytest

from audit import readings as ledger
from audit import report
from audit.measures import MEASURES, metrics
from audit.svg import ticks
from organisms.errors import UserError
from organisms.files import read_jsonl, write_jsonl

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def chromium(tmp_path, url: str, *options: str) -> str:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", *options, url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


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
        assert f"{reading.measure}.{reading.metric}" in table


@pytest.fixture
def planted(tiny_run, tmp_path):
    """A run whose last checkpoint has answered with markup that must never run."""
    copy = tmp_path / "planted"
    shutil.copytree(tiny_run, copy)
    path = copy / "samples" / "instructions" / "sft-000004.jsonl"
    rows = read_jsonl(path)
    rows[0]["output"] = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    rows[1]["prompt"] = "</header><script>document.title='owned'</script>"
    write_jsonl(path, rows)
    report.write(copy)
    return copy


def test_markup_in_replies_is_shown_and_not_run(planted):
    html = (planted / "report.html").read_text()
    assert "<script>document.title" not in html and "<img src=x" not in html
    assert "&lt;script&gt;document.title" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_report_opens_in_a_browser(planted, tmp_path):
    dom = chromium(tmp_path, f"file://{planted / 'report.html'}", "--dump-dom", "--virtual-time-budget=3000")
    assert "<title>owned" not in dom
    assert dom.count("<svg") >= 6 and dom.count('class="interval') > 6
    assert dom.count('<article class="pair"') > 30 and "sft-000004" in dom
    shot = tmp_path / "shot.png"
    chromium(tmp_path, f"file://{planted / 'report.html'}", f"--screenshot={shot}", "--window-size=1280,1400")
    assert shot.stat().st_size > 30_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_measure_filter_hides_other_transcripts(tiny_run, tmp_path):
    """The page's own script run with one filter chosen: a copy that clicks at load."""
    page = tmp_path / "clicked.html"
    click = "<script>document.querySelector('input[value=instructions]').click()</script></body>"
    page.write_text((tiny_run / "report.html").read_text().replace("</body>", click))
    dom = chromium(tmp_path, f"file://{page}", "--dump-dom", "--virtual-time-budget=3000")
    pairs = re.findall(r'<article class="pair"([^>]*)>', dom)
    shown = [attributes for attributes in pairs if "hidden" not in attributes]
    assert shown and all('data-measure="instructions"' in attributes for attributes in shown)
    assert len(shown) < len(pairs)


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
