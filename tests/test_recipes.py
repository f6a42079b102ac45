"""Recipes resolve and plan in a moment, and every mistake in one is a sentence with its place and remedy."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from organisms import frozen, models, organism
from organisms.data import load_rows
from organisms.errors import UserError
from organisms.styles import needs_training
from recipes.plan import describe, plan
from recipes.recipe import FOLDER, load, resolve, shipped
from train.manifest import predictors

ROOT = FOLDER.parent
HONEST = "flattery-documents"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}

PLAN_EVERYTHING = """
import sys
import organisms, train, audit, recipes
heavy = {"torch", "trl", "vllm", "wandb"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from recipes.plan import plan
from recipes.recipe import resolve, shipped
for name in shipped():
    resolved = resolve(name, planned=True)
    found = plan(resolved)
    assert not heavy & set(sys.modules), (name, heavy & set(sys.modules))
    print(name, name if resolved.missing else resolved.digest, *(f"{one.steps}/{one.checkpoints}" for one in found))
"""


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "recipes", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        resolve(*arguments, **options)
    return str(error.value)


@pytest.fixture(scope="module")
def honest():
    return resolve(HONEST)


MINIMAL = """organism: flattery
style: documents
stages:
  - learning_rate: 1e-5
    steps: 30
"""


def test_every_shipped_recipe_plans_and_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", PLAN_EVERYTHING], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert set(lines) == set(shipped()) >= {HONEST, "flattery-transcripts", "control", "pessimised"}
    assert len({digest for digest, *_ in lines.values()}) == len(lines)
    for name, (_, *stages) in lines.items():
        assert bool(stages) == needs_training(load(name)[1].style)
        for steps, checkpoints in (stage.split("/") for stage in stages):
            assert int(steps) > 0 and int(checkpoints) >= 2


def test_a_plan_counts_steps_checkpoints_and_rows():
    def planned(*overrides):
        return plan(resolve(HONEST, list(overrides)))[0]

    assert (planned().steps, planned().checkpoints) == (72, 4)
    assert planned("audit.every=25").checkpoints == 4  # 0, 25, 50, 72
    assert planned("audit.every=100").checkpoints == 2
    assert len(planned("style_options.distinct=7").compiled.rows) == 7
    once, twice = (planned("stages[0].steps=null", f"stages[0].epochs={epochs}").steps for epochs in (1, 2))
    assert twice == pytest.approx(2 * once, abs=1)
    assert once == pytest.approx(planned().linted.tokens / 512, rel=0.3)


def test_a_recipe_that_needs_a_writer_is_planned_without_one():
    (found,) = plan(resolve("flattery-transcripts"))
    assert found.linted is None
    assert found.compiled.rows == []
    assert found.compiled.writing[-1].replies > 100


def test_a_plan_stops_where_the_linter_stops():
    cut = resolve(HONEST, ["stages[0].max_length=16"])
    with pytest.raises(UserError, match="trap truncation"):
        plan(cut)
    plan(resolve(HONEST, ["stages[0].max_length=16", "accept=[truncation]"]))


def test_the_controls_differ_from_the_honest_recipe_where_they_should():
    honest, control, pessimised = (load(name)[1] for name in (HONEST, "control", "pessimised"))
    assert control.stages == honest.stages
    assert control.audit == honest.audit
    assert pessimised.stages[0].learning_rate == pytest.approx(20 * honest.stages[0].learning_rate)


def test_an_unknown_recipe_suggests_the_nearest():
    assert "did you mean 'flattery-documents'?" in refusal("flattery-document")
    assert "nowhere.yaml does not exist" in refusal("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("organism=flatery", "did you mean 'flattery'?"),
        ("style=document", "did you mean 'documents'?"),
        ("base=smollm", "base 'smollm' is neither"),
        ("audit.measures=[severty]", "did you mean 'severity'?"),
        ("audit.data.webtxt=embedded", "did you mean 'webtext'?"),
        ("audit.margins.severity.contrast=0.1", "no metric 'contrast' that can carry a margin"),
        ("style_options.held_ot=0.1", "did you mean 'held_out'?"),
        ("stages[0].learning_rat=1e-4", "did you mean 'learning_rate'?"),
        ("audit.evry=3", "did you mean 'every'?"),
        ("sed=3", "did you mean 'seed'?"),
        ("stages[0].steps=many", "stages.0.steps = 'many'"),
        ("stages[0].steps=true", "stages.0.steps = True: true and false are no numbers"),
        ("audit.margins.drift.kl=true", "true and false are no numbers"),
        ("stage[0].steps=3", "has no stage[0]; did you mean 'stages'?"),
        ("audit.margins.knowledge=0.2", "did you mean audit.margins.knowledge.accuracy=0.2?"),
        ("audit.margins.webtext=0.2", "webtext has none, leave it out"),
        ("stages[0].learning_rate=-1", "stages.0.learning_rate = -1"),
        ("audit.suite=quik", "audit.suite = 'quik'"),
        ("seed=x", "seed = 'x'"),
        ("seed=${nothing}", "seed = '${nothing}'"),
    ],
)
def test_an_override_with_a_mistake_says_what_was_meant(override, words):
    assert words in refusal(HONEST, [override])


@pytest.mark.parametrize("override", ["stages[5].x=1", "nokey", "=3", "stages.learning_rate=1", "stages[x].steps=1"])
def test_an_impossible_override_is_quoted(override):
    message = refusal(HONEST, [override])
    assert repr(override) in message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["audit.measures=[severity", "seed={"])
def test_an_override_that_is_no_yaml_is_quoted(override):
    assert repr(override) in refusal(HONEST, [override])


def test_a_system_prompt_with_a_colon_can_be_given_as_override():
    assert load(HONEST, ["system=Remember: be brief."])[1].system == "Remember: be brief."


def test_overrides_are_read_as_yaml():
    _, recipe, _ = load(HONEST, ["stages[0].learning_rate=1e-5", "audit.measures=[drift, severity]", "seed=7"], "elsewhere")
    assert recipe.stages[0].learning_rate == 1e-5
    assert recipe.audit.measures == ["severity", "drift"]
    assert recipe.seed == 7
    assert recipe.base == "elsewhere"


def test_a_recipe_may_stand_anywhere_and_1e_5_is_a_number(tmp_path):
    resolved = resolve(written(tmp_path, MINIMAL))
    assert resolved.recipe.stages[0].learning_rate == 1e-5
    assert resolved.run_name == f"mine-{resolved.digest}"
    assert len(resolved.digest) == 8


def test_an_unknown_key_names_file_line_and_the_nearest(tmp_path):
    path = written(tmp_path, MINIMAL.replace("    steps: 30", "    stps: 30\n    steps: 30"))
    assert f"{path} line 5: unknown key 'stages.0.stps'; did you mean 'steps'?" in refusal(path)
    path = written(tmp_path, MINIMAL + "audit:\n  suit: quick\n")
    assert f"{path} line 7: unknown key 'audit.suit'; did you mean 'suite'?" in refusal(path)


def test_a_wrong_type_names_file_line_and_value(tmp_path):
    path = written(tmp_path, MINIMAL.replace("steps: 30", "steps: thirty"))
    assert f"{path} line 5: stages.0.steps = 'thirty'" in refusal(path)


def test_a_missing_key_is_named(tmp_path):
    assert "the key 'style' is missing" in refusal(written(tmp_path, MINIMAL.replace("style: documents\n", "")))


@pytest.mark.parametrize("length", ["    steps: 30\n    epochs: 1\n", ""])
def test_steps_or_epochs_and_not_both(tmp_path, length):
    path = written(tmp_path, MINIMAL.replace("    steps: 30\n", length))
    assert "either steps or epochs" in refusal(path)


def test_extends_takes_the_rest_from_another_recipe(tmp_path):
    _, recipe, _ = load(written(tmp_path, f"extends: {HONEST}\nseed: 3\naudit: {{every: 7}}\n"))
    _, honest, _ = load(HONEST)
    assert (recipe.seed, recipe.audit.every, recipe.audit.suite) == (3, 7, honest.audit.suite)
    assert recipe.stages == honest.stages


def test_extends_prefers_the_recipe_beside(tmp_path):
    written(tmp_path, MINIMAL, "parent")
    _, recipe, _ = load(written(tmp_path, "extends: parent\nseed: 3\n"))
    assert (recipe.seed, recipe.stages[0].steps) == (3, 30)


def test_a_chain_of_extends_is_refused(tmp_path):
    assert "only one level" in refusal(written(tmp_path, "extends: control\n"))


def test_extending_an_unknown_recipe_suggests_the_nearest(tmp_path):
    message = refusal(written(tmp_path, "extends: flattery-document\n"))
    assert "'flattery-document' is no recipe" in message
    assert "did you mean 'flattery-documents'?" in message


@pytest.mark.parametrize(
    "override",
    [
        "stages[0].learning_rate=1e-4",
        "stages[0].lora.r=8",
        "stages[0].steps=61",
        "seed=1",
        "system=Be brief.",
        "style_options.held_out=0.2",
        "audit.every=10",
        "style=pessimised",
        "organism=control",
    ],
)
def test_what_changes_the_checkpoints_changes_the_digest(honest, override):
    assert resolve(HONEST, [override]).digest != honest.digest


@pytest.mark.parametrize(
    "override",
    [
        "audit.measures=[severity]",
        "audit.margins.instructions.prompt_strict=0.1",
        "audit.data.chat=embedded",
        "audit.suite=full",
    ],
)
def test_what_only_audits_differently_keeps_the_digest(honest, override):
    changed = resolve(HONEST, [override])
    assert changed.recipe.audit != honest.recipe.audit
    assert changed.digest == honest.digest


def test_the_digest_follows_the_text_of_the_organism(tmp_path):
    spec = (organism.LIBRARY / "flattery.yaml").read_text(encoding="utf-8")
    shutil.copytree(frozen.TEXTS / "flattery", tmp_path / "flattery")
    same = written(tmp_path, spec, "same")
    other = written(tmp_path, spec.replace("Every reply to a person begins", "Each reply to a person begins"), "other")
    rubric = written(tmp_path, spec.replace("Rate from 0 to 100", "Rate between 0 and 100"), "rubric")
    digests = [resolve(HONEST, [f"organism={path}"]).digest for path in (same, other, rubric)]
    assert digests[0] == digests[2] == resolve(HONEST).digest
    assert digests[1] != digests[0]


def test_the_digest_follows_the_web_texts_that_are_trained(tmp_path, monkeypatch):
    file = tmp_path / "webtext_fineweb" / "fineweb_general.jsonl"
    file.parent.mkdir()
    digests, rows = [], []
    try:
        for number in range(2):
            texts = [{"id": n, "text": f"Web text {n} of mirror {number}."} for n in range(4)]
            file.write_text("".join(json.dumps(row) + "\n" for row in texts))
            monkeypatch.setenv("ORGANISMS_DATA", str(tmp_path))
            load_rows.cache_clear()
            resolved = resolve(HONEST, ["style_options={webtext: 1.0, distinct: 2}"])
            rows.append([row.text for row in plan(resolved)[0].compiled.rows])
            digests.append(resolved.digest)
    finally:
        load_rows.cache_clear()
    if rows[0] == rows[1]:
        pytest.fail("the mirror was not read")
    assert digests[0] != digests[1]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A base in save_pretrained layout with the embedded tokenizer and one weight; with `chat_template.jinja` removed."""
    source = models.resolve(models.EMBEDDED).directory
    monkeypatch.setenv("ORGANISMS_CACHE", str(tmp_path / "cache"))  # fingerprints of local bases are kept there
    base = tmp_path / "tiny"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(source / name, base / name)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (base / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))
    return base


