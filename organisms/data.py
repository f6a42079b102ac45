"""Data set names -> rows: a path, the local mirror (`$ORGANISMS_DATA`), the hub, or an embedded set that says so."""

import csv
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from organisms import hub
from organisms.errors import UserError, first_line
from organisms.files import named_path, read_jsonl, shown
from organisms.sets import SETS, Source
from organisms.strict import nearest

EMBEDDED_SETS = Path(__file__).parent / "texts" / "sets"


# Keys of rows that are asked or trained on, and so must be texts, or lists of texts, with something in them.
TEXTS = ("prompt", "text", "question", "category", "type", "kind", "wrapper", "subject")
LISTS = ("choices", "instruction_id_list")


@dataclass(frozen=True)
class Rows:
    """Rows with the place they came from: `path:...`, `mirror:...`, `hub:id@revision` or `embedded:...`."""

    rows: tuple[dict, ...]
    origin: str


def half(item: str) -> str:
    """`monitor` or `holdout`, by a hash of the item's id: the monitor half may stop a run, the other half judges it.

    The prefix was chosen among four because it splits the shipped sets most evenly; only ids were looked at.
    """
    return "monitor" if hashlib.sha256(f"item:{item}".encode()).digest()[0] % 2 == 0 else "holdout"


@cache
def load_rows(name: str, source: str = "auto", limit: int | None = None) -> Rows:
    """The first `limit` rows (None: all that the set takes) of a named set.

    source: `auto` takes the mirror, else the hub, else the embedded set; `embedded`, `mirror` and `hub` insist on one;
        anything else is a path (a .jsonl, .csv, .json or .yaml file, or a directory in the hub's layout).
    A set without embedded text is empty, its origin `none`, where `auto` finds it nowhere. Raises UserError where the set,
    the path or the insisted-on source does not exist.
    """
    if name not in SETS:
        raise UserError(f"there is no data set {name!r}{nearest(name, list(SETS))}")
    found = _find(name, SETS[name], source, limit)
    if found is None:
        return Rows((), "none")
    try:
        rows = tuple(itertools.islice(SETS[name].read(found[0]), limit))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(f"data set {name!r} from {found[1]}: a row lacks what the set needs ({shown(error, 200)})") from None
    except Exception as error:
        if not found[1].startswith("hub:") or not hub.unreached(error):
            raise
        told = f"{found[1]} failed while it was read ({first_line(error)})"
        raise UserError(f"data set {name!r}: {told}; run the same command again") from None
    empty = next((row for row in rows if any(value is None for value in row.values())), None)
    if empty:
        raise UserError(f"data set {name!r} from {found[1]}: row {empty['id']!r} has an empty field")
    for row in rows:
        wrong = next((key for key in (*TEXTS, *LISTS) if key in row and not _has_text(row[key], key in LISTS)), None)
        if wrong:
            told = f"row {shown(row['id'])} has {wrong} = {shown(row[wrong])}, which is no text; mend or remove that row"
            raise UserError(f"data set {name!r} from {found[1]}: {told}")
    if not rows:
        raise UserError(f"data set {name!r} from {found[1]} has no usable row")
    twice = next((i for i, count in Counter(row["id"] for row in rows).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"data set {name!r} from {found[1]}: the id {twice!r} stands on two rows; ids must be unique")
    return Rows(rows, found[1])


def _has_text(value: object, listed: bool) -> bool:
    if listed:
        return isinstance(value, list) and bool(value) and all(_has_text(one, False) for one in value)
    return isinstance(value, str) and bool(value.strip())


def _find(name: str, where: Source, source: str, limit: int | None) -> tuple[Iterable[dict], str] | None:
    if source not in ("auto", "embedded", "mirror", "hub"):
        return _from_path(name, named_path(source), where.split)
    mirror = os.environ.get("ORGANISMS_DATA")
    if source in ("auto", "mirror") and mirror:
        files = [sorted(Path(mirror).glob(pattern)) for pattern in where.mirror]
        if files and all(files):
            rows = itertools.chain.from_iterable(_read(file) for file in itertools.chain.from_iterable(files))
            return rows, "mirror:" + "+".join(where.mirror)
    if source == "mirror" and not where.mirror:
        raise UserError(f"data set {name!r} has no mirror; take its embedded set or name a path")
    if source == "mirror":
        raise UserError(
            f"data set {name!r}: $ORGANISMS_DATA ({mirror or 'not set'}) does not hold {' and '.join(where.mirror)}"
        )
    if source in ("auto", "hub") and where.hub:
        revision = _hub_revision(where.hub)
        rows = _from_hub(where, revision, limit) if revision else None
        if rows is not None:
            return rows, f"hub:{where.hub}@{revision}"
    if source == "hub":
        told = f"{where.hub} cannot be reached on the hub (where it is gated: accept its terms there, then `hf auth login`)"
        raise UserError(f"data set {name!r}: {told if where.hub else 'no hub set stands for it'}")
    if where.embedded is None:
        if source == "embedded":
            raise UserError(f"data set {name!r} has no embedded set; take auto, mirror or hub, or name a path")
        return None
    return read_jsonl(EMBEDDED_SETS / f"{where.embedded}.jsonl"), f"embedded:{where.embedded}"


def _read(path: Path) -> list[dict]:
    """Raw rows of a .jsonl, .csv (with a header line), .json (one object or a list) or .yaml (a list) file."""
    import yaml

    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            wide = next((n for n, row in enumerate(rows, 1) if None in row), None)
            if wide:
                raise ValueError(f"row {wide} has more cells than the header; quote cells that hold a comma")
        elif path.suffix == ".json":
            value = json.loads(path.read_text(encoding="utf-8"))
            rows = value if isinstance(value, list) else [value]
        elif path.suffix in (".yaml", ".yml"):
            rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        elif path.suffix == ".parquet":
            raise UserError(f"{path}: parquet files are read in the hub's layout; name the directory that holds data/*.parquet")
        else:
            rows = read_jsonl(path)
        return [{**row, "_file": path.stem} for row in rows]
    except (csv.Error, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix} rows: {first_line(error)}") from None


def _from_path(name: str, path: Path, split: str) -> tuple[Iterable[dict], str]:
    if path.is_file():
        return _read(path), f"path:{path}"
    if path.is_dir():
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        try:
            return load_dataset(str(path), split=split), f"path:{path}"
        except (ValueError, TypeError, KeyError, OSError, ImportError, DatasetsError) as error:
            raise UserError(f"data set {name!r}: {path} cannot be read ({first_line(error)})") from None
    raise UserError(
        f"data set {name!r}: {path} does not exist; name a .jsonl, .csv, .json or .yaml file or a directory, or one of "
        "auto, embedded, mirror, hub"
    )


def _from_hub(where: Source, revision: str, limit: int | None) -> Iterable[dict] | None:
    """A stream of raw rows; None where the hub fails, or where the set is gated and this user is not let in (its commit is told
    to anyone)."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    hub.patience()
    try:
        stream = load_dataset(where.hub, where.config, split=where.split, revision=revision, streaming=True)
    except DatasetNotFoundError:
        return None
    except Exception as error:
        if hub.unreached(error):
            return None
        raise
    most = min(n for n in (limit, where.hub_rows, 10**9) if n is not None)
    return stream.take(most)


@cache
def _hub_revision(hub_id: str) -> str | None:
    """Commit of a hub data set, or None where the hub cannot be reached; asked once a process."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().dataset_info(hub_id, timeout=5).sha
    except Exception as error:
        if hub.unreached(error):
            return None
        raise
