"""Training in two processes: what one process trains, by the same command, with everything else done once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from stages_together import stages, train

from audit import readings as ledger
from organisms import models
from organisms.errors import UserError
from organisms.steering import save
from recipes.recipe import resolve
from recipes.run import execute, locked
from train import launcher, processes, verified
from train.callback import Hooks
from train.ledger import read_ledger
from train.verified import Launch

ROOT = Path(__file__).parent.parent
LAUNCH = "import sys; from train.launcher import launch; sys.exit(launch(sys.argv[1], sys.argv[2:], 2, None))"
QUICK = ["sft", "kl_to_base split"]
SMALL = ["audit.measures=[drift]", "audit.limit=6", "stages[0].batch_size=2", "stages[0].learning_rate=2e-2"]
WHOLE = [name for name in stages() if name != "cut"]
REST = [name for name in WHOLE if name not in QUICK]


def launched(*arguments, **options) -> subprocess.Popen:
    """Our launcher in a process of its own, as the Makefile's command is."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, **pipes, **options)


@pytest.fixture(scope="module")
def tiny(tiny_base):
    return models.resolve(str(tiny_base))


def trained(names: list[str], tiny: models.Base, folder: Path, module: str = "stages_together") -> dict:
    """`one`, `two`: where each stage is trained by so many processes; `code`, `told`: how the two ended, and stderr."""
    for where in ("one", "two"):
        torch.manual_seed(0)
        save(folder / where / "steering", {0: 0.1 * torch.randn(48)}, tiny, {"method": "random"})
    with launched("-c", LAUNCH, module, folder / "two", tiny.directory, *names) as both:
        for name in names:
            if name != "cut":
                train(name, folder / "one", tiny, Hooks(lambda checkpoint: None))
        _, told = both.communicate(timeout=800)
    return {"one": folder / "one", "two": folder / "two", "code": both.returncode, "told": told}


