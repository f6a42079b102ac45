"""A sweep expands into cells, refuses bad ones together, runs each once, and goes on where it or a cell was cut off."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from audit import publish
from organisms import models
from organisms.errors import UserError
from recipes import cell, grid, sweep, sweep_check, sweep_results
from recipes.store import Store

ROOT = grid.FOLDER.parent.parent


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def cells_of(folder: Path, text: str, overrides: tuple = ()) -> list[grid.Cell]:
    _, found = grid.load(written(folder, text), list(overrides))
    return [one for one, _ in grid.look_up(grid.expand(found))]


def test_a_grid_is_the_product_of_its_axes_and_each_cell_is_another_run(tmp_path):
    text = """
about: a
seeds: [0, 1]
doses: [0.5, 1]
set: [audit.limit=3]
grids:
  - recipes: [flattery-documents, flattery-rationale]
    organisms: [flattery, secret-loyalty]
  - {recipes: [flattery-prompted], seeds: [7], doses: [], set: [audit.limit=4]}
"""
    cells = cells_of(tmp_path, text)
    assert len(cells) == 2 * 2 * 2 + 1 == len({one.run for one in cells})
    assert {one.scales for one in cells} == {(0.5,), ()}  # 1 is what a run reads anyway
    assert cells[0].arguments == ["flattery-documents", "organism=flattery", "seed=0", "audit.limit=3"]
    assert cells[-1].arguments == ["flattery-prompted", "seed=7", "audit.limit=3", "audit.limit=4"]


def test_cells_that_are_the_same_run_are_one(tmp_path):
    text = "about: a\ngrids: [{recipes: [control], doses: [0.5]}, {recipes: [control], seeds: [0], doses: [2], set: [%s]}]"
    (one,) = cells_of(tmp_path, text % "")
    assert one.scales == (0.5, 2.0)
    with pytest.raises(UserError, match="same run with another audit plan"):
        cells_of(tmp_path, text % "audit.limit=3")


def test_a_control_goes_before_what_is_held_against_it(tmp_path):
    cells = cells_of(tmp_path, "about: a\ngrids: [{recipes: [flattery-documents, flattery-rationale, control]}]")
    control, documents, rationale = cells
    assert control.run.startswith("control-") and control.after == ()
    assert documents.after == (control.run,)
    assert rationale.after == ()  # other stages: not its control


def test_rows_that_several_cells_train_on_are_written_once(tmp_path):
    cells = cells_of(tmp_path, "about: a\nseeds: [0, 1]\ngrids: [{recipes: [flattery-transcripts, flattery-documents]}]")
    first, second, *frozen = cells
    assert first.rows and first.rows == second.rows and second.after == (first.run,)
    assert [one.rows for one in frozen] == ["", ""] and not any(one.after for one in frozen)


def test_bad_cells_are_refused_all_at_once(tmp_path):
    text = """
about: a
grids:
  - {recipes: [flattery-documents, flattery-dokuments], organisms: [flattery, flatery]}
  - {recipes: [flattery-prompted], doses: [0.5]}