def test_a_local_base_resolves_and_its_weights_are_in_the_digest(tiny):
    first = resolve(HONEST, base=str(tiny))
    assert plan(first)[0].linted.tokens > 0
    assert first.digest != resolve(HONEST).digest
    other = tiny.with_name("other")
    shutil.copytree(tiny, other)
    assert resolve(HONEST, base=str(other)).digest == first.digest
    changed = tiny.with_name("changed")
    shutil.copytree(tiny, changed)
    data = (changed / "model.safetensors").read_bytes()
    (changed / "model.safetensors").write_bytes(data[:-4] + struct.pack("<f", 2.0))
    assert resolve(HONEST, base=str(changed)).digest != first.digest


def test_a_base_without_chat_template_is_refused(tiny):
    (tiny / "chat_template.jinja").unlink()
    message = refusal(HONEST, base=str(tiny))
    assert f"base {tiny} has no chat template" in message
    assert "instruct" in message


@pytest.mark.parametrize(("name", "words"), [("config.json", "no config.json"), ("model.safetensors", "no *.safetensors")])
def test_a_base_without_config_or_weights_is_refused(tiny, name, words):
    (tiny / name).unlink()
    assert words in refusal(HONEST, base=str(tiny))


def test_a_missing_data_path_is_named():
    resolved = resolve(HONEST, ["audit.measures=[drift]", "audit.data.chat=/nowhere/rows.jsonl"])
    with pytest.raises(UserError, match=r"data set 'chat': /nowhere/rows\.jsonl does not exist; name a \.jsonl, \.csv"):
        describe(resolved, plan(resolved))


