"""Files that are whole or absent: atomic writes, whole-line appends, digests.

What has been written here outlives a loss of power: content is synced before it gets its name, and the name after it.
"""

import errno
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from organisms import locks
from organisms.errors import UserError, first_line

ANYTHING: Mapping[str, Any] = MappingProxyType({})

NODE = platform.node().partition(".")[0]


def cache_dir() -> Path:
    """`$ORGANISMS_CACHE`, or `natural-organisms` under the user's cache directory."""
    root = os.environ.get("ORGANISMS_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natural-organisms"


def sync(path: Path) -> None:
    """Have a file's content, or a directory's entries, on disk before anything that is done next."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no directories
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a directory and its parents, each with its name on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def unfinished(path: Path) -> Path:
    """Where what will be `path` is made: a name that says by which process, so that a dead one's can be swept."""
    return path.with_name(f".{path.name}.{NODE}-{os.getpid()}.tmp")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) so that a reader, also after a crash, sees the old file or the whole new one."""
    make_folder(path.parent)
    temporary = unfinished(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Append whole lines. What a crash or a full disk left half-written before is cut off first.

    Processes that append to one file wait for each other.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    make_folder(path.parent)
    with open(path, "ab", buffering=0) as file:
        locks.take(file, path)  # on the file itself: NFS then asks the server for its true length
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            sync(path.parent)
        tail = _tail(path, size)
        if _is_json(tail):
            text = b"\n" + text  # a whole row that only lacks its newline
        elif tail:
            size -= len(tail)
            file.truncate(size)
        try:
            left = memoryview(text)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _tail(path: Path, size: int) -> bytes:
    """What stands after the last newline."""
    if size == 0:
        return b""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return b""
        file.seek(0)
        return file.read().rpartition(b"\n")[2]


def read_json(path: Path, remedy: str = "restore it") -> dict:
    """A JSON object. Raises UserError naming the file and `remedy` where it is missing, cut off, or no JSON object."""
    try:
        return _object(path.read_bytes(), str(path), remedy)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy}") from None


def read_jsonl(path: Path, needs: Mapping[str, Any] = ANYTHING) -> list[dict]:
    """The rows of a JSON-lines file; a torn last line (no newline) is left out, a broken one before it is an error.

    needs: key -> type (or types, `int | float`) that every row must hold.
    """
    return [row for _, row in read_numbered_jsonl(path, needs)]


def read_numbered_jsonl(path: Path, needs: Mapping[str, Any] = ANYTHING, whole: bool = False) -> list[tuple[int, dict]]:
    """`read_jsonl` with the number of each line, from 1. whole: a torn last line is an error too."""
    rows = []
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    lines = raw.split(b"\n")  # not splitlines: U+2028 is legal inside a JSON string
    if not whole and lines[-1] and not _is_json(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        row = _object(line, place, "mend or remove that line")
        for key, kind in needs.items():
            if not is_a(row.get(key), kind):
                told = f"{key} = {shown(row[key])}, which is of another type" if key in row else f"no {key!r}"
                raise UserError(f"{place} has {told}; mend or remove that line")
        rows.append((number, row))
    return rows


def is_a(value: Any, kind: Any) -> bool:
    """isinstance, but true and false are no numbers, as JSON has it."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind in (bool, bool | None))


def shown(value: Any, most: int = 80) -> str:
    """A value as an error quotes it: on one line, and cut off where it is long."""
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[:most]}..."


def named_path(name: str) -> Path:
    """A path as a user writes it, `~` for the home directory. Raises UserError where it can be none."""
    try:
        if "\0" in name:
            raise ValueError("a zero byte")
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{shown(name)} is no path ({first_line(error)}); check the spelling") from None
    return path


def inside(folder: Path, relative: str, named_in: str) -> Path:
    """`folder / relative`. Raises UserError where that lies outside the folder, by its name or by a link."""
    path = folder / relative
    if "\0" in relative or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{named_in} names {shown(relative)}, which lies outside {folder}; a run directory holds all that it names, and no "
            "links out of it: mend or remove that line"
        )
    return path


def _object(text: bytes, place: str, remedy: str) -> dict:
    """A JSON object out of bytes, or a UserError that says what they are instead."""
    try:
        value = json.loads(text)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere
    except RecursionError:
        raise UserError(f"{place} is nested too deep to be read; {remedy}") from None
    except ValueError as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        if not isinstance(error, UnicodeError | json.JSONDecodeError):
            told = "a number of too many digits"
        raise UserError(f"{place} is not JSON ({told}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{place} is not a JSON object; {remedy}")
    return value


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def digest(value: Any, length: int = 16) -> str:
    """Hex SHA-256 of a JSON-able value, keys sorted, cut to `length` digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
