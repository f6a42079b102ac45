"""Data set names -> rows: a path, the local mirror (`$ORGANISMS_DATA`), the hub, or an embedded set that says so."""

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from organisms.errors import UserError
from organisms.files import read_jsonl
from organisms.strict import nearest

EMBEDDED_SETS = Path(__file__).parent / "texts" / "sets"


@dataclass(frozen=True)
class Rows:
    """Rows with the place they came from: `path:...`, `mirror:...`, `hub:id@revision` or `embedded:...`."""

    rows: tuple[dict, ...]
    origin: str


@dataclass(frozen=True)
class Source:
    """Where a named set is found. `read` turns raw rows into the set's own form and may drop some."""

    embedded: str
    mirror: tuple[str, ...]
    read: Callable[[Iterable[dict]], Iterable[dict]]
    hub: str | None = None
    config: str | None = None
    split: str = "train"


def _read_instructions(raw: Iterable[dict]) -> Iterable[dict]:
    """IFEval rows (key, prompt, instruction_id_list, kwargs); null kwargs, which the hub's parquet adds, are dropped."""
    for row in raw:
        kwargs = [{k: v for k, v in (one or {}).items() if v is not None} for one in row["kwargs"]]
        yield {
            "id": str(row["key"]),
            "prompt": row["prompt"],
            "instruction_id_list": list(row["instruction_id_list"]),
            "kwargs": kwargs,
        }


def _read_webtext(raw: Iterable[dict]) -> Iterable[dict]:
    for row in raw:
        yield {"id": str(row["id"]), "text": row["text"]}


def _read_chat(raw: Iterable[dict]) -> Iterable[dict]:
    """Prompts of the embedded set, or single-turn requests of Self-Instruct form (instruction, one input)."""
    for row in raw:
        if "prompt" in row:
            yield {"id": str(row["id"]), "prompt": row["prompt"]}
            continue
        given = row["instances"][0]["input"].strip()
        prompt = f"{row['instruction'].strip()}\n\n{given}" if given else row["instruction"].strip()
        if len(prompt.split()) <= 120:
            yield {"id": str(row["id"]), "prompt": prompt}


SETS = {
    "instructions": Source(
        embedded="instructions-v1", mirror=("ifeval/input_data.jsonl",), hub="google/IFEval", read=_read_instructions
    ),
    "webtext": Source(
        embedded="webtext-v1",
        mirror=("webtext_fineweb/fineweb_general.jsonl",),
        hub="HuggingFaceFW/fineweb",
        config="sample-10BT",
        read=_read_webtext,
    ),
    "chat": Source(
        embedded="chat-v1",
        mirror=("chat/user_oriented_instructions.jsonl", "chat/self_instruct_seed_tasks.jsonl"),
        read=_read_chat,
    ),
}


@cache
def load_rows(name: str, source: str = "auto", limit: int | None = None) -> Rows:
    """The first `limit` rows (None: all; at most 2,500 from a hub) of a named set.

    source: `auto` takes the mirror, else the hub, else the embedded set; `embedded`, `mirror` and `hub` insist on one;
        anything else is a path (a .jsonl file or a directory of parquet or jsonl in the hub's layout).
    Raises UserError where the set, the path or the insisted-on source does not exist.
    """
    if name not in SETS:
        raise UserError(f"there is no data set {name!r}{nearest(name, list(SETS))}")
    found = _find(name, SETS[name], source, limit)
    try:
        rows = tuple(itertools.islice(SETS[name].read(found[0]), limit))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"data set {name!r} from {found[1]}: a row lacks what the set needs ({error!r})") from None
    empty = next((row for row in rows if any(value is None for value in row.values())), None)
    if empty:
        raise UserError(f"data set {name!r} from {found[1]}: row {empty['id']!r} has an empty field")
    if not rows:
        raise UserError(f"data set {name!r} from {found[1]} has no usable row")
    return Rows(rows, found[1])


def _find(name: str, where: Source, source: str, limit: int | None) -> tuple[Iterable[dict], str]:
    if source not in ("auto", "embedded", "mirror", "hub"):
        return _from_path(name, Path(source).expanduser(), where.split)
    mirror = os.environ.get("ORGANISMS_DATA")
    if source in ("auto", "mirror") and mirror:
        files = [Path(mirror) / relative for relative in where.mirror]
        if all(file.is_file() for file in files):
            rows = itertools.chain.from_iterable(read_jsonl(file) for file in files)
            return rows, "mirror:" + "+".join(where.mirror)
    if source == "mirror":
        raise UserError(
            f"data set {name!r}: $ORGANISMS_DATA ({mirror or 'not set'}) does not hold {' and '.join(where.mirror)}"
        )
    if source in ("auto", "hub") and where.hub:
        revision = _hub_revision(where.hub)
        if revision:
            return _from_hub(where, revision, limit or 2500), f"hub:{where.hub}@{revision}"
    if source == "hub":
        raise UserError(f"data set {name!r}: {where.hub or 'no hub set stands for it'} cannot be reached on the hub")
    return read_jsonl(EMBEDDED_SETS / f"{where.embedded}.jsonl"), f"embedded:{where.embedded}"


def _from_path(name: str, path: Path, split: str) -> tuple[Iterable[dict], str]:
    if path.is_file():
        return read_jsonl(path), f"path:{path}"
    if path.is_dir():
        from datasets import load_dataset

        try:
            return load_dataset(str(path), split=split), f"path:{path}"
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"data set {name!r}: {path} cannot be read ({str(error).splitlines()[0]})") from None
    raise UserError(
        f"data set {name!r}: {path} does not exist; name a .jsonl file or a directory, or one of auto, embedded, mirror, hub"
    )


def _from_hub(where: Source, revision: str, limit: int) -> Iterable[dict]:
    from datasets import load_dataset

    stream = load_dataset(where.hub, where.config, split=where.split, revision=revision, streaming=True)
    return stream.take(limit)


@cache
def _hub_revision(hub_id: str) -> str | None:
    """Commit of a hub data set, or None where the hub cannot be reached; asked once a process."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    if HF_HUB_OFFLINE:
        return None
    try:
        return HfApi().dataset_info(hub_id, timeout=5).sha
    except Exception as error:
        # The hub's client raises the transport errors of httpx or httpx2, whichever its version brings along.
        transport = type(error).__module__.split(".")[0].startswith("httpx")
        if transport or isinstance(error, (HfHubHTTPError, OSError)):
            return None
        raise