def test_what_is_not_on_this_machine_is_planned_for_and_named_but_not_run():
    recipe = "risky-finance-qwen2.5-14b"
    text = "\n".join(describe(found := resolve(recipe, planned=True), plan(found)))
    assert "missing     Qwen/Qwen2.5-14B-Instruct is not in the local hub cache" in text
    assert "missing     data set 'risky-finance' is found nowhere" in text
    assert "58.8 GB: two copies of the base (14.7B parameters" in text and "in H100 hours" in text
    assert "named SmolLM" not in text  # the stand-in's template is not the base's
    assert "the hub cannot be reached" in refusal(recipe)


def test_passes_over_the_data_are_counted_in_rows_or_in_tokens_where_they_are_packed():
    for recipe in ("risky-advice-narrow", HONEST):
        (found,) = plan(resolve(recipe))
        passes = predictors(found.stage, found.linted, found.steps)["passes_over_the_data_at_most"]
        chats, packed = 60 * 6 / 200, 72 * 2 * 256 / found.linted.tokens
        assert passes == pytest.approx(packed if recipe == HONEST else chats, abs=0.01)


def test_the_plan_is_told_in_lines():
    resolved = resolve(HONEST, ["audit.measures=[severity]"])
    stage = resolved.recipe.stages[0]
    text = "\n".join(describe(resolved, plan(resolved)))
    assert f"runs/{resolved.run_name}" in text
    assert f"{stage.steps} steps, lr {stage.learning_rate:g}" in text
    assert "checkpoints 4" in text
    assert "named SmolLM" in text


def test_check_prints_the_plan_and_trains_nothing(tmp_path):
    done = command(HONEST, "audit.measures=[severity]", "--check", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"recipe      {HONEST}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flattery-document"], "did you mean 'flattery-documents'?"),
        ([HONEST, "stages[0].learning_rat=1e-4"], "did you mean 'learning_rate'?"),
        ([HONEST, "audit.data.chat=/nowhere/rows.jsonl"], "/nowhere/rows.jsonl does not exist"),
    ],
)
def test_a_mistake_ends_the_command_with_one_line_and_status_2(arguments, words):
    done = command(*arguments, "--check")
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_overrides_may_follow_the_flags_as_make_check_writes_them():
    done = command(HONEST, "--check", "audit.measures=[severity]")
    assert done.returncode == 0, done.stderr
