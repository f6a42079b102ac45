"""W&B as a view of a run directory: sends the lines of train.jsonl and readings.jsonl that it has not been sent yet.

Live logging and replay are one path. Audits have their own axis (`tokens_seen`, beside `step`), because W&B drops what is
logged at an older step. Offline without a login; `WANDB_MODE` decides otherwise, `disabled` sends nothing.
"""

import contextlib
import netrc
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from audit import readings as ledger
from audit.readings import Reading
from audit.suite import replies
from organisms.errors import UserError
from organisms.files import is_a, read_json, read_jsonl, write_json
from organisms.folders import locked
from organisms.manifest import found_manifest
from organisms.strict import read_yaml

STATE = "wandb.json"
PROJECT = "natural-organisms"
TRAINING_COLUMNS = (
    "loss", "kl_to_base", "act", "learning_rate", "grad_norm", "token_accuracy",
    "probe_kl", "probe_contrast", "probe_think",
)  # fmt: skip
READING_COLUMNS = (
    "specimen", "stage", "step", "tokens_seen", "measure", "metric", "split", "value", "ci_low", "ci_high", "n",
    "delta", "delta_low", "delta_high", "mde", "margin", "verdict", "reason", "data",
)  # fmt: skip


class Publisher:
    """Sends a run to W&B while the context is open. With `WANDB_MODE=disabled` every call does nothing.

    Where W&B cannot be reached or its process is gone, that is said once and the run goes on without it: what was to be sent
    stands in the run directory. lost: that sentence, empty while all is well.
    """

    def __init__(self, run: Path, again: bool = False):
        self.run = run
        self.mode = wandb_mode()
        self.again = again
        self.lost = ""
        self._wandb: Any = None
        self._state: dict = {}

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._wandb is not None:
            self._reaching(lambda: self._wandb.finish(exit_code=0 if kind is None else 1))

    def alert(self, title: str, text: str) -> None:
        """An alert in W&B, as its user has set them up (mail, Slack)."""
        if self.mode != "disabled":
            self._reaching(lambda: self._open().alert(title=title, text=text, wait_duration=0))

    def send(self, final: bool = False) -> None:
        """Send what is new; `final` adds the readings table, transcripts and the report as an artifact."""
        if self.mode != "disabled":
            self._reaching(lambda: self._send(final))

    def _reaching(self, call: Callable[[], None]) -> None:
        import wandb

        try:
            call()
        except (wandb.errors.Error, ConnectionError) as error:
            told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            self.lost = f"W&B cannot be reached ({told}); what is missing there is sent by: make publish run={self.run}"
            print(self.lost, flush=True)
            self.mode, self._wandb = "disabled", None
            if isinstance(error, ConnectionError):  # or it would be asked to end when this process does, with a traceback
                with contextlib.suppress(ConnectionError):
                    wandb.teardown()

    def _send(self, final: bool) -> None:
        run = self._open()
        self._send_training(run)
        self._send_readings(run)
        if final:
            self._send_final(run)
        write_json(self.run / STATE, self._state)

    def _open(self) -> Any:
        if self._wandb is not None:
            return self._wandb
        import wandb

        path = self.run / STATE
        if path.is_file() and not self.again:
            self._state = _state(path)
        else:
            self._state = {
                "id": f"{re.sub(r'[^a-zA-Z0-9_.-]+', '_', self.run.name)}-{secrets.token_hex(2)}",
                "train": {},
                "readings": 0,
            }
            write_json(path, self._state)  # before the id is used, so that a run that is killed goes on in the same one
        config = {
            "recipe": read_yaml(self.run / "recipe.yaml") if (self.run / "recipe.yaml").is_file() else {},
            "manifest": found_manifest(self.run),
        }
        self._wandb = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._state["id"],
            name=self.run.name,
            group=os.environ.get("WANDB_RUN_GROUP") or config["manifest"].get("organism"),  # a sweep's name, where one runs it
            dir=str(self.run),
            mode=self.mode,
            resume="allow",
            reinit="create_new",  # not the process's global run: TRL would write its address into every model card
            config=config,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._wandb.define_metric("tokens_seen")
        self._wandb.define_metric("step")
        for prefix in ("train/*", "audit/*", "monitor/*"):
            self._wandb.define_metric(prefix, step_metric="tokens_seen")
        return self._wandb

    def _send_training(self, run: Any) -> None:
        path = self.run / "train.jsonl"
        needs = {"stage": str, "step": int, "tokens_seen": int}
        for row in read_jsonl(path, needs) if path.is_file() else []:
            if row["step"] <= self._state["train"].get(row["stage"], 0):
                continue
            values = {f"train/{k}": row[k] for k in TRAINING_COLUMNS if row.get(k) is not None}
            run.log({"tokens_seen": row["tokens_seen"], "step": row["step"], **values})
            self._state["train"][row["stage"]] = row["step"]

    def _send_readings(self, run: Any) -> None:
        path = self.run / ledger.READINGS
        rows = read_jsonl(path) if path.is_file() else []
        fresh = [ledger.parse(row, str(path)) for row in rows[self._state["readings"] :]]
        for specimen in dict.fromkeys(reading.specimen for reading in fresh):
            chosen = [reading for reading in fresh if reading.specimen == specimen]
            values: dict[str, float] = {}
            for reading in chosen:
                values.update(_logged(reading))
            if specimen != "base" and not chosen[0].on_curve:  # no point of the curve: it stands beside it
                read = {k.partition("/")[2]: v for k, v in values.items() if k.startswith("audit/")}
                run.summary.update({f"{specimen}/{name}": v for name, v in read.items()})
            elif values:
                run.log({"tokens_seen": chosen[0].tokens_seen, "step": chosen[0].step, **values})
        self._state["readings"] = len(rows)

    def _send_final(self, run: Any) -> None:
        import wandb

        everything = ledger.read(self.run)
        table = wandb.Table(columns=list(READING_COLUMNS), data=[[getattr(r, c) for c in READING_COLUMNS] for r in everything])
        run.log({"readings": table, "transcripts": _transcripts(wandb, self.run, everything)})
        artifact = wandb.Artifact(self.run.name, type="organism-run")
        for name in ("report.html", "curves.png", "readings.jsonl", "checkpoints.jsonl", "manifest.json", "recipe.yaml"):
            if (self.run / name).is_file():
                artifact.add_file(str(self.run / name))
        run.log_artifact(artifact)


