"""Texts that are frozen: JSON lines whose SHA-256 is written down where they are named."""

import re
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from organisms.errors import UserError
from organisms.files import file_sha256, read_numbered_jsonl
from organisms.strict import Strict, Text, validate

TEXTS = Path(__file__).parent / "texts"


HEX = re.compile("[0-9a-f]{64}")


class Frozen(Strict):
    """A JSON-lines file under organisms/texts (or an absolute path) with the SHA-256 it was frozen at."""

    path: Text
    sha256: str = Field(default="", validate_default=True)

    @field_validator("sha256")
    @classmethod
    def _names_a_digest(cls, sha256: str, info: ValidationInfo) -> str:
        if HEX.fullmatch(sha256):
            return sha256
        wrong = "64 hexadecimal digits are wanted" if sha256 else "missing"
        if "path" not in info.data:  # which is told by itself
            raise ValueError(wrong)
        file = TEXTS / info.data["path"]
        if not file.is_file():
            raise ValueError(f"{wrong}, and {file} does not exist; write that text first")
        raise ValueError(f"{wrong}; to freeze {file} as it is, write sha256: {file_sha256(file)}")

    @property
    def file(self) -> Path:
        return TEXTS / self.path

    def rows(self, row_type: type[Strict], named_in: str) -> list:
        """The rows, validated. Raises UserError, saying where the file is named, if it is not the one that was frozen."""
        return _rows(self.file, self.sha256, row_type, named_in)


@cache
def _rows(file: Path, sha256: str, row_type: type[Strict], named_in: str) -> list:
    if not file.is_file():
        raise UserError(f"{named_in} names {file}, which does not exist")
    actual = file_sha256(file)
    if actual != sha256:
        raise UserError(
            f"{file} is not the text that was frozen (sha256 {actual[:12]}..., expected {sha256[:12]}...); restore it, "
            f"or where the change is meant, write sha256: {actual} in {named_in}"
        )
    rows, lines = [], {}
    for number, values in read_numbered_jsonl(file, whole=True):
        row = validate(row_type, values, f"{file} line {number}")
        if row.id in lines:
            raise UserError(f"{file}: the id {row.id!r} stands on lines {lines[row.id]} and {number}; ids must be unique")
        lines[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{file} is empty; it must hold at least one row")
    return rows
