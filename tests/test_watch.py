"""Audits from another process: the same numbers, nothing double and nothing lost, whoever dies."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import recipes.run
from audit import claims, suite
from audit import readings as ledger
from audit.claims import Shared, being_read
from audit.config import AuditPlan
from audit.publish import Publisher
from organisms import locks
from organisms.engines import load
from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl
from recipes import auditing, follow, monitoring, record
from recipes.recipe import resolve
from recipes.run import execute
from recipes.watch import watch
from train.ledger import read_ledger

NAMES = ["sft-000000", "sft-000002", "sft-000004"]
FEW = ["audit.measures=[drift,leakage,fluency]", "audit.limit=4"]


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    for module in (claims, follow):
        monkeypatch.setattr(module, "POLL", 0.05)


def numbers(run: Path) -> dict[tuple, dict]:
    """Every line by its key, without what differs between any two runs: how long it took."""
    rows = read_jsonl(run / "readings.jsonl")
    found = {(r["specimen"], r["measure"], r["metric"], r["split"]): {**r, "seconds": None} for r in rows}
    assert len(found) == len(rows), "a reading stands there twice"
    return found


def answers(run: Path) -> dict[str, list[dict]]:
    """Every sample file, without how long it took."""
    found = {str(path.relative_to(run)): read_jsonl(path) for path in sorted((run / "samples").rglob("*.jsonl"))}
    return {name: [{**row, "seconds": None} for row in rows] for name, rows in found.items()}


@pytest.fixture(scope="module")
def inline(tiny_recipe, tmp_path_factory) -> Path:
    return execute(resolve(str(tiny_recipe), FEW), tmp_path_factory.mktemp("inline"))


@pytest.fixture(scope="module")
def trained(tiny_recipe, tmp_path_factory) -> Path:
    """Trained in watch mode, not audited; the trainer has loaded no engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load", lambda *_: pytest.fail("the trainer loads an engine"))
        patch.setenv("WANDB_MODE", "offline")
        return execute(resolve(str(tiny_recipe), [*FEW, "audit.mode=watch"]), tmp_path_factory.mktemp("watched"))


