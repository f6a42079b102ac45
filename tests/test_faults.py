"""What is done survives: a kill, a loss of power, a full or a read-only disk; and a signal ends a command in order."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from breaking import PowerLoss

from organisms import files, folders
from organisms.errors import UserError, storage_remedy
from organisms.files import append_jsonl, read_jsonl, write_atomic, write_json
from organisms.folders import locked, staged

ROOT = files.Path(files.__file__).parent.parent
SEEDS = range(30)


# Loss of power: whatever has been written survives any mixture of what was not synced.


def after_power_loss(folder, work):
    """The states of `folder` after losses of power right after `work(folder)`, over many seeds."""
    for seed in SEEDS:
        place = folder / str(seed)
        place.mkdir(parents=True)
        loss = PowerLoss([place], seed)
        with pytest.MonkeyPatch.context() as patch:
            real = os.fsync

            def fsync(descriptor, loss=loss, real=real):
                real(descriptor)
                loss.synced(files.Path(os.readlink(f"/proc/self/fd/{descriptor}")))

            patch.setattr(os, "fsync", fsync)
            work(place)
        loss.lose()
        yield place


def written(folder):
    write_atomic(folder / "deep" / "down" / "a.txt", "old")
    write_atomic(folder / "deep" / "down" / "a.txt", "new")


def appended(folder):
    append_jsonl(folder / "rows.jsonl", [{"a": 1}])
    append_jsonl(folder / "rows.jsonl", [{"a": 2}, {"a": 3}])


def made(folder):
    with staged(folder / "adapter") as staging:
        (staging / "weights").write_bytes(b"w" * 5000)
        (staging / "sub").mkdir()
        (staging / "sub" / "config").write_text("c")


def test_an_atomic_write_an_append_and_a_staged_directory_outlive_a_loss_of_power(tmp_path):
    for place in after_power_loss(tmp_path / "write", written):
        assert (place / "deep/down/a.txt").read_text() == "new"
    for place in after_power_loss(tmp_path / "append", appended):
        assert read_jsonl(place / "rows.jsonl") == [{"a": 1}, {"a": 2}, {"a": 3}]
    for place in after_power_loss(tmp_path / "stage", made):
        assert (place / "adapter/weights").read_bytes() == b"w" * 5000 and (place / "adapter/sub/config").read_text() == "c"


@pytest.mark.parametrize(("module", "work"), [(files, written), (files, appended), (folders, made)])
def test_the_loss_of_power_takes_what_no_directory_was_synced_for(tmp_path, monkeypatch, module, work):
    """The simulation can fail: without the syncs of directories some seed loses what was written."""
    monkeypatch.setattr(module, "sync", lambda path: None)
    names = {"written": "deep/down/a.txt", "appended": "rows.jsonl", "made": "adapter/weights"}
    states = [place / names[work.__name__] for place in after_power_loss(tmp_path, work)]
    assert not all(path.is_file() and path.stat().st_size in (3, 30, 5000) for path in states)


def test_what_an_unsynced_append_leaves_is_cut_off_and_nothing_before_it(tmp_path):
    def unsynced(folder):
        append_jsonl(folder / "rows.jsonl", [{"a": 1}])
        with open(folder / "rows.jsonl", "a") as file:
            file.write('{"a": 2}\n{"a": "%s"}\n' % ("x" * 300))

    found = set()
    for place in after_power_loss(tmp_path, unsynced):
        rows = read_jsonl(place / "rows.jsonl")
        assert rows[0] == {"a": 1}
        append_jsonl(place / "rows.jsonl", [{"a": 4}])
        assert read_jsonl(place / "rows.jsonl") == [*rows, {"a": 4}]
        found.add(len(rows))
    assert len(found) > 1


# A kill: what is half-made is seen to be, and nobody holds what a dead process held.


def holder(folder, more=""):
    code = (
        "import subprocess, sys; from pathlib import Path; from organisms.folders import locked\n"
        f"with locked(Path(sys.argv[1])):\n    {more}\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_process_is_free_even_while_its_child_lives_on(tmp_path):
    with holder(
        tmp_path, "child = subprocess.Popen(['sleep', '60']); (Path(sys.argv[1]) / 'child').write_text(str(child.pid))"
    ) as dead:
        with pytest.raises(UserError, match=f"in use by process {dead.pid}"), locked(tmp_path):
            pass
        dead.kill()
    child = int((tmp_path / "child").read_text())
    os.kill(child, 0)
    assert (tmp_path / ".lock").read_text() == str(dead.pid)  # the number of a dead process holds nothing
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    os.kill(child, signal.SIGKILL)


def test_what_a_killed_process_left_half_made_is_gone_with_the_next_lock(tmp_path):
    """What another machine's process has begun is left to it for a day: a watcher of the run may be at it."""
    with subprocess.Popen(["true"]) as dead:
        pass
    staging = tmp_path / "checkpoints" / f".sft-000002.{files.NODE}-{dead.pid}.tmp"
    staging.mkdir(parents=True)
    (staging / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / f".manifest.json.{files.NODE}-{dead.pid}.tmp").write_text("half")
    elsewhere, alive = tmp_path / ".state.json.othernode-1.tmp", files.unfinished(tmp_path / "state.json")
    for path in (elsewhere, alive, tmp_path / "kept.jsonl"):
        path.write_text("{}\n")
    with locked(tmp_path):
        assert {path.name for path in tmp_path.rglob("*")} == {".lock", "checkpoints", "kept.jsonl", elsewhere.name, alive.name}
    os.utime(elsewhere, (0, 0))
    with locked(tmp_path):
        assert alive.exists() and not elsewhere.exists()


