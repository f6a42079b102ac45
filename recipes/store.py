"""Run directories in an object store (or anything else that fsspec knows), for machines that share no file system.

A run is worked on in a directory of its machine. What is written once (adapters, samples, rows, a whole resume state) is copied
to the store as it is. What grows or changes (ledgers, logs, the manifest) goes together in one object, `state.zip`, after what
it speaks of: the store holds the run as it stood at one moment, from which a killed run goes on, or at the moment before. An
attempt on another machine starts from that.
"""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

from organisms.errors import UserError
from organisms.files import cache_dir, inside, is_a, read_jsonl, write_jsonl

STATE = "state.zip"
INVENTORY = ".lasting.json"  # in it: what lasts, with sizes in bytes
WHOLE = "trainer_state.json"  # the file that the trainer writes last into a resume state
WEIGHTS = ("checkpoints", "trainer")
GROWING = {"train.jsonl", "wandb.json"}  # with every step


class Store:
    """A place named by a URL, `s3://bucket/folder` or `file:///folder`; names in it are relative and use slashes."""

    def __init__(self, url: str):
        import fsspec

        try:
            self.fs, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"runs={url}: {error}; name a directory, or install what fsspec needs for it") from None
        self.url, self.path = url.rstrip("/"), path.rstrip("/")

    def read(self, name: str) -> bytes | None:
        try:
            return self.fs.cat_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object that a reader sees whole or not at all."""
        target = f"{self.path}/{name}"
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(f"{target}.part", content)
        self.fs.mv(f"{target}.part", target)

    def put(self, source: Path, name: str) -> None:
        target = f"{self.path}/{name}"
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(source), target)

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self.fs.get_file(f"{self.path}/{name}", str(target))

    def remove(self, name: str) -> None:
        self.fs.rm_file(f"{self.path}/{name}")

    def names(self, folder: str) -> list[str]:
        """Files under a folder, relative to it; none where there is no such folder."""
        self.fs.invalidate_cache()
        found = self.fs.find(f"{self.path}/{folder}")
        return sorted(name.partition(f"{self.path}/{folder}/")[2] for name in found)


class Copy:
    """A run directory of this machine and its copy in a store."""

    def __init__(self, store: Store, run: Path):
        self.store, self.run = store, run
        self._sent: dict[str, tuple] = {}

    def pull(self, weights: bool = True) -> None:
        """Make the directory what the store holds, and nothing else. weights: adapters and resume states too."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
        state = self.store.read(f"{self.run.name}/{STATE}")
        if state is None:
            return
        place = f"{self.store.url}/{self.run.name}/{STATE}"
        with _opened(state, place) as archive:
            lasting = _inventory(archive, place)
            wanted = [name for name in [*lasting, *archive.namelist()] if weights or not name.startswith(WEIGHTS)]
            for name in wanted:
                if name in lasting:
                    self.store.get(f"{self.run.name}/{name}", inside(self.run, name, place))
                    if (self.run / name).stat().st_size != lasting[name]:  # sent in part when an attempt ended
                        (self.run / name).unlink()
                elif name != INVENTORY:
                    archive.extract(name, self.run)
        self._sent = {name: _stamp(self.run / name) for name in self._lasting(self._changing())}

    def push(self) -> None:
        """Bring the store up to date; the run may go on meanwhile."""
        kept = self.run.with_name(f"{self.run.name}.push")
        try:
            changing, lasting = self._moment(kept)
            sizes = {name: (kept / name).stat().st_size for name in lasting}
            for name in lasting:
                stamp = _stamp(kept / name)
                if self._sent.get(name) != stamp:
                    self.store.put(kept / name, f"{self.run.name}/{name}")
                    self._sent[name] = stamp
        finally:
            shutil.rmtree(kept, ignore_errors=True)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(INVENTORY, json.dumps(sizes))
            for name, content in changing.items():
                archive.writestr(name, content)
        self.store.write(f"{self.run.name}/{STATE}", packed.getvalue())
        for name in [name for name in self._sent if name.startswith("trainer/") and name not in lasting]:
            self.store.remove(f"{self.run.name}/{name}")
            del self._sent[name]

    def publish(self) -> None:
        """At the end: what changed lies beside the rest as plain files too, so that the copy is a run directory."""
        self.push()
        for name, content in self._changing().items():
            self.store.write(f"{self.run.name}/{name}", content)

    def _moment(self, kept: Path) -> tuple[dict[str, bytes], list[str]]:
        """(what changes, as it is at one moment; names of what lasts, linked under `kept`).

        The trainer saves its state, then validates and enters the adapter: where the ledger is the same before and after, no
        checkpoint came between. The log is read last, since a state must not be ahead of it.
        """
        while True:
            shutil.rmtree(kept, ignore_errors=True)
            try:
                changing = self._changing()
                lasting = self._lasting(changing)
                for name in lasting:
                    (kept / name).parent.mkdir(parents=True, exist_ok=True)
                    if name.startswith("wandb/"):  # written to as it grows
                        shutil.copy2(self.run / name, kept / name)
                    else:
                        os.link(self.run / name, kept / name)
                again = self._changing()
            except FileNotFoundError:  # a resume state made way for the next, or a file for its new version
                continue
            if all(changing.get(name) == again.get(name) for name in {*changing, *again} - GROWING):
                return again, lasting

    def _changing(self) -> dict[str, bytes]:
        """Files at the top of the directory, and what makes a resume state whole."""
        found = [path for path in self.run.iterdir() if path.is_file() and not path.name.startswith(".")]
        found.sort(key=lambda path: path.name != "wandb.json")  # rather an older one, by which W&B is told something twice
        read = {path.name: path.read_bytes() for path in found}
        markers = {path: path.read_bytes() for path in self.run.glob(f"trainer/*/checkpoint-*/{WHOLE}")}
        whole = {str(path.relative_to(self.run)): text for path, text in markers.items() if text.rstrip().endswith(b"}")}
        return read | whole

    def _lasting(self, changing: dict[str, bytes]) -> list[str]:
        """Files in folders; of a resume state only where it is whole."""
        found = []
        for folder, _, files in os.walk(self.run):
            inside = Path(folder).relative_to(self.run)
            if inside == Path(".") or (inside.name.startswith("checkpoint-") and str(inside / WHOLE) not in changing):
                continue
            found += [str(inside / name) for name in files if not name.startswith(".") and not Path(folder, name).is_symlink()]
        return sorted(name for name in found if name not in changing)


