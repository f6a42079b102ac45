"""A sweep expands into cells, refuses bad ones together, runs each once, and goes on where it or a cell was cut off."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from audit import readings as ledger
from organisms.errors import UserError
from organisms.files import read_jsonl
from recipes import cell, grid, sweep, sweep_results
from recipes.store import Copy, Store

ROOT = grid.FOLDER.parent.parent
QUICK = ["audit.measures=[webtext,severity]", "audit.limit=6"]


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
    text = "about: a\ngrids: [{recipes: [%s], doses: [0.5]}, {recipes: [flattery-documents], seeds: [0], doses: [2], set: [%s]}]"
    (one,) = cells_of(tmp_path, text % ("flattery-documents", ""))
    assert one.scales == (0.5, 2.0)
    with pytest.raises(UserError, match="same run with another audit plan"):
        cells_of(tmp_path, text % ("flattery-documents", "audit.limit=3"))


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
def tiny(tiny_recipe, tmp_path):
    """A sweep of two cells on the tiny model; a child can be told to die at a checkpoint (see `deadly`)."""
    return written(tmp_path, f"about: tiny\nseeds: [0, 1]\ndoses: [0.5]\nset: {json.dumps(QUICK)}\ngrids: [{{recipes: [{tiny_recipe}]}}]")


def run(path: str, root, address="none") -> tuple[list, list]:
    name, found = grid.load(path)
    cells = [one for one, _ in grid.look_up(grid.expand(found))]
    return cells, sweep.run(name, found, cells, str(root), address)


def values(directory: Path) -> dict:
    return {r.key: (r.value, r.delta, r.verdict, r.n) for r in ledger.read(directory)}


def test_a_sweep_runs_each_cell_once_and_says_how_to_compare(tiny, tmp_path, capsys):
    cells, failed = run(tiny, tmp_path / "runs")
    assert not failed
    first, second = (tmp_path / "runs" / one.run for one in cells)
    assert {r.specimen for r in ledger.read(first)} >= {"base", "sft-000004", "sft-000004@0.5"}
    assert values(first) != values(second)
    printed = capsys.readouterr().out
    assert "in child processes of this one" in printed and f"[2/2] {cells[1].run} done" in printed
    name, found = grid.load(tiny)
    lines = sweep_results.write(name, found, cells, str(tmp_path / "runs"))
    assert f'make compare runs="{first} {second}"' in lines[1]
    table = (tmp_path / "runs" / "sweep-mine" / "results.md").read_text()
    assert table.count("sft-000004@0.5") == 2 and table.count("| sft-000004 |") == 2
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
    assert run(tiny, tmp_path / "runs")[1] == []
    assert "2 of them there already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in first.rglob("*") if path.is_file()}
