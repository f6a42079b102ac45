"""readings.csv and readings.parquet: the readings of a run as a table, for spreadsheets and data frames.

One row a reading, the latest of each as everywhere; the columns are the fields of readings.jsonl, in its
order, and after them keys that this version does not know. What is None is an empty cell in CSV and null in Parquet.
"""

import csv
import dataclasses
import io
import typing
from pathlib import Path

from audit import readings as ledger
from audit.readings import Reading
from organisms.errors import UserError
from organisms.files import write_atomic

FIELDS = tuple(field.name for field in dataclasses.fields(Reading) if field.name != "extra")


def write(run: Path, form: str) -> Path:
    """Write the table of a run and return its path. form: `csv` or `parquet`. Raises UserError where there are no readings."""
    rows = [reading.row() for reading in ledger.read(run)]
    if not rows:
        raise UserError(f"{run} has no readings.jsonl; run its recipe first")
    columns = list(dict.fromkeys([*FIELDS, *(key for row in rows for key in row)]))
    target = run / f"readings.{form}"
    if form == "csv":
        write_atomic(target, _csv(columns, rows))
    else:
        _parquet(target, columns, rows)
    return target


def _csv(columns: list[str], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # floats in full, so that they come back as they were
    return text.getvalue()


def _parquet(target: Path, columns: list[str], rows: list[dict]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    hints = typing.get_type_hints(Reading)

    def column(name: str):
        values = [row.get(name) for row in rows]
        if name not in FIELDS:
            return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())
        kind = next(one for one in (*typing.get_args(hints[name]), hints[name]) if one in kinds)
        return pyarrow.array([None if value is None else kind(value) for value in values], kinds[kind])

    temporary = target.with_name(f".{target.name}")
    parquet.write_table(pyarrow.table({name: column(name) for name in columns}), temporary)
    temporary.replace(target)
