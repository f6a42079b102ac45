"""W&B as a view of a run directory: sends the lines of train.jsonl and readings.jsonl that it has not been sent yet.

Live logging and replay are one path. A metric is named `measure/metric`, so that W&B gives each measure its own panels, with
`_low` and `_high` (the 95% interval), `_delta` (against the base) and `_monitor` (the other half of the items) beside it. All
have their own axis, because W&B drops what is logged at an older step of its own: `tokens_seen`, or `step` where nothing was
trained. On it no series ever goes back: a checkpoint that is read again after later ones stands in the tables only, until
`again` replays the run.

One process at a time sends a run, since W&B takes a run's steps from one writer only and drops what comes out of order, and
offline files of two writers cannot be told apart when they are synced. Where watchers audit, that is one of them, the training
log included, which it finds in train.jsonl like everything else; the trainer then sends nothing.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit import publish_views, wandb_run
from audit import readings as ledger
from audit.claims import FOLDER
from audit.measures import MEASURES
from audit.readings import Reading
from organisms import locks
from organisms.errors import UserError
from organisms.files import read_jsonl, write_json
from organisms.folders import locked
from organisms.manifest import found_manifest
from organisms.strict import read_yaml

TRAINING_COLUMNS = (
    "loss", "kl_to_base", "act", "learning_rate", "grad_norm", "token_accuracy",
    "probe_kl", "probe_contrast", "probe_think",
)  # fmt: skip
SERIES = {
    "": "value", "_low": "ci_low", "_high": "ci_high",
    "_delta": "delta", "_delta_low": "delta_low", "_delta_high": "delta_high",
}  # fmt: skip


class Publisher:
    """Sends a run to W&B while the context is open. With `WANDB_MODE=disabled` every call does nothing.

    Where W&B cannot be reached or its process is gone, that is said once and the run goes on without it: what was to be sent
    stands in the run directory. lost: that sentence, empty while all is well.
    mine: asked before each call, whether this process is the one that sends.
    """

    def __init__(self, run: Path, again: bool = False, mine: Callable[[], bool] = lambda: True):
        self.run = run
        self.mine = mine
        self.mode = wandb_run.mode()
        self.again = again
        self.lost = ""
        self._wandb: Any = None
        self._state: dict = {}
        self._axis = "tokens_seen"
        self._whole = False
        self._size = -1
        self._late: set[str] = set()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._wandb is not None:
            self._reaching(lambda: wandb_run.finish(self.run, self._wandb, self._whole, failed=kind is not None))

    def alert(self, title: str, text: str) -> None:
        """An alert in W&B, as its user has set them up (mail, Slack)."""
        if self.mode != "disabled" and self.mine():
            self._reaching(lambda: self._open().alert(title=title, text=text, wait_duration=0))

    def send(self, final: bool = False) -> str:
        """Send what is new; `final` adds tables, pictures, the report and the organism card. Returns the W&B id."""
        if self.mode != "disabled" and self.mine():
            self._reaching(lambda: self._send(final))
        return self._state.get("id", "disabled")

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
        rows = self._training() + self._readings(run)
        for place, values in sorted(rows, key=lambda row: row[0]):
            run.log({"tokens_seen": place[0], "step": place[1], **values})
        if final:
            run.config.update(self._config(), allow_val_change=True)
            publish_views.send(run, self.run)
            if self._late:
                print(f"W&B: {', '.join(sorted(self._late))} read again after later checkpoints: in the tables, not the curves")
        write_json(self.run / wandb_run.STATE, self._state)

    def _recipe(self) -> dict:
        path = self.run / "recipe.yaml"
        return read_yaml(path) if path.is_file() else {}

    def _config(self) -> dict:
        """The recipe and the manifest as they stand, and on top what tells two runs apart."""
        manifest = found_manifest(self.run)
        names = {
            "recipe": "digest", "organism": "organism_fingerprint", "base": "base_revision", "template": "template_hash"
        }  # fmt: skip
        return {
            "recipe": self._recipe(),
            "manifest": manifest,
            "digests": {name: manifest[key] for name, key in names.items() if key in manifest},
            "engine": manifest.get("engine", {}),
            "versions": manifest.get("versions", {}),
        }

    def _open(self) -> Any:
        if self._wandb is not None:
            return self._wandb
        self._state = wandb_run.state(self.run, self.again)
        config = self._config()
        known = ledger.read(self.run)
        group = config["manifest"].get("organism") or (known[0].organism if known else None)
        self._wandb = wandb_run.start(self.run, self._state["id"], group, "train" if config["recipe"] else "audit", config)
        self._whole = not self._wandb.resumed
        nothing = {"id": self._state["id"], "train": {}, "readings": 0, "fronts": {}}
        self._state = nothing if self._whole else nothing | self._state
        # Coefficients, prompts and adapters from elsewhere have seen no tokens here.
        self._axis = "tokens_seen" if config["recipe"].get("stages") else "step"
        for name in ("tokens_seen", "step"):
            self._wandb.define_metric(name)
        for name in ("train", *MEASURES):
            self._wandb.define_metric(f"{name}/*", step_metric=self._axis)
        return self._wandb

    def _training(self) -> list[tuple]:
        """((tokens seen, step), values) of the lines of train.jsonl that were not sent."""
        path = self.run / "train.jsonl"
        found = []
        needs = {"stage": str, "step": int, "tokens_seen": int}
        for row in read_jsonl(path, needs) if path.is_file() else []:
            if row["step"] > self._state["train"].get(row["stage"], 0):
                values = {f"train/{k}": row[k] for k in TRAINING_COLUMNS if row.get(k) is not None}
                found.append(((row["tokens_seen"], row["step"]), values))
                self._state["train"][row["stage"]] = row["step"]
        return found

    def _readings(self, run: Any) -> list[tuple]:
        """The same of readings.jsonl, a row a specimen; what is no point of the curve goes into the summary."""
        path = self.run / ledger.READINGS
        size = path.stat().st_size if path.is_file() else 0
        if size == self._size:
            return []
        self._size = size
        lines = read_jsonl(path) if size else []
        latest = {r.key: r for r in (ledger.parse(line, str(path)) for line in lines[self._state["readings"] :])}
        self._state["readings"] = len(lines)
        by_specimen: dict[str, list[Reading]] = {}
        for reading in sorted(latest.values(), key=self._place):
            by_specimen.setdefault(reading.specimen, []).append(reading)
        rows = []
        for specimen, chosen in by_specimen.items():
            if not chosen[0].on_curve:
                run.summary.update({f"{specimen}/{key}": value for r in chosen for key, value in _logged(r).items()})
            if chosen[0].on_curve or specimen == "base":
                rows.append(((chosen[0].tokens_seen, chosen[0].step), self._forward(chosen)))
        return [row for row in rows if row[1]]

    def _place(self, reading: Reading) -> int:
        return getattr(reading, self._axis)

    def _forward(self, chosen: list[Reading]) -> dict[str, float]:
        """Values of one specimen, but for measures that have been sent at a later place."""
        values: dict[str, float] = {}
        fronts = self._state["fronts"]
        for reading in chosen:
            if self._place(reading) >= fronts.get(reading.measure, 0):
                values |= _logged(reading)
            elif reading.on_curve:
                self._late.add(reading.specimen)
        for reading in chosen:
            fronts[reading.measure] = max(fronts.get(reading.measure, 0), self._place(reading))
        return values


def _logged(reading: Reading) -> dict[str, float]:
    """`measure/metric` and its bounds, where they have values."""
    name = f"{reading.measure}/{reading.metric}{'' if reading.split == 'holdout' else '_monitor'}"
    found = {name + suffix: getattr(reading, column) for suffix, column in SERIES.items()}
    return {key: value for key, value in found.items() if value is not None}


def publish(run: Path, again: bool = False) -> str:
    """Send a finished run; `again` replays all of it into a new W&B run. Returns the W&B id."""
    if who := locks.holder(run / FOLDER / "publish.duty"):
        raise UserError(f"{run} is sent to W&B by {who}, which watches it; wait for it or stop it")
    with locked(run), Publisher(run, again) as publisher:
        sent = publisher.send(final=True)
    if publisher.lost:
        raise UserError(publisher.lost)
    return sent
