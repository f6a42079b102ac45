"""Reads back what W&B has written offline: its datastore, record by record."""

import json
import struct
import time


def records(raw: bytes) -> list[bytes]:
    """Records of a .wandb file: LevelDB's log format (32 KiB blocks of crc, length, kind, data) after a 7-byte header."""
    found, part, position = [], b"", 7
    while position + 7 <= len(raw):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[position : position + 7])
        data = raw[position + 7 : position + 7 + length]
        if len(data) < length:
            break  # its end is still being written
        position += 7 + length
        part = data if kind in (1, 2) else part + data  # whole, first; middle, last
        if kind in (1, 4):
            found.append(part)
    return found


def datastore(run) -> list:
    """Every record in the run's offline files, in the order they were logged."""
    return [record for file in sorted(run.glob("wandb/offline-run-*/*.wandb")) for record in whole(file)]


def whole(file) -> list:
    """The records of a file, once the one that ends it is there: W&B's own process may still write when `finish` returns."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(100):
        found = [wandb_internal_pb2.Record.FromString(data) for data in records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file} has no end")


def history(run) -> list[dict]:
    """Every history row, in the order they were logged."""
    rows = [record.history.item for record in datastore(run) if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items} for items in rows]


def started(run):
    """The run's own record: id, group, job type, config."""
    return next(record.run for record in datastore(run) if record.WhichOneof("record_type") == "run")


def summary(run) -> dict:
    rows = [record.summary.update for record in datastore(run) if record.WhichOneof("record_type") == "summary"]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for items in rows for item in items}


def table(run, key: str) -> dict:
    """A logged table as its file holds it: columns and data."""
    (path,) = [row[f"{key}/path"] for row in history(run) if f"{key}/path" in row]
    (file,) = run.glob(f"wandb/offline-run-*/files/{path}")
    return json.loads(file.read_text())


def series(run) -> dict[str, list[tuple]]:
    """Metric -> (tokens seen, step, value) in the order they were logged."""
    found = {}
    for row in history(run):
        for key, value in row.items():
            if "tokens_seen" in row and "/" in key:
                found.setdefault(key, []).append((row["tokens_seen"], row["step"], value))
    return found
