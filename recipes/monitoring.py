"""The monitor in a run: the probe handed to the trainer, what an alarm sets off, and which checkpoint a stage goes on with."""

from dataclasses import asdict
from pathlib import Path

from audit import readings as ledger
from audit.monitor import Alarm, MonitorPlan, alarms, ended
from audit.publish import Publisher
from organisms.manifest import read_manifest
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


def at_checkpoint(run: Path, plan: MonitorPlan, checkpoint: Checkpoint, publisher: Publisher) -> bool:
    """Say what this checkpoint's audit sets off, in the terminal, in W&B and in the manifest; whether the stage ends here."""
    raised = [a for a in alarms(plan, ledger.read(run), _names(run, checkpoint.stage)) if a.specimen == checkpoint.name]
    for alarm in raised:
        print(f"monitor {alarm.action}: {alarm.text}", flush=True)
        publisher.alert(f"{run.name}: {alarm.rule}", alarm.text)
    if raised:
        known = [a for a in read_manifest(run).get("alarms", []) if a["specimen"] != checkpoint.name]
        record.update_manifest(run, alarms=known + [asdict(alarm) for alarm in raised])
    return any(alarm.action != "warn" for alarm in raised)


def ending(run: Path, plan: MonitorPlan, stage: str) -> Alarm | None:
    """The alarm that has ended a stage, or None."""
    return ended(plan, ledger.read(run), _names(run, stage))


def final(run: Path, plan: MonitorPlan, stage: str) -> Checkpoint | None:
    """What a stage goes on with: its last checkpoint, or after a rollback the one worth keeping; None before its first."""
    mine = [checkpoint for checkpoint in read_ledger(run) if checkpoint.stage == stage]
    alarm = ending(run, plan, stage)
    if alarm is not None and alarm.action == "rollback" and alarm.kept is not None:
        return next(checkpoint for checkpoint in mine if checkpoint.name == alarm.kept)
    return mine[-1] if mine else None


def _names(run: Path, stage: str) -> list[str]:
    return [checkpoint.name for checkpoint in read_ledger(run) if checkpoint.stage == stage]
