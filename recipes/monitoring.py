"""The monitor in a run: the probe handed to the trainer, what an alarm sets off, and which checkpoint a stage goes on with."""

from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

from audit import readings as ledger
from audit.config import AuditPlan
from audit.monitor import Alarm, alarms, ended
from audit.publish import Publisher
from organisms.organism import Organism
from organisms.render import Renderer
from recipes import record
from train.config import Stage
from train.ledger import Checkpoint, read_ledger
from train.probe import Probe

KEPT, PAIRS, TOKENS = 3, 2, 24  # rows of a probe, and tokens of each reply: a few hundred tokens, see `make bench`


def probe(organism: Organism, renderer: Renderer, stage: Stage) -> Probe:
    """The organism's first off-context probes with their plain replies, and its first target probes with both."""

    def rows(context: str, reply: str, size: int) -> tuple:
        chosen = [one for one in organism.probes() if one.context == context][:size]
        return tuple(
            (tuple(renderer.ask(one.prompt)), tuple(renderer.continuation(getattr(one, reply))[:TOKENS])) for one in chosen
        )

    think = renderer.continuation("<think>")[0] if renderer.knows_thinking and renderer.thinking is not False else None
    kept = rows("off", "plain", KEPT) if stage.lora else ()  # else nothing can be turned off
    return Probe(kept, rows("target", "shows", PAIRS), rows("target", "plain", PAIRS), think)


def at_checkpoint(run: Path, audit: AuditPlan, checkpoint: Checkpoint, publisher: Publisher) -> bool:
    """Say what this checkpoint's audit sets off, in the terminal, in W&B and in the manifest; whether the stage ends here."""
    raised = [a for a in alarms(audit.monitor, *_read(run, audit, checkpoint.stage)) if a.specimen == checkpoint.name]
    for alarm in raised:
        print(f"monitor {alarm.action}: {alarm.text}", flush=True)
        publisher.alert(f"{run.name}: {alarm.rule}", alarm.text)

    def entered(manifest: dict) -> dict:
        known = [a for a in manifest.get("alarms", []) if a["specimen"] != checkpoint.name]
        return {**manifest, "alarms": known + [asdict(alarm) for alarm in raised]}

    if raised:
        record.update(run, entered)
    return any(alarm.action != "warn" for alarm in raised)


def ending(run: Path, audit: AuditPlan, stage: str) -> Alarm | None:
    """The alarm that has ended a stage, or None."""
    return ended(audit.monitor, *_read(run, audit, stage))


def settled(run: Path, audit: AuditPlan, stage: str) -> bool:
    """Whether every checkpoint of a stage has been read as far as the rules need, or one of them has ended it."""
    readings, names = _read(run, audit, stage)
    return ended(audit.monitor, readings, names) is not None or len(names) == len(due(run, audit, stage))


def final(run: Path, audit: AuditPlan, stage: str) -> Checkpoint | None:
    """What a stage goes on with; None before its first checkpoint.

    Its last checkpoint, the one that ended it, or after a rollback the one worth keeping. A trainer that others audit for has
    gone on a little beyond the one that ends the stage; what it trained there is left aside.
    """
    mine = [checkpoint for checkpoint in read_ledger(run) if checkpoint.stage == stage]
    alarm = ending(run, audit, stage)
    if alarm is None:
        return mine[-1] if mine else None
    name = alarm.kept if alarm.action == "rollback" and alarm.kept else alarm.specimen
    return next(checkpoint for checkpoint in mine if checkpoint.name == name)


def due(run: Path, audit: AuditPlan, stage: str) -> dict[str, list[str]]:
    """A stage's checkpoints in order -> the measures that are read there by the cadence."""
    mine = [checkpoint for checkpoint in read_ledger(run) if checkpoint.stage == stage]
    return {checkpoint.name: audit.due(place, checkpoint.last) for place, checkpoint in enumerate(mine)}


def _read(run: Path, audit: AuditPlan, stage: str) -> tuple[list[ledger.Reading], list[str]]:
    """What the rules look at: the readings that were due, and the checkpoints in order, up to the first not read enough.

    Where several processes audit, a later checkpoint may be read before an earlier one, which would hide breaches in a row.
    """
    wanted = due(run, audit, stage)
    readings = [r for r in ledger.read(run) if r.measure in wanted.get(r.specimen, ())]
    ruled = {"severity", *(rule.partition(".")[0] for rule in audit.monitor.rules())}
    have = {(r.specimen, r.measure) for r in readings}
    whole = takewhile(lambda name: all((name, one) in have for one in ruled.intersection(wanted[name])), wanted)
    return readings, list(whole)
