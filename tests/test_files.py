"""Files are whole or absent, and what goes wrong with the disk is one sentence and an exit status."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from organisms import files
from organisms.errors import UserError, run_cli
from organisms.files import append_jsonl, read_jsonl, write_atomic, write_json, write_jsonl

ROOT = Path(files.__file__).parent.parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.jsonl"


def fails_with(number, filename=None):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number), filename)

    return fail


def test_rows_come_back_as_they_were_written(path):
    rows = [{"a": 1}, {"b": ["caf\u00e9", None, 1.5]}, {"c": "two\nlines"}]
    write_jsonl(path, rows[:1])
    append_jsonl(path, rows[1:])
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == 3


def test_appending_makes_the_file_and_its_folders(tmp_path):
    append_jsonl(tmp_path / "a" / "b" / "rows.jsonl", [{"a": 1}])
    assert read_jsonl(tmp_path / "a" / "b" / "rows.jsonl") == [{"a": 1}]


def test_unicode_line_separators_survive(path):
    rows = [{"t": "one\u2028two\u2029three\x85four"}, {"t": "next"}]
    append_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_a_torn_last_line_is_left_out(path):
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": ')
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}]


def test_a_last_line_torn_inside_a_letter_is_left_out(path):
    path.write_bytes('{"a": 1}\n{"t": "caf\u00e9'.encode()[:-1])
    assert read_jsonl(path) == [{"a": 1}]


def test_appending_cuts_a_torn_last_line(path):
    path.write_text('{"a": 1}\n{"b": ')
    append_jsonl(path, [{"c": 3}])
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'
    path.write_text('{"torn": ')
    append_jsonl(path, [{"c": 3}])
    assert path.read_text() == '{"c": 3}\n'


def test_a_last_row_that_is_whole_but_for_its_newline_is_kept_by_appending(path):
    path.write_text('{"a": 1}\n{"b": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}]
    append_jsonl(path, [{"c": 3}])
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_a_broken_middle_line_is_named(path):
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    assert f"{path} line 2 is not JSON" in str(error.value)


def test_a_line_that_is_no_object_is_named(path):
    path.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(UserError, match="line 3 is not a JSON object"):
        read_jsonl(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(UserError, match=r"rows\.jsonl does not exist"):
        read_jsonl(path)


def test_an_append_onto_a_full_disk_leaves_the_rows_before(path, monkeypatch):
    append_jsonl(path, [{"a": 1}])
    monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        append_jsonl(path, [{"b": 2}])
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "state.json"
    write_json(path, {"old": True})
    monkeypatch.setattr(os, broken, fails_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new and longer than before")
    assert json.loads(path.read_text()) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "state.txt"
    write_atomic(path, "old")
    write_atomic(path, "caf\u00e9\n")
    assert path.read_text(encoding="utf-8") == "caf\u00e9\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["state.txt"]


def test_digests_do_not_depend_on_the_order_of_keys():
    assert files.digest({"a": 1, "b": 2}) == files.digest({"b": 2, "a": 1}) != files.digest({"a": 1, "b": 3})
    assert len(files.digest([1], 8)) == 8


def test_the_cache_stands_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("ORGANISMS_CACHE", raising=False)
    assert files.cache_dir() == tmp_path / "xdg" / "natural-organisms"
    monkeypatch.setenv("ORGANISMS_CACHE", str(tmp_path / "mine"))
    assert files.cache_dir() == tmp_path / "mine"


def status(main, capsys):
    """(exit status, lines on stderr) of a command that ends in `main`."""
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        run_cli(main)
    assert ended.type is SystemExit
    return ended.value.code, capsys.readouterr().err.strip().splitlines()


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("returned", "expected"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_that_ends_well_says_nothing(capsys, returned, expected):
    assert status(lambda: returned, capsys) == (expected, [])


def test_a_mistake_of_the_user_is_one_line_and_status_2(capsys):
    assert status(raises(UserError("the key x is unknown")), capsys) == (2, ["error: the key x is unknown"])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "not permitted"),
    ],
)
def test_trouble_with_the_disk_is_one_line_naming_the_file(capsys, number, words):
    code, lines = status(fails_with(number, "/runs/x/readings.jsonl"), capsys)
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert "/runs/x/readings.jsonl" in lines[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full stands for a full disk")
def test_a_really_full_disk_is_one_line(capsys):
    def main():
        with open("/dev/full", "w") as file:
            file.write("x")

    code, lines = status(main, capsys)
    assert code == 2
    assert len(lines) == 1
    assert "the disk is full" in lines[0]


def test_an_interruption_is_one_line_and_status_130(capsys):
    code, lines = status(raises(KeyboardInterrupt()), capsys)
    assert code == 130
    assert len(lines) == 1
    assert "interrupted" in lines[0]


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(errno.ENOENT, "gone"), RuntimeError("x")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_cli(raises(error))


def test_a_reader_that_goes_away_is_no_error():
    code = "from organisms.errors import run_cli\nrun_cli(lambda: [print('line', n, flush=True) for n in range(200000)] and 0)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert stderr == b""