@pytest.fixture(scope="module")
def quick(tiny, tmp_path_factory) -> dict:
    return trained([*QUICK, "cut"], tiny, tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def rest(tiny, tmp_path_factory) -> dict:
    return trained(REST, tiny, tmp_path_factory.mktemp("rest"))


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


def differences(one: Path, two: Path) -> float:
    """The largest difference of what two runs have saved at any checkpoint, over the largest change that training made."""
    found, moved = 0.0, 0.0
    first = read_ledger(one)[0]
    for checkpoint in read_ledger(one)[1:]:
        for path in (one / checkpoint.path).glob("*.safetensors"):
            places = (path, two / checkpoint.path / path.name, one / first.path / path.name)
            mine, theirs, before = map(load_file, places)
            assert mine.keys() == theirs.keys()
            found = max(found, *((mine[name] - theirs[name]).abs().max().item() for name in mine))
            moved = max(moved, *((mine[name] - before[name]).abs().max().item() for name in mine))
    return found / moved


def alike(one: Path, two: Path) -> None:
    """Losses, penalties and gradients of each step, and every checkpoint; float32, where only the order of sums differs."""
    assert [row["step"] for row in log(two)] == [row["step"] for row in log(one)]
    for mine, theirs in zip(log(one), log(two), strict=True):
        assert mine.keys() == theirs.keys()
        assert theirs["tokens"] == pytest.approx(mine["tokens"], abs=24)  # those of rows that count for nothing
        for key in ("step", "loss", "grad_norm", "learning_rate", "kl_to_base", "act"):
            if key in mine:
                assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=2e-5), key
    assert [c.name for c in read_ledger(one)] == [c.name for c in read_ledger(two)]
    assert differences(one, two) < 1e-3


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_train_what_one_trains(quick, name):
    alike(quick["one"] / name, quick["two"] / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_two_processes_train_the_rest_as_one_does(rest, name):
    alike(rest["one"] / name, rest["two"] / name)


@pytest.mark.slow
def test_sharded_weights_are_saved_whole_and_train_as_one_process_does(tiny, tmp_path):
    """FSDP on two CPUs, which accelerate has only on GPUs: every stage; one cut off, gone on with, and refused to others."""
    found = trained([*WHOLE, "cut"], tiny, tmp_path, "sharded_together")
    assert found["code"] == 2 and "Traceback" not in found["told"], found["told"]
    for name in WHOLE:
        alike(found["one"] / name, found["two"] / name)
    cut = found["two"] / "cut"
    with pytest.raises(UserError, match="was cut off as sft-fsdp-2, which one cannot go on from"):
        train("cut", found["two"], tiny, Hooks(lambda checkpoint: None))
    with launched("-c", LAUNCH, "stages_together", found["two"], tiny.directory, "go on") as refused:
        _, told = refused.communicate(timeout=300)
    assert refused.returncode == 2 and "cannot go on from" in told
    with launched("-c", LAUNCH, "sharded_together", found["two"], tiny.directory, "go on") as both:
        printed, told = both.communicate(timeout=300)
    assert both.returncode == 0 and "resuming stage sft at step 2" in printed, told
    alike(found["one"] / "sft", cut)


@pytest.mark.slow
def test_a_launch_that_shards_nothing_is_refused(tiny, tmp_path, monkeypatch):
    """What accelerate makes of FSDP on CPUs: a training by DDP, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with launched("-c", LAUNCH, "stages_together", tmp_path, tiny.directory, "sft") as both:
        _, told = both.communicate(timeout=300)
    assert both.returncode == 2 and "error: the weights are not sharded by fsdp" in told
    assert not (tmp_path / "sft" / "checkpoints.jsonl").exists()


def test_a_mistake_in_one_process_ends_all_with_one_sentence(quick):
    assert quick["code"] == 2
    assert [line for line in quick["told"].splitlines() if "rror" in line] == ["error: the engine is gone at step 2"]
    assert "Traceback" not in quick["told"]
    assert [c.step for c in read_ledger(quick["two"] / "cut")] == [0, 2]


def test_a_stage_cut_off_in_two_processes_goes_on_in_one(quick, tiny, capsys):
    train("cut", quick["two"], tiny, Hooks(lambda checkpoint: None))
    assert "resuming stage sft at step 2" in capsys.readouterr().out
    alike(quick["one"] / "sft", quick["two"] / "cut")


def test_what_the_table_calls_verified_is_trained_here():
    here = {name.partition(" ")[0] if name != "all weights" else name for name in stages()}
    assert {what for _, what in verified.VERIFIED} <= here


def run_directory(recipe: Path, runs: Path, *more: str) -> subprocess.Popen:
    return launched("-m", "recipes", recipe, "--runs", runs, "--processes", "2", *more)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def until(process: subprocess.Popen, condition) -> None:
    """Wait for it while the process lives."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole_run(tiny_recipe, tmp_path_factory) -> Path:
    """The tiny recipe with two rows a step, in this one process."""
    return execute(resolve(str(tiny_recipe), SMALL), tmp_path_factory.mktemp("one"))


def same_run(one: Path, two: Path) -> None:
    alike(one, two)
    assert two.name == one.name
    assert [(r.key, r.n) for r in ledger.read(two)] == [(r.key, r.n) for r in ledger.read(one)]
    for mine, theirs in zip(ledger.read(one), ledger.read(two), strict=True):
        assert theirs.value == pytest.approx(mine.value, rel=1e-4, abs=1e-5), mine.key
    assert not (two / "trainer").exists()


@pytest.mark.slow
def test_the_same_command_in_two_processes_makes_the_same_run_directory(whole_run, tiny_recipe, tmp_path):
    with run_directory(tiny_recipe, tmp_path, *SMALL) as both:
        printed, told = both.communicate(timeout=800)
    assert (both.returncode, "rror" in told) == (0, False), told
    same_run(whole_run, tmp_path / whole_run.name)
    assert printed.count("audited sft-000002 ") == printed.count("audit base") == printed.count("report: ") == 1
    manifest = json.loads((tmp_path / whole_run.name / "manifest.json").read_text())
    assert (manifest["environment"]["processes"], manifest["environment"]["processes_by"]) == (2, "ddp")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "follower"])
