"""Slips on the command line end in a sentence with the command that was meant; several mistakes are all named."""

import re
import subprocess
import sys

import pytest
from test_recipes import ROOT, refusal, written

from audit.config import AuditPlan
from audit.existing import Subject
from audit.sweep import check, describe
from audit.sweep import load as load_sweep
from organisms import models, organism
from organisms.errors import UserError
from organisms.strict import Strict, validate
from recipes import grid
from recipes.plan import describe as plan_lines
from recipes.plan import plan
from recipes.recipe import resolve, shipped


def told(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_without_a_name_the_recipes_are_listed():
    said = told("recipes")
    assert "name a recipe; `python -m recipes NAME --check`" in said and all(name in said for name in shipped())


def test_the_plan_of_an_audit_is_written_without_audit():
    said = told("audit", "run", "--base", models.EMBEDDED, "audit.limit=3")
    assert "leave `audit.` out: limit=3" in said
    with pytest.raises(UserError, match="leave `audit.` out: suite=quick"):
        load_sweep("organisms", ["audit.suite=quick"])
    with pytest.raises(UserError, match="did you mean margins.knowledge.accuracy=0.2?"):
        validate(AuditPlan, {"margins": {"knowledge": 0.2}}, "the audit plan")


def test_true_and_false_are_no_numbers_wherever_a_number_stands():
    class Held(Strict):
        steps: int | None = None
        shares: dict[str, list[float]] = {}
        packing: bool = False
        layer: float | bool = 1.0

    held = validate(Held, {"steps": 2, "shares": {"a": [1, 0.5]}, "packing": True, "layer": True}, "x")
    assert (held.steps, held.packing, held.layer) == (2, True, True)
    for wrong in ({"steps": False}, {"shares": {"a": [True]}}):
        with pytest.raises(UserError, match="true and false are no numbers; write a number"):
            validate(Held, wrong, "x")


def test_several_mistakes_name_the_file_once_and_every_key(tmp_path):
    text = "organism: flattery\nstyle: documents\nstages: [{learning_rate: 1e-5, steps: 30}]\n"
    path = written(tmp_path, text + "".join(f"wrong{n}: 1\n" for n in range(7)))
    said = refusal(path)
    assert said.count(path) == 1 and all(f"wrong{n}" in said for n in range(7))
    assert "line 4: unknown key 'wrong0'" in said and "and also wrong: wrong4, wrong5, wrong6" in said
    assert f"{path} line 4: unknown key 'wrong0'" in refusal(written(tmp_path, text + "wrong0: 1\n"))


def test_an_audit_plan_says_what_is_not_read_and_why():
    lines = describe(list(check([Subject(models.EMBEDDED)], AuditPlan(measures=["severity"]))))
    assert "unread   severity: no organism named, so there are no probes" in lines
    assert not [line for line in lines if line.strip() == "asked"]
    lines = describe(list(check([Subject(models.EMBEDDED)], AuditPlan(measures=["severity", "webtext"], limit=2))))
    assert "asked    webtext 2" in lines and "unread   severity: no organism named, so there are no probes" in lines


def test_an_organism_given_by_path_is_planned_by_its_name(tmp_path):
    named = (organism.LIBRARY / "flattery.yaml").read_text().replace("name: flattery", "name: mine", 1)
    assert "name: mine" in named
    (tmp_path / "mine.yaml").write_text(re.sub(r"path: (flattery/\S+)", rf"path: {organism.LIBRARY.parent}/texts/\1", named))
    resolved = resolve("flattery-documents", [f"organism={tmp_path / 'mine.yaml'}"])
    (line,) = [line for line in plan_lines(resolved, plan(resolved)) if line.startswith("recipe ")]
    assert "flattery-documents: mine by documents" in line and str(tmp_path) not in line


def test_a_sweep_takes_an_override_of_a_stage():
    _, sweep = grid.load("styles", ["stages[0].learning_rate=1e-4"])
    assert sweep.set[-1] == "stages[0].learning_rate=1e-4"
    with pytest.raises(UserError, match="is not key=value"):
        grid.load("styles", ["stages"])


def test_phony_holds_every_target_of_the_makefile():
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.M)
    assert phony.split() == re.findall(r"^([a-z][a-z-]*):", text, re.M)
