"""The corpus of malformed input in tests/bad/: a YAML table a kind, each case with what must be said of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from organisms.errors import run_cli

BAD = Path(__file__).parent / "bad"


def cases(kind: str) -> list:
    """The cases of one table, as parameters of a test."""
    rows = yaml.safe_load((BAD / f"{kind}.yaml").read_text(encoding="utf-8"))
    return [pytest.param(row, id=row["id"].replace(" ", "-")) for row in rows]


def content(case: dict) -> bytes:
    """What stands in the case's file."""
    if "bytes" in case:
        return case["bytes"].encode("latin-1")
    if "deep" in case:
        return b'{"a": ' + b"[" * case["deep"] + b"\n"
    if "digits" in case:
        return b'{"a": ' + b"9" * case["digits"] + b"}\n"
    if "lines" in case:
        return "".join(f"{line}\n" for line in case["lines"]).encode()
    return case["text"].encode()


def sentence(told: str, says: list[str]) -> None:
    """A mistake as a user reads it: short, on one line, without a traceback, with all that it must name."""
    assert "\n" not in told and "Traceback" not in told, told
    assert len(told) < 700, told
    assert [words for words in says if words not in told] == [], told


def refused(monkeypatch, capsys, main: Callable, *arguments: str) -> str:
    """The one line on stderr of a command that ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    err = capsys.readouterr().err
    assert ended.value.code == 2, err
    (line,) = (one for one in err.strip().splitlines() if not one.startswith("wandb"))  # says when it is slow
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
