"""Opening and closing a W&B run for a directory: online with a login, offline without one, whole where it lies offline.

An offline run is kept in one piece. `wandb sync` lets the second offline directory of one id overwrite the first
(wandb/wandb issues 5865 and 3841), so whoever goes on with a run offline sends all of it again, and the older directories of
that id are removed once the new one is closed.
"""

import netrc
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from organisms.errors import UserError
from organisms.files import is_a, read_json, write_json

STATE = "wandb.json"
PROJECT = "natural-organisms"
SENT = {"id": str, "train": dict, "readings": int, "fronts": dict}


def mode() -> str:
    """`WANDB_MODE` where it is set; otherwise online with a login and offline without one."""
    stated = os.environ.get("WANDB_MODE", "").strip().lower()
    if stated in ("online", "offline", "disabled"):
        return stated
    if stated == "dryrun":
        return "offline"
    return "online" if _logged_in() else "offline"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def state(folder: Path, again: bool = False) -> dict:
    """What wandb.json of a directory says was sent and under which id; a new id where there is none or `again` is asked.

    Raises UserError where it cannot be told.
    """
    path = folder / STATE
    if not path.is_file() or again:
        found = {"id": f"{plain(folder.name)}-{secrets.token_hex(2)}"}
        write_json(path, found)  # before the id is used, so that a run that is killed goes on in the same one
        return found
    remedy = "send the run as a new one: make publish run=DIR again=1"
    found = read_json(path, remedy)
    if not all(is_a(found.get(key, kind()), kind) for key, kind in SENT.items()) or not found.get("id"):
        raise UserError(f"{path} does not say what was sent (id, train, readings); {remedy}")
    return found


def plain(name: str) -> str:
    """A name as W&B takes it for ids and artifacts."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "_", name)


def start(folder: Path, run_id: str, group: str | None, job_type: str, config: dict) -> Any:
    """The opened W&B run; its `resumed` says whether a server holds the beginning already."""
    import wandb

    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=run_id,
        name=folder.name,
        group=os.environ.get("WANDB_RUN_GROUP") or group or None,  # a sweep's name, where one runs it
        job_type=job_type,
        dir=str(folder),
        mode=mode(),
        resume="allow",
        reinit="create_new",  # not the process's global run: TRL would write its address into every model card
        config=config,
        settings=wandb.Settings(console="off", silent=True),
    )


def finish(folder: Path, run: Any, whole: bool, failed: bool = False) -> None:
    """Close a run. whole: it holds everything, so what lies offline of the same id is out of date."""
    kept = Path(run.dir).resolve().parent
    run.finish(exit_code=1 if failed else 0)
    if whole and not failed:
        for older in (folder / "wandb").glob(f"offline-run-*-{run.id}"):
            if older.resolve() != kept:
                shutil.rmtree(older)