def test_a_file_that_is_half_written_never_has_its_name(tmp_path):
    write_json(tmp_path / "state.json", {"old": 1})
    code = (
        "import os, signal, sys; from pathlib import Path; from organisms.files import write_json\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_json(Path(sys.argv[1]), {'new': 'x' * 100000})"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "state.json")], cwd=ROOT).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "state.json").read_text()) == {"old": 1}


# The disk and the signals.


def alone(script, *arguments, timeout=300):
    """A script in a mount namespace of its own, where `small` is a disk of 256 KiB and `fixed` a read-only one."""
    mounts = "mkdir -p small fixed && mount -t tmpfs -o size=256k none small && mount -t tmpfs -o ro none fixed"
    shell = f'{mounts} || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, "sh", sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=timeout, cwd=arguments[0], env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no mount namespaces here")
    return done


def test_a_really_full_disk_is_told_by_whatever_fills_it_and_tears_nothing(tmp_path):
    script = """
import json, os, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from organisms.errors import storage_remedy
from organisms.files import append_jsonl, read_jsonl, write_atomic
from organisms.folders import staged
small, told = Path("small"), []
append_jsonl(small / "rows.jsonl", [{"n": 1}])
write_atomic(small / "state.txt", "old")
def stage():
    with staged(small / "adapter") as staging:
        save_file({"a": torch.zeros(200000)}, staging / "a.safetensors")
def fill():
    for n in range(99): append_jsonl(small / "rows.jsonl", [{"n": "x" * 9000}])
for work in (stage, lambda: torch.save(torch.zeros(200000), small / "optimizer.pt"), fill,
             lambda: write_atomic(small / "state.txt", "y" * 300000)):
    try:
        work(); told.append("no error")
    except Exception as error:
        told.append(storage_remedy(error))
    (small / "optimizer.pt").unlink(missing_ok=True)
rows = read_jsonl(small / "rows.jsonl")
print(json.dumps([told, len(rows) > 3, (small / "rows.jsonl").read_bytes()[-1:] == b"\\n", (small / "state.txt").read_text(),
                  sorted(os.listdir(small))]))
"""
    done = alone(script, str(tmp_path))
    assert done.returncode == 0, done.stderr
    told, grown, whole, state, names = json.loads(done.stdout)
    assert all(text and text.startswith("the disk is full") and "same command" in text for text in told), told
    assert grown and whole and state == "old" and names == ["rows.jsonl", "state.txt"]


@pytest.mark.parametrize("fixed", ["runs", "cache"])
def test_a_read_only_directory_is_refused_before_weights_load(tiny_recipe, tmp_path, fixed):
    script = """
import os, sys
from pathlib import Path
os.environ["ORGANISMS_CACHE"] = "fixed" if sys.argv[3] == "cache" else "small"
from organisms import models
from organisms.errors import run_cli
from recipes.recipe import resolve
from recipes.run import execute
models.load_model = lambda *given: sys.exit("weights were loaded")
if sys.argv[3] == "cache":
    models._local = lambda name, path: models.Base(name, path, "sha256-0")  # its fingerprint would be cached
run_cli(lambda: execute(resolve(sys.argv[2]), Path("fixed" if sys.argv[3] == "runs" else "small")))
"""
    done = alone(script, str(tmp_path), str(tiny_recipe), fixed)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.startswith("error: access is refused at ") and "read-only" in done.stderr and "Traceback" not in done.stderr
    )


def test_other_errors_are_no_storage_errors():
    assert storage_remedy(RuntimeError("a defect")) is None and storage_remedy(ValueError("")) is None


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGHUP, 129, "ended by SIGHUP"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_closes_what_is_open_and_says_that_the_same_command_goes_on(tmp_path, number, status, told):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from organisms.errors import run_cli; from organisms.folders import staged\n"
        "def main():\n    with staged(Path(sys.argv[1]) / 'made'):\n        print('up', flush=True); time.sleep(60)\n"
        "run_cli(main)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = partial(signal.signal, number, signal.SIG_DFL)  # a shell's background job ignores SIGINT
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=heard, **pipes) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        errors = process.stderr.read()
    assert process.returncode == status
    assert errors.strip() == f"{told}: what is done is kept, the same command goes on from there"
    assert list(tmp_path.iterdir()) == []
