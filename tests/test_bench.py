"""The bench runs end to end, holds both sides equal, and gives no ratio where they are not. Nothing here looks at speed."""

import json
from importlib.util import find_spec

import pytest

from bench import __main__ as bench
from bench import plain
from bench.rows import HEAD
from bench.setup import Setup

CHEAP = ["mmlu", "preferences", "generation", "limits"]
peer = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")


@pytest.fixture(scope="module")
def small(tiny_base):
    return Setup(str(tiny_base), "small")


def test_rows_are_measured_printed_and_written(small, tmp_path, capsys):
    """Two rows each of MMLU and of limits, four of preferences, one of generation."""
    names = CHEAP if find_spec("lm_eval") else CHEAP[1:]
    rows = bench.measure(small, names, tmp_path / "bench.json")
    assert [row.state for row in rows] == ["measured"] * (9 if "mmlu" in names else 7)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in rows]
    assert written["threads"] > 0 and written["size"] == "small" and written["load"] >= 0
    for row in written["rows"]:
        numbers = row["numbers"]
        assert len(numbers["ours"]) == len(numbers["peer"]) == 3 and numbers["load"] >= 0
    printed = capsys.readouterr().out
    assert f"| {' | '.join(HEAD)} |" in printed and "load before the rows" in printed
    assert "4 of 4 replies" in printed and "p within" in printed


def test_a_peer_with_other_results_fails_its_row_and_the_command(small, monkeypatch, capsys):
    scored = plain.scored

    def off(*given):
        return [[value - 0.1 for value in row] for row in scored(*given)]

    monkeypatch.setattr(plain, "scored", off)
    monkeypatch.setattr(bench, "Setup", lambda base, size: small)
    monkeypatch.setattr("sys.argv", ["bench", "preferences", "--size", "small", "--base", small.name])
    assert bench.main() == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED: log-probabilities lie up to 0.1") == 4  # as they are measured, and in the table
    assert "x (" not in printed


def test_a_reply_that_differs_away_from_a_tie_fails(small, monkeypatch, capsys):
    generated = plain.generated

    def other(*given):
        replies = generated(*given)
        replies[0].ids[1] += 1
        return replies

    monkeypatch.setattr(plain, "generated", other)
    (row,) = bench.measure(small, ["generation"])
    assert row.state == "failed" and "a reply differs" in row.result


@peer
def test_lm_eval_is_held_equal_letter_by_letter(small, monkeypatch):
    engine = small.engine
    answers = engine.next_token
    monkeypatch.setattr(engine, "next_token", lambda *given: [row[::-1] for row in answers(*given)], raising=False)
    rows = bench.measure(small, ["mmlu"])
    assert [row.state for row in rows] == ["failed", "failed"]


def test_an_unknown_row_is_named_with_the_nearest(monkeypatch, capsys):
    from organisms.errors import UserError

    monkeypatch.setattr("sys.argv", ["bench", "preference"])
    with pytest.raises(UserError, match="no row 'preference'.*preferences"):
        bench.main()


@pytest.mark.slow
def test_the_dearer_rows_are_measured(small):
    rows = bench.measure(small, ["fit", "training", "growth", "recipe", "vllm"])
    assert [row.state for row in rows[:-1]] == ["measured"] * 9
    loads = next(row.numbers["loads"] for row in rows if row.name == "audit against checkpoints")
    assert loads == 1
    shares = rows[8].numbers
    assert sum(shares[part] for part in ("training", "auditing", "loading", "the rest")) == pytest.approx(shares["total"])