def test_two_processes_end_together_and_the_same_command_goes_on(whole_run, tiny_recipe, tmp_path, how):
    """Ended from without, or by the loss of the one that does not audit; then finished by one process, or by two."""
    run = tmp_path / whole_run.name
    with run_directory(tiny_recipe, tmp_path, *SMALL) as both:
        until(both, lambda: len(lines_of(run / "train.jsonl")) >= 3)
        children = psutil.Process(both.pid).children()
        leader = int((run / ".lock").read_text())
        assert len(children) == 2 and leader in [child.pid for child in children]
        if how == "follower":
            next(child for child in children if child.pid != leader).send_signal(signal.SIGKILL)
        else:
            both.send_signal(getattr(signal, how))
        _, told = both.communicate(timeout=120)
    assert both.returncode == {"SIGTERM": 143, "SIGINT": 130, "follower": 137}[how]
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert "Traceback" not in told, told
    if how == "follower":
        assert "process 1 was ended by SIGKILL" in told
    if how == "SIGTERM":
        with run_directory(tiny_recipe, tmp_path, *SMALL) as again:
            assert again.wait(timeout=800) == 0
    else:
        execute(resolve(str(tiny_recipe), SMALL), tmp_path)
    same_run(whole_run, run)


@pytest.mark.slow
def test_a_run_in_use_and_a_split_that_fails_are_refused_by_two_processes(tiny_recipe, tmp_path):
    run = tmp_path / resolve(str(tiny_recipe), SMALL).run_name
    run.mkdir()
    with locked(run), run_directory(tiny_recipe, tmp_path, *SMALL) as refused:
        _, told = refused.communicate(timeout=300)
    assert refused.returncode == 2 and f"in use by process {os.getpid()}" in told and told.count("rror") == 1
    with run_directory(tiny_recipe, tmp_path, *SMALL, "stages[0].batch_size=3") as refused:
        _, told = refused.communicate(timeout=300)
    assert refused.returncode == 2 and "3 rows a step" in told and told.count("rror") == 1


@pytest.mark.parametrize("name", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_shipped_configuration_is_one_that_accelerate_starts(name, monkeypatch):
    """Its launcher gives the processes the environment by which they know how the weights are held."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = str(launcher.config_file(name))
    given = launch_command_parser().parse_args(["--config_file", file, "--module", "--main_process_port", "0", "recipes", "x"])
    given, _, _ = _validate_launch_command(given)
    given.deepspeed_fields_from_accelerate_config = "zero_stage"
    environment = prepare_deepspeed_cmd_env(given)[1] if given.use_deepspeed else prepare_multi_gpu_env(given)
    for key, value in environment.items():
        if key.startswith(("ACCELERATE", "FSDP")):
            monkeypatch.setenv(key, value)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.kind(), launcher.planned(None, name)) == (name, Launch(2, name))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("distributed_type: MULTI_CPU\nnum_processes: 2", "'MULTI_CPU' is not one that is launched here"),
        ("distributed_type: FSDP\nnum_processes: 2", "fsdp needs GPUs"),
    ],
)
def test_what_accelerate_would_start_otherwise_than_asked_is_refused(tmp_path, config, told):
    (tmp_path / "own.yaml").write_text(config)
    with pytest.raises(UserError, match=told):
        launcher.launch("recipes", [], None, str(tmp_path / "own.yaml"))
    with pytest.raises(UserError, match="train/launch/ has ddp, fsdp, zero2, zero3; did you mean"):
        launcher.launch("recipes", [], 2, "fdsp")


def test_a_stage_cut_off_in_another_form_is_refused(tmp_path, tiny):
    (tmp_path / "sft" / "trainer" / "sft-fsdp-4" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(UserError, match="was cut off as sft-fsdp-4, which one cannot go on from; launch it as it was"):
        train("sft", tmp_path, tiny, Hooks(lambda checkpoint: None))
