"""Files that say by a digest of their own whether they are as they were written; what was changed by hand is refused."""

import hashlib
from pathlib import Path

from organisms.errors import UserError
from organisms.files import digest, read_json, write_atomic, write_json

KEY = "sha256"
HEAD = "sha256 of what follows: "


def write_sealed(path: Path, values: dict) -> None:
    """A JSON object with the digest of its other keys."""
    rest = {key: value for key, value in values.items() if key != KEY}
    write_json(path, {**rest, KEY: digest(rest, 64)})


def read_sealed(path: Path, remedy: str) -> dict:
    """What `write_sealed` has written, without the digest; one without a digest, of an earlier version, is taken as it is.

    Raises UserError, which ends in `remedy`, where it is no JSON object or not as it was written.
    """
    values = read_json(path, remedy)
    sealed = values.pop(KEY, None)
    if sealed is not None and sealed != digest(values, 64):
        raise UserError(f"{path} was changed after it was written; {remedy}")
    return values


def write_sealed_text(path: Path, about: str, text: str) -> None:
    """Text under a comment line that says what it is and holds its digest."""
    write_atomic(path, f"# {about}; {HEAD}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def check_sealed_text(path: Path, remedy: str) -> None:
    """Raise UserError where the text is not as `write_sealed_text` wrote it."""
    head, _, rest = path.read_bytes().partition(b"\n")
    _, found, sealed = head.partition(HEAD.encode())
    if found and sealed.decode(errors="replace").strip() != hashlib.sha256(rest).hexdigest():
        raise UserError(f"{path} was changed after it was written; {remedy}")
