"""A run in a store is at every moment one that can be gone on with: whole resume states, no ledger ahead of its adapters."""

import json
import shutil
from pathlib import Path

import pytest

from organisms.errors import UserError
from organisms.files import append_jsonl, read_jsonl
from recipes.store import STATE, Copy, OwnCache, Store


def tree(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    return {name: path.read_bytes() for name, path in found.items() if not path.name.startswith(".")}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run in the middle of its training, in the layout of a real one."""
    folder = tmp_path / "here" / "x-1"
    state(folder, 2)
    for step in (0, 2):
        checkpoint(folder, step)
    append_jsonl(folder / "readings.jsonl", [{"specimen": "sft-000000"}])
    (folder / ".lock").write_text("7")
    return folder


def checkpoint(folder: Path, step: int) -> None:
    adapter = folder / "checkpoints" / f"sft-{step:06d}" / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"weights %d" % step)
    append_jsonl(folder / "checkpoints.jsonl", [{"step": step}])


def state(folder: Path, step: int, whole: bool = True) -> None:
    """As the trainer saves it: its marker last, and then the one before it makes way."""
    target = folder / "trainer" / "sft" / f"checkpoint-{step}"
    target.mkdir(parents=True)
    (target / "optimizer.pt").write_bytes(b"moments %d" % step)
    append_jsonl(folder / "train.jsonl", [{"step": step}])
    if whole:
        (target / "trainer_state.json").write_text(json.dumps({"step": step}))
        for other in target.parent.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other)


def pulled(store: Store, tmp_path: Path, weights: bool = True) -> dict[str, bytes]:
    copy = Copy(store, tmp_path / "there" / "x-1")
    copy.pull(weights)
    return tree(copy.run)


def test_a_run_comes_back_as_it_was_left(store, run, tmp_path):
    Copy(store, run).push()
    assert pulled(store, tmp_path) == tree(run)
    assert not any(name.startswith(("checkpoints/", "trainer/")) for name in pulled(store, tmp_path, weights=False))


def test_what_was_there_before_a_pull_is_gone_after_it(store, run, tmp_path):
    stale = tmp_path / "there" / "x-1" / "readings.jsonl"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}\n" * 9)
    assert pulled(store, tmp_path) == {}  # the store knows nothing of this run
    Copy(store, run).push()
    assert pulled(store, tmp_path)["readings.jsonl"] == (run / "readings.jsonl").read_bytes()


def test_only_what_is_new_is_sent_and_old_resume_states_are_removed(store, run, tmp_path, monkeypatch):
    copy = Copy(store, run)
    copy.push()
    sent = []
    honest = store.put
    monkeypatch.setattr(store, "put", lambda source, name: (sent.append(name), honest(source, name)))
    state(run, 4)
    checkpoint(run, 4)
    copy.push()
    assert sent == ["x-1/checkpoints/sft-000004/adapter_model.safetensors", "x-1/trainer/sft/checkpoint-4/optimizer.pt"]
    assert pulled(store, tmp_path) == tree(run)
    again = Copy(store, run)
    again.pull()  # another attempt knows what the store holds
    sent.clear()
    again.push()
    assert sent == []


def test_a_resume_state_that_is_being_saved_is_not_taken_for_whole(store, run, tmp_path):
    copy = Copy(store, run)
    state(run, 4, whole=False)
    copy.push()
    found = pulled(store, tmp_path)
    assert "trainer/sft/checkpoint-2/trainer_state.json" in found
    assert not any("checkpoint-4" in name for name in found)


@pytest.mark.parametrize("cut_off_after", range(6))
def test_a_push_that_is_cut_off_leaves_the_moment_before(store, run, tmp_path, monkeypatch, cut_off_after):
    """Whatever was sent by then: what is pulled is the earlier run whole, or the later one whole."""
    copy = Copy(store, run)
    copy.push()
    before = tree(run)
    state(run, 4)
    checkpoint(run, 4)
    append_jsonl(run / "readings.jsonl", [{"specimen": "sft-000004"}])
    left = [cut_off_after]

    def cut(honest):
        def sending(*arguments):
            if not left[0]:
                raise ConnectionError("the machine is gone")
            left[0] -= 1
            return honest(*arguments)

        return sending

    for name in ("put", "write", "remove"):
        monkeypatch.setattr(store, name, cut(getattr(store, name)))
    try:
        copy.push()
    except ConnectionError:
        pass
    monkeypatch.undo()
    found = pulled(store, tmp_path)
    ledger = found["checkpoints.jsonl"]
    whole = tree(run)
    if ledger == whole["checkpoints.jsonl"]:
        assert found == whole
    else:
        assert {name: found.get(name) for name in before} == before and "trainer/sft/checkpoint-2/optimizer.pt" in found
        assert not any("checkpoint-4" in name for name in found)


def test_a_file_that_was_sent_in_part_is_not_taken(store, run, tmp_path):
    (run / "data").mkdir()
    (run / "data" / "sft.jsonl").write_text("{}\n{}\n")
    Copy(store, run).push()
    (tmp_path / "store" / "x-1" / "data" / "sft.jsonl").write_text("{}\n")  # rows that training would take for all
    (tmp_path / "store" / "x-1" / "data" / "kto.jsonl").write_text("{}\n")
    assert not any(name.startswith("data/") for name in pulled(store, tmp_path))


def test_a_checkpoint_that_comes_while_a_moment_is_taken_is_whole_or_absent(store, run, tmp_path, monkeypatch):
    """Between the ledger's first reading and the adapters a checkpoint comes; the moment is taken anew."""
    copy = Copy(store, run)
    honest, came = copy._lasting, []

    def late(changing):
        if not came:
            came.append(True)
            found = honest(changing)
            state(run, 4)
            checkpoint(run, 4)
            return found
        return honest(changing)

    monkeypatch.setattr(copy, "_lasting", late)
    copy.push()
    assert pulled(store, tmp_path) == tree(run)


def test_a_finished_run_is_a_run_directory_in_the_store(store, run, tmp_path):
    shutil.rmtree(run / "trainer")
    Copy(store, run).publish()
    there = tree(tmp_path / "store" / "x-1")
    assert there.pop(STATE) and there == tree(run)
    assert pulled(store, tmp_path) == tree(run)


def test_answers_and_written_replies_reach_the_cells_that_need_them(store, tmp_path):
    mine, same, other = (OwnCache(store, tmp_path / f"cache-{i}", f"x-{i}", rows) for i, rows in enumerate("aab"))
    mine.pull()
    append_jsonl(mine.folder / "writing" / "author.jsonl", [{"key": "k", "text": "t", "finished": True}])
    (mine.folder / "readings").mkdir()
    (mine.folder / "readings" / "drift-1.json").write_text("{}")
    mine.push()
    append_jsonl(mine.folder / "writing" / "author.jsonl", [{"key": "l", "text": "t", "finished": True}])
    mine.push()
    for cache in (same, other):
        cache.pull()
        assert (cache.folder / "readings" / "drift-1.json").is_file()
    assert [row["key"] for row in read_jsonl(same.folder / "writing" / "author.jsonl")] == ["k", "l"]
    assert not (other.folder / "writing").exists()
    same.push()  # nothing of it is its own
    assert store.names("cache/writing/a/author") == ["x-0"]


def test_an_unknown_kind_of_store_is_told():
    with pytest.raises(UserError, match="runs=nowhere://x"):
        Store("nowhere://x")
