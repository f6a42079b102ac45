"""Files that are whole or absent: atomic writes, whole-line appends, digests.

What has been written here outlives a loss of power: content is synced before it gets its name, and the name after it.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from organisms.errors import UserError


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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) so that a reader, also after a crash, sees the old file or the whole new one."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
        fcntl.flock(file, fcntl.LOCK_EX)
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


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON-lines file; a torn last line (no newline) is left out, a broken one before it is an error."""
    return [row for _, row in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: Path) -> list[tuple[int, dict]]:
    """`read_jsonl` with the number of each line, from 1."""
    rows = []
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    lines = raw.split(b"\n")  # not splitlines: U+2028 is legal inside a JSON string
    if lines[-1] and not _is_json(lines[-1]):
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
            raise UserError(f"{path} line {number} is not JSON ({told}); mend or remove that line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object; every line must be one")
        rows.append((number, row))
    return rows


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False


def digest(value: Any, length: int = 16) -> str:
    """Hex SHA-256 of a JSON-able value, keys sorted, cut to `length` digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