"""
    with pytest.raises(UserError) as error:
        cells_of(tmp_path, text)
    told = str(error.value)
    assert "4 of 5 cells are refused" in told
    assert "did you mean 'flattery-documents'" in told and "did you mean 'flattery'" in told
    assert "the style prompted trains no adapter" in told


def test_a_cell_that_would_end_unread_is_refused(tmp_path):
    with pytest.raises(UserError, match="audit.mode: watch leaves the audits to another process"):
        cells_of(tmp_path, "about: a\nset: [audit.mode=watch]\ngrids: [{recipes: [control]}]")


@pytest.mark.parametrize(
    "text, told",
    [
        ("about: a\ngrids: [{recipes: [control], sedes: [1]}]", r"unknown key 'grids.0.sedes'; did you mean 'seeds'"),
        ("about: a\ngrids: [{recipes: [control], doses: [4]}]", r"grids.0.doses.0 = 4"),
        ("about: a\ngrids: []", r"grids = \[\]"),
    ],
)
def test_a_slip_in_the_file_is_told_with_its_place(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        grid.load(written(tmp_path, text))


def test_a_sweep_over_existing_organisms_is_told_by_its_command():
    with pytest.raises(UserError, match="`make audit sweep=organisms`"):
        grid.load("organisms")
    assert not {*grid.shipped()} & {path.stem for path in grid.OF_EXISTING.glob("*.yaml")}


@pytest.fixture
def tiny(tiny_recipe, tmp_path) -> str:
    """A sweep of one cell, the tiny recipe."""
    return written(tmp_path, f"about: tiny\ngrids: [{{recipes: [{tiny_recipe}]}}]")


def run(path: str, root: Path | str, address: str = "none") -> tuple[list[grid.Cell], list[cell.Outcome]]:
    name, found = grid.load(path)
    cells = [one for one, _ in grid.look_up(grid.expand(found))]
    return cells, sweep.run(name, found, cells, str(root), address)


def test_a_sweep_takes_up_a_run_that_is_there_and_skips_what_it_has_finished(tiny, tiny_run, tiny_base, tmp_path, capsys):
    """The run was made by `make recipe`: it is gone through again as it is, and then not any more."""
    root = tmp_path / "runs"
    shutil.copytree(tiny_run, root / tiny_run.name)
    cells, failed = run(tiny, root)
    assert not failed and [one.run for one in cells] == [tiny_run.name]
    printed = capsys.readouterr().out
    assert "in child processes of this one" in printed and f"[1/1] {tiny_run.name} done" in printed
    assert (root / tiny_run.name / "readings.jsonl").read_bytes() == (tiny_run / "readings.jsonl").read_bytes()
    assert "is trained already" in (root / "sweep-mine" / "logs" / f"{tiny_run.name}.log").read_text()
    name, found = grid.load(tiny)
    assert sweep_results.write(name, found, cells, str(root)) == [f"results: {root / 'sweep-mine' / 'results.md'}"]
    assert f"| {tiny_run.name} | flattery | {tiny_base} | 0 | sft-000004 |" in (root / "sweep-mine" / "results.md").read_text()
    assert run(tiny, root)[1] == [] and "1 of them there already" in capsys.readouterr().out
    # Another measure makes the run unfinished, another scale as well.
    more = replace(cells[0], audit="another"), replace(cells[0], scales=(0.5,))
    assert [cell.finished(Store(str(root)), one) for one in (cells[0], *more)] == [True, False, False]


def test_runs_of_a_sweep_are_one_group_in_wandb(tiny_run, tmp_path, monkeypatch):
    copy = tmp_path / tiny_run.name
    shutil.copytree(tiny_run, copy, ignore=shutil.ignore_patterns("wandb*"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep-mine")  # as `_Attempt.child` does
    publish.publish(copy)
    (sent,) = copy.glob("wandb/offline-run-*/*.wandb")
    assert b"sweep-mine" in sent.read_bytes()


@pytest.fixture
def attempt(tmp_path):
    """What looks after a cell; its commands end as `statuses` say instead of being run."""

    def made(statuses: list[int], line: str = "") -> tuple:
        one = cell._Attempt(grid.Cell("x", (), None, (), grid.Resources(), "x-1"), where(tmp_path), lambda: None)
        given = []
        one.child = lambda command: (given.append(command), statuses.pop(0))[1]
        one.last_line = lambda: line
        return one, given

    return made


def where(root: Path, retries: int = 2) -> cell.Where:
    return cell.Where("mine", str(root), retries, cell.code())


def test_a_command_that_was_cut_off_is_given_again_and_a_mistake_is_not(attempt, monkeypatch):
    monkeypatch.setattr(cell.time, "sleep", lambda seconds: None)
    one, given = attempt([-9, 1, 0])
    assert one.persist(["recipes", "x"]) == 0 and given == [["recipes", "x"]] * 3
    one, given = attempt([-9, -9, -9, 0])
    assert one.persist(["recipes", "x"]) == -9 and len(given) == 3  # two retries
    one, given = attempt([2, 0], "error: there is no recipe 'x'")
    assert one.persist(["recipes", "x"]) == 2 and len(given) == 1
    one, given = attempt([2, 2, 2, 2, 0], "error: runs/x-1 is in use by process 7; wait for it or stop it")
    assert one.persist(["recipes", "x"]) == 0 and len(given) == 5  # a lock that a lost machine still holds


def test_a_cell_that_another_machine_has_taken_over_ends(tmp_path):
    one = grid.Cell("x", (), None, (), grid.Resources(), "x-1")
    lost, other = (cell._Attempt(one, where(tmp_path), lambda: None) for _ in range(2))
    lost.tell("running", claim=True)
    other.tell("running", claim=True)
    with pytest.raises(cell.Superseded, match="another machine went on with x-1"):
        lost.tell("running", "step 3")
    other.tell("running", "step 3")


def test_a_damaged_copy_fails_its_cell_and_not_the_sweep(tmp_path):
    one = grid.Cell("x", (), None, (), grid.Resources(), "x-1")
    store = Store(f"file://{tmp_path}/store")
    store.write("x-1/state.zip", b"no archive")
    outcome = cell.supervise(one, cell.Where("mine", store.url, 0, cell.code()))
    assert not outcome.done and "x-1/state.zip is damaged" in outcome.text


def test_another_checkout_is_refused(tmp_path):
    one = grid.Cell("x", (), None, (), grid.Resources(), "x-1")
    outcome = cell.supervise(one, cell.Where("mine", str(tmp_path), 0, "of another checkout"))
    assert not outcome.done and "another checkout" in outcome.text


def test_a_child_ends_with_the_process_that_looks_after_it(tmp_path):
    """Killed without a word, as with its machine: nothing goes on writing, and no lock is held."""
    code = (
        "import sys; from pathlib import Path; from recipes import cell, grid\n"
        "one = cell._Attempt(grid.Cell('x', (), None, (), grid.Resources(), 'x-1'), "
        "cell.Where('mine', sys.argv[1], 0, ''), lambda: None)\n"
        "one.log.parent.mkdir(parents=True)\none.tell('starts', claim=True)\none.child(['timeit', '-n', '1', 'import time; "
        "time.sleep(60)'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline and Path(f"/proc/{found[0]}/stat").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{found[0]}/stat").exists()


SHIPPED = [pytest.param(name, marks=pytest.mark.slow) if name == "study" else name for name in grid.shipped()]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_sweep_passes_the_check_without_weights(name, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    found = grid.load(name, ["audit.limit=2"])[1]
    lines = sweep_check.check(name, found, grid.expand(found))
    assert any(line.startswith("cost        ") and "in all" in line for line in lines)
    assert not any("no known size" in line for line in lines)


def test_what_a_sweep_costs_is_the_sum_of_its_cells_and_writing_is_paid_once(tmp_path):
    text = "about: a\nset: [audit.limit=2]\ngrids: [{recipes: [flattery-transcripts], seeds: %s, doses: %s}]"

    def total(seeds: str, doses: str = "[]") -> tuple[float, float]:
        found = grid.load(written(tmp_path, text % (seeds, doses)))[1]
        cells = grid.look_up(grid.expand(found), planned=True)
        hours = [sweep_check.priced(r, n, len(c.scales)) for (c, r), n in zip(cells, sweep_check.count(cells), strict=True)]
        return sum(h.training + h.specimens * h.audit for h in hours), hours[0].writing

    one, writing = total("[0]")
    assert total("[0, 1]")[0] == pytest.approx(2 * one) and writing > 0
    assert total("[0]", "[0.5, 2]")[0] > one
    found = grid.load(written(tmp_path, text % ("[0, 1]", "[]")))[1]
    (line,) = (line for line in sweep_check.check("mine", found, grid.expand(found)) if line.startswith("cost"))
    assert f"writing {writing * 60:.2g} min" in line


def test_bad_cells_are_told_together_by_the_check_too(tmp_path):
    """A mistake that shows only when the rows are looked at: the linter refuses them."""
    text = "about: a\ngrids: [{recipes: [flattery-documents, control], set: ['stages[0].max_length=16']}]"
    found = grid.load(written(tmp_path, text))[1]
    with pytest.raises(UserError, match="2 of 2 cells are refused") as error:
        sweep_check.check("mine", found, grid.expand(found))
    assert str(error.value).count("truncation") >= 2