def _state(path: Path) -> dict:
    """What has been sent. Raises UserError where it cannot be told."""
    remedy = "send the run as a new one: make publish run=DIR again=1"
    state = read_json(path, remedy)
    if not (is_a(state.get("id"), str) and is_a(state.get("train"), dict) and is_a(state.get("readings"), int)):
        raise UserError(f"{path} does not say what was sent (id, train, readings); {remedy}")
    return state


def _logged(reading: Reading) -> dict[str, float]:
    """Curve points of a reading: `audit/` is the holdout half, `monitor/` the other one."""
    prefix = f"{'audit' if reading.split == 'holdout' else 'monitor'}/{reading.measure}/{reading.metric}"
    values = {"": reading.value, "/delta": reading.delta, "/delta_low": reading.delta_low, "/delta_high": reading.delta_high}
    return {prefix + suffix: value for suffix, value in values.items() if value is not None}


def _transcripts(wandb: Any, run: Path, everything: list[Reading]) -> Any:
    """Base and last checkpoint side by side, as many items as a table stays readable with."""
    table = wandb.Table(columns=["measure", "item", "prompt", "base", "specimen", "reply"])
    last = max((r for r in everything if r.on_curve), key=lambda r: (r.tokens_seen, r.step), default=None)
    if last is None:
        return table
    for name in dict.fromkeys(r.measure for r in everything):
        base = {s.item: s for s in replies(run, name, "base")}
        for sample in replies(run, name, last.specimen)[:40]:
            if sample.item in base:
                table.add_data(name, sample.item, sample.prompt, base[sample.item].output, last.specimen, sample.output)
    return table


def wandb_mode() -> str:
    """`WANDB_MODE` where it is set; otherwise online with a login and offline without one."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    if mode in ("online", "offline", "disabled"):
        return mode
    if mode == "dryrun":
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


def publish(run: Path, again: bool = False) -> str:
    """Send a finished run; `again` replays all of it into a new W&B run. Returns the W&B id."""
    with locked(run), Publisher(run, again) as publisher:
        publisher.send(final=True)
    if publisher.lost:
        raise UserError(publisher.lost)
    return publisher._state.get("id", "disabled")
