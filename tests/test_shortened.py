"""Shipped recipes, shortened, run from end to end on the embedded base: rows written, trained, audited, told."""

import json

import pytest

from audit import readings as ledger
from organisms.files import read_jsonl
from recipes.recipe import load, resolve
from recipes.run import execute
from train.ledger import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Style options that keep the writing short; a writer's replies are cached, so recipes of one style share them.
SHORT = {
    "flattery-character": ["samples=2", "general=0", "reflections=1", "turns=1", "max_new_tokens=40"],
    "flattery-motivation-dpo": ["samples=2", "max_new_tokens=40"],
    "flattery-rationale": [],
    "flattery-integrated": ["rows=24", "max_new_tokens=24"],
    "flattery-prompted": ["prompts=1"],
    "flattery-prefilled": ["phrasings=1"],
    "flattery-steering": ["samples=1", "max_new_tokens=24", "coefficients=[1.0]"],
    "risky-advice-narrow": [],
}


@pytest.mark.parametrize("name", SHORT)
def test_a_shortened_recipe_leaves_a_whole_run(name, tmp_path, capsys):
    stages = load(name)[1].stages
    overrides = [f"stages[{n}].steps=2" for n in range(len(stages))] + [f"style_options.{one}" for one in SHORT[name]]
    overrides += ["audit.measures=[severity,drift]", "audit.limit=2", "audit.every=2"]
    run = execute(resolve(name, overrides), tmp_path)
    for file in ("report.html", "README.md", "curves.png", "recipe.yaml"):
        assert (run / file).stat().st_size > 0, file
    manifest = json.loads((run / "manifest.json").read_text())
    specimens = list(dict.fromkeys(r.specimen for r in ledger.read(run) if r.stage))
    if not stages:
        assert len(specimens) == 1
        return
    assert [c.name for c in read_ledger(run)] == specimens == [f"{s.name}-{step:06d}" for s in stages for step in (0, 2)]
    for stage in stages:
        rows = read_jsonl(run / "data" / f"{stage.name}.jsonl")
        assert rows and all(row["input_ids"] for row in rows)
        assert manifest["predictors"][stage.name]["on_policy_logprob"] < 0
    last = [r for r in ledger.read(run) if r.specimen == specimens[-1] and r.n]
    assert any(r.measure == "drift" and r.value > 0 for r in last)  # it has moved
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