@pytest.fixture
def watched(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def test_who_audits_and_how_often_is_no_part_of_the_digest(tiny_recipe, inline, trained):
    other = resolve(str(tiny_recipe), [*FEW, "audit.mode=after", "audit.cadence={drift: 2}"])
    assert trained.name == inline.name == other.run_name
    assert not (trained / "readings.jsonl").exists() and not (trained / "report.html").exists()
    assert "engine" not in json.loads((trained / "manifest.json").read_text())


def test_a_watcher_reads_what_an_inline_run_reads(inline, watched, capsys):
    watch(watched)
    assert numbers(watched) == numbers(inline) and answers(watched) == answers(inline)
    mine, theirs = (json.loads((run / "manifest.json").read_text()) for run in (watched, inline))
    for key in ("engine", "predictors", "final", "lint", "written"):
        assert mine[key] == theirs[key], key
    assert (watched / "report.html").is_file() and (watched / "README.md").is_file() and (watched / "curves.png").is_file()
    assert not list((watched / "claims").glob("sft-*"))
    before = (watched / "readings.jsonl").read_bytes()
    watch(watched)  # again: nothing is left to read
    assert (watched / "readings.jsonl").read_bytes() == before
    assert capsys.readouterr().out.count("audited sft-000004") == 1


def measured(monkeypatch) -> list[tuple[str, str, str]]:
    """(thread, specimen, measure) of everything that is asked from now on."""
    asked, honest = [], suite._measure

    def counted(job, engine, module, context, *rest):
        asked.append((threading.current_thread().name, context.specimen.name, module.NAME))
        return honest(job, engine, module, context, *rest)

    monkeypatch.setattr(suite, "_measure", counted)
    return asked


def test_two_watchers_share_the_work(inline, watched, monkeypatch):
    """Each with its own engine, locks and file handles; flock does not care that they are threads."""
    asked, failed = measured(monkeypatch), []

    def one() -> None:
        try:
            claimed = Shared(watched)
            run = auditing.Run(record.resolved(watched), watched.parent, claimed)
            follow.stages(run, Publisher(watched))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert set(Counter((specimen, measure) for _, specimen, measure in asked).values()) == {1}
    assert {thread for thread, _, _ in asked} == {"first", "second"}
    assert numbers(watched) == numbers(inline) and answers(watched) == answers(inline)


def test_a_watcher_that_dies_is_followed_by_another(inline, watched, monkeypatch, capsys):
    """Dead while it measures, twice: its claim stays behind as a file, its lock does not."""
    asked = measured(monkeypatch)
    counted = suite._measure
    deaths = [("base", "drift"), ("sft-000002", "leakage")]

    def deadly(job, engine, module, context, *rest):
        if deaths and (context.specimen.name, module.NAME) == deaths[0]:
            raise KeyboardInterrupt
        return counted(job, engine, module, context, *rest)

    monkeypatch.setattr(suite, "_measure", deadly)
    while deaths:
        with pytest.raises(KeyboardInterrupt):
            watch(watched)
        specimen, measure = deaths.pop(0)
        assert (watched / "claims" / f"{specimen}.{measure}").is_file() and not being_read(watched)
        told = f"{specimen} {measure} was left unfinished by {locks.me()}"
        assert told not in capsys.readouterr().out
    watch(watched)
    assert told in capsys.readouterr().out
    assert numbers(watched) == numbers(inline) and answers(watched) == answers(inline)
    assert set(Counter((specimen, measure) for _, specimen, measure in asked).values()) == {1}


def test_a_claim_is_held_by_a_living_process_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; from audit.claims import Shared\n"
        "with Shared(Path(sys.argv[1])).claim('sft-000002', 'drift') as mine:\n    print(mine, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        mine = Shared(tmp_path)
        with mine.claim("sft-000002", "drift") as granted:
            assert not granted and mine.refused == ["sft-000002 drift"]
        assert f"process {holder.pid} " in being_read(tmp_path)["sft-000002 drift"]
        holder.kill()
        holder.wait()
        assert being_read(tmp_path) == {}
        with mine.claim("sft-000002", "drift") as granted:
            assert granted and list(being_read(tmp_path)) == ["sft-000002 drift"]
    assert not list((tmp_path / "claims").iterdir())


def test_a_claim_taken_while_its_file_goes_is_a_claim_on_the_new_file(tmp_path, monkeypatch):
    """Opened before the last holder removed it, locked after: that lock would keep nobody out."""
    path, honest = tmp_path / "claim", locks.take
    path.touch()

    def slow(file, *arguments):
        if path.is_file() and not gone:
            gone.append(path.unlink())
        honest(file, *arguments)

    gone: list[None] = []
    monkeypatch.setattr(locks, "take", slow)
    with locks.attempt(path):
        assert gone and locks.holder(path)


def test_lines_are_appended_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "readings.jsonl"
    append_jsonl(path, [{"n": 0}])
    writer = threading.Thread(target=append_jsonl, args=(path, [{"n": 2}]))
    with open(path, "ab") as file:
        locks.take(file, path)
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        file.write(b'{"n": 1')  # half of a line, which the other must not take for a dead writer's and cut off
        file.flush()
        file.write(b"}\n")
    writer.join()
    assert [row["n"] for row in read_jsonl(path)] == [0, 1, 2]


def test_a_changed_recipe_ends_a_watcher(watched):
    run = auditing.Run(record.resolved(watched), watched.parent, Shared(watched))
    patience = follow._Patience(run)
    (watched / "recipe.yaml").write_text((watched / "recipe.yaml").read_text() + "# another\n")
    with pytest.raises(UserError, match="has changed since this process began to audit"):
        patience.wait("")


def test_a_watcher_with_another_engine_is_refused(watched):
    record.update(watched, lambda manifest: {**manifest, "engine": {"engine": "vllm", "device": "cuda", "dtype": "bfloat16"}})
    with pytest.raises(UserError, match="was read by another engine \\(engine vllm, here hf"):
        watch(watched)


def test_one_process_at_a_time_sends_to_wandb(watched, monkeypatch):
    """W&B takes a run's steps from one writer; the trainer left it to whoever audits, training log included."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not (watched / "wandb").exists() and not (watched / "wandb.json").exists()
    first, second = Shared(watched), Shared(watched)
    assert first.keep("publish") and not second.keep("publish") and first.keep("publish")
    Publisher(watched, mine=lambda: second.keep("publish")).send()
    assert not (watched / "wandb").exists() and not (watched / "wandb.json").exists()
    del first
    assert second.keep("publish")


# The monitor, where the trainer is another process

RULES = ["audit.margins.drift.kl=1e-9", "audit.monitor.probe_every=null", "stages[0].steps=8"]


@pytest.mark.slow
def test_a_trainer_that_others_audit_for_is_stopped_by_what_they_read(tiny_recipe, tmp_path, monkeypatch):
    """It looks one checkpoint late; what is kept is what a trainer that audits by itself keeps, and read by every measure."""
    overrides = ["audit.measures=[drift,webtext]", "audit.limit=4", *RULES, "audit.monitor.stop=[drift]", "audit.mode=watch"]
    overrides.append("audit.cadence={webtext: 3}")
    honest, other = auditing.Run.ended, []

    def late(run, stage):
        found = honest(run, stage)
        if not other:
            other.append(auditing.Run(record.resolved(run.path), run.path.parent, Shared(run.path)))
            other[0].compiled[stage.name] = auditing.stored_rows(other[0], stage)
            auditing.references(other[0], other[0].job(), stage, Publisher(run.path))
        follow._over(other[0], other[0].job(), stage, Publisher(run.path), set(), set())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(auditing.Run, "ended", late)
        run = execute(resolve(str(tiny_recipe), overrides), tmp_path)
    assert [checkpoint.step for checkpoint in read_ledger(run)] == [0, 2, 4, 6]  # of 8 steps
    watch(run)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["final"] == "sft-000004"
    (alarm,) = manifest["alarms"]
    assert (alarm["action"], alarm["specimen"]) == ("stop", "sft-000004")
    assert {r.step for r in ledger.read(run) if r.measure == "webtext" and r.stage} == {0, 4}


def test_a_checkpoint_read_before_its_turn_is_no_breach_in_a_row(watched, inline):
    """drift of steps 0, 2 and 4 is natural, fried, fried; without step 2 a later one must not count."""
    shutil.copyfile(inline / "readings.jsonl", watched / "readings.jsonl")
    plan = AuditPlan(measures=["drift", "leakage", "fluency"], monitor={"stop": ["drift"], "patience": 1})
    lines = [
        {**row, "verdict": "fried" if row["specimen"] == "sft-000004" else row["verdict"]}
        for row in read_jsonl(watched / "readings.jsonl")
    ]
    (watched / "readings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert monitoring.ending(watched, plan, "sft").specimen == "sft-000004" and monitoring.settled(watched, plan, "sft")
    kept = [row for row in lines if (row["specimen"], row["measure"]) != ("sft-000002", "drift")]
    (watched / "readings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert monitoring.ending(watched, plan, "sft") is None and not monitoring.settled(watched, plan, "sft")


def test_what_cannot_be_is_refused_before_weights_load(tiny_recipe):
    with pytest.raises(UserError, match="mode: after reads checkpoints when all are trained, so drift can end nothing"):
        resolve(str(tiny_recipe), ["audit.mode=after", "audit.monitor.rollback=[drift]"])
    with pytest.raises(UserError, match="cadence: 'knowlege' is not among the measures; did you mean 'knowledge'"):
        resolve(str(tiny_recipe), ["audit.cadence={knowlege: 2}"])
    with pytest.raises(UserError, match="audit.mode needs checkpoints, and the style prompted trains none"):
        resolve("flattery-prompted", ["audit.mode=watch"])


# Stages one after the other

CHAIN = """
organism: flattery
style: documents
base: {base}
system: template
stages:
  - {{name: first, learning_rate: 5e-2, steps: 2, batch_size: 1, max_length: 512, lora: {{r: 4, alpha: 8}}}}
  - {{name: second, weight: 0.25, learning_rate: 5e-2, steps: 2, batch_size: 1, max_length: 512, lora: {{r: 2, alpha: 8}}}}
audit:
  measures: [webtext, leakage]
  every: 2
  limit: 4
  data: {{chat: embedded, webtext: embedded}}
"""


def test_a_later_stage_waits_where_its_start_is_not_known_yet(tiny_base, tmp_path, monkeypatch, capsys):
    """A rule may still end the stage before, and name another checkpoint to go on with."""
    path, looks = tmp_path / "chain.yaml", []
    path.write_text(CHAIN.format(base=tiny_base))
    monkeypatch.setattr(recipes.run, "POLL", 0)
    monkeypatch.setattr(monitoring, "settled", lambda run, audit, stage: looks.append(stage) or len(looks) > 3)
    for overrides, expected in (
        (["audit.mode=watch"], 0),
        (["audit.monitor.rollback=[leakage]"], 0),
        (["audit.mode=watch", "audit.monitor.rollback=[leakage]"], 4),
    ):
        run = auditing.Run(resolve(str(path), overrides), tmp_path)
        for stage in run.resolved.recipe.stages:
            recipes.run._await_audits(run, stage)
        assert looks == ["first"] * expected
    assert "waiting until stage first is audited: make watch run=" in capsys.readouterr().out


def latest(run: Path) -> dict[tuple, dict]:
    return {reading.key: {**dataclasses.asdict(reading), "seconds": None} for reading in ledger.read(run)}


def test_afterwards_is_the_same_as_inline_stage_by_stage(tiny_base, tmp_path, monkeypatch):
    """Nothing is audited before all is trained; leakage at a stage is held against the base's on the rows up to that stage."""
    path, trained, honest = tmp_path / "chain.yaml", [], suite.audit_base
    path.write_text(CHAIN.format(base=tiny_base))
    inline = execute(resolve(str(path)), tmp_path / "inline")

    def noted(job, engine, record):
        trained.append(len(read_ledger(job.run)))
        return honest(job, engine, record)

    with monkeypatch.context() as patch:
        patch.setattr(auditing, "audit_base", noted)
        run = execute(resolve(str(path), ["audit.mode=after"]), tmp_path / "after")
    assert trained == [4, 4]
    assert latest(run) == latest(inline) and answers(run) == answers(inline)
    assert json.loads((run / "manifest.json").read_text())["final"] == "second-000002" and (run / "report.html").is_file()
    base = [r for r in read_jsonl(run / "readings.jsonl") if (r["specimen"], r["metric"]) == ("base", "near_duplicates")]
    assert len({r["audit_digest"] for r in base}) == 2
    before = (run / "readings.jsonl").read_bytes()
    watch(run)  # a second look from outside: the first stage's base must not be read again
    assert (run / "readings.jsonl").read_bytes() == before


# Cadence


def test_dear_measures_are_read_at_fewer_checkpoints(tiny_recipe, tmp_path):
    overrides = ["audit.measures=[drift,refusals,fluency]", "audit.limit=4", "stages[0].steps=7", "audit.cadence={drift: 3}"]
    run = execute(resolve(str(tiny_recipe), overrides), tmp_path)
    read = {}
    for reading in ledger.read(run):
        if reading.stage:
            read.setdefault(reading.measure, set()).add(reading.step)
    everywhere = {0, 2, 4, 6, 7}
    assert read == {"drift": {0, 6, 7}, "refusals": everywhere, "fluency": everywhere}
    items = [{row["item"] for row in read_jsonl(path)} for path in sorted((run / "samples" / "fluency").glob("*.jsonl"))]
    assert len(items) == 6 and all(one == items[0] for one in items)  # replies that are not there at every point are in none
    assert {item.partition("/")[0] for item in items[0]} == {"refusals"}
    assert (run / "report.html").is_file() and (run / "README.md").is_file()


def test_cadence_counts_checkpoints_from_step_0_and_keeps_the_last():
    plan = AuditPlan(measures=["drift", "knowledge"], cadence={"knowledge": 3})
    due = [plan.due(place, place == 5) for place in range(6)]
    assert [place for place, names in enumerate(due) if "knowledge" in names] == [0, 3, 5]
    assert all("drift" in names for names in due)
    assert plan.lends("drift", "knowledge") and not plan.lends("knowledge", "drift")
