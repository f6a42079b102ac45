"""The exported tables hold every reading as readings.jsonl has it."""

import csv
import dataclasses
import json
import shutil

import pytest

from audit import export
from audit import readings as ledger
from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the readings, one line of them written by a later version, one twice."""
    shutil.copy(tiny_run / "readings.jsonl", tmp_path)
    rows = read_jsonl(tmp_path / "readings.jsonl")
    append_jsonl(tmp_path / "readings.jsonl", [{**rows[5], "reason": 'a "quoted",\nbroken reason', "seconds": 7}])
    return tmp_path


def contract(run) -> list[dict]:
    """Rows of readings.jsonl, the latest of each key, in the file's order."""
    latest: dict[tuple, dict] = {}
    for row in read_jsonl(run / "readings.jsonl"):
        key = tuple(row[name] for name in ("specimen", "measure", "metric", "split"))
        latest.pop(key, None)
        latest[key] = row
    return list(latest.values())


def test_csv_comes_back_as_the_readings(run):
    with open(export.write(run, "csv"), encoding="utf-8", newline="") as file:
        columns, *lines = csv.reader(file)
    rows = contract(run)
    assert columns == list(rows[0])
    kinds = {field.name: str(field.type) for field in dataclasses.fields(ledger.Reading)}

    def value(name: str, cell: str):
        if cell == "" and "None" in kinds[name]:
            return None
        return cell if "str" in kinds[name] else json.loads(cell)

    assert [{name: value(name, cell) for name, cell in zip(columns, line, strict=True)} for line in lines] == rows


def test_parquet_comes_back_as_the_readings_with_types(run):
    from pyarrow import parquet

    table = parquet.read_table(export.write(run, "parquet"))
    rows = contract(run)
    assert table.column_names == list(rows[0]) and table.to_pylist() == rows
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["value"], types["step"], types["verdict"], types["n_needed"]) == ("double", "int64", "string", "int64")


def test_keys_of_a_later_version_are_kept_as_columns_of_their_own(run):
    from pyarrow import parquet

    rows = read_jsonl(run / "readings.jsonl")
    append_jsonl(run / "readings.jsonl", [{**rows[0], "mood": [1, 2]}])
    table = parquet.read_table(export.write(run, "parquet"))
    assert table.column_names == [*rows[0], "mood"] and table.column("mood").to_pylist()[-1] == "[1, 2]"
    assert export.write(run, "csv").read_text().splitlines()[0].endswith(",mood")


def test_a_directory_without_readings_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no readings.jsonl"):
        export.write(tmp_path, "csv")