def _opened(state: bytes, place: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(io.BytesIO(state))
    except zipfile.BadZipFile as error:
        raise UserError(f"{place} is damaged ({error}); remove it, and the run starts anew") from None


def _inventory(archive: zipfile.ZipFile, place: str) -> dict[str, int]:
    """What lasts, with sizes in bytes. Raises UserError where the archive does not say."""
    try:
        found = json.loads(archive.read(INVENTORY))
    except (KeyError, ValueError, RecursionError, zipfile.BadZipFile):
        found = None
    if not isinstance(found, dict) or not all(is_a(size, int) for size in found.values()):
        raise UserError(f"{place} does not say what the run holds ({INVENTORY}); remove it, and the run starts anew")
    return found


def _stamp(path: Path) -> tuple:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class OwnCache:
    """Answers of bases and written replies of one run, shared with other runs through the store.

    Converted models stay in the machine's own cache. rows: digest of what is written from; what an author wrote of it is
    fetched by the runs that need it, and an attempt on another machine does not have it written again.
    """

    def __init__(self, store: Store, folder: Path, run: str, rows: str):
        self.store, self.folder, self.run = store, folder, run
        self.writing = f"cache/writing/{rows}" if rows else ""
        self._sent: dict[str, int] = {}

    def pull(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("models", "fingerprints"):
            (cache_dir() / name).mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / name).symlink_to((cache_dir() / name).resolve())
        for name in self.store.names("cache/readings"):
            self.store.get(f"cache/readings/{name}", self.folder / "readings" / name)
            self._sent[f"readings/{name}"] = (self.folder / "readings" / name).stat().st_size
        written: dict[str, dict[str, dict]] = {}
        for name in self.store.names(self.writing) if self.writing else ():
            self.store.get(f"{self.writing}/{name}", self.folder / "fetched")
            rows = read_jsonl(self.folder / "fetched")
            written.setdefault(name.partition("/")[0], {}).update({row["key"]: row for row in rows})
        for author, rows in written.items():
            path = self.folder / "writing" / f"{author}.jsonl"
            write_jsonl(path, rows.values())
            self._sent[f"writing/{path.name}"] = path.stat().st_size

    def push(self) -> None:
        for path in [*self.folder.glob("readings/*.json"), *self.folder.glob("writing/*.jsonl")]:
            name, size = str(path.relative_to(self.folder)), path.stat().st_size
            if self._sent.get(name) == size or (path.parent.name == "writing" and not self.writing):
                continue
            target = f"cache/{name}" if path.parent.name == "readings" else f"{self.writing}/{path.stem}/{self.run}"
            self.store.write(target, path.read_bytes())
            self._sent[name] = size
