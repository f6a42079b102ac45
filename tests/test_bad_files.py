"""Malformed recipes, organisms, overrides and data are refused in a sentence that names file, key and remedy."""

import hashlib
import json

import pytest
import yaml
from malformed import cases, content, refused, sentence

from organisms import organism
from organisms.data import load_rows
from organisms.errors import UserError
from organisms.frozen import TEXTS, _rows
from recipes import __main__ as command
from recipes.recipe import FOLDER, resolve

HONEST = "flattery-documents"
RECIPE = {
    "organism": "flattery",
    "style": "documents",
    "stages": [{"method": "sft", "steps": 4, "batch_size": 1}],
}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """No mirror, no hub, and no rows of a file of the same name that an earlier case has read."""
    monkeypatch.delenv("ORGANISMS_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_rows.cache_clear()
    _rows.cache_clear()


def merged(below: dict, above: dict) -> dict:
    inner = {k: merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **inner}


def recipe_bytes(case: dict) -> bytes:
    if case.get("bomb"):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        return "\n".join(lines).encode()
    if not {"recipe", "stage", "twice", "long"} & case.keys():
        return content(case)
    values = merged(RECIPE, case.get("recipe", {}))
    stages = values["stages"]
    if "stage" in case or case.get("long") == "stage":
        stages = [merged(stages[0], case.get("stage", {"name": "a" * 300}))]
    if case.get("twice"):
        stages = stages * 2
    values = {**values, "stages": stages, **({"organism": "a" * 300} if case.get("long") == "organism" else {})}
    return yaml.safe_dump(values).encode()


@pytest.mark.parametrize("case", cases("recipes"))
def test_a_malformed_recipe_is_refused(case, tmp_path, base):
    path = tmp_path / "mine.yaml"
    path.write_bytes(recipe_bytes(case))
    with pytest.raises(UserError) as told:
        command_plan(str(path))
    sentence(str(told.value), case["says"])
    assert not (tmp_path / "owned").exists()


def command_plan(*arguments: str) -> None:
    from recipes.plan import describe, plan

    resolved = resolve(arguments[0], list(arguments[1:]), planned=True)
    describe(resolved, plan(resolved))


def override_of(case: dict) -> list[str]:
    if case.get("long"):
        return ["seed=" + "x" * 1_000_000]
    return ["seed=" + "[" * case["deep"]] if "deep" in case else case["set"]


@pytest.mark.parametrize("case", cases("overrides"))
def test_a_malformed_override_is_refused_on_the_command_line(case, base, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, command.main, HONEST, *override_of(case), "--check")
    sentence(line, case["says"])


def changed(values: dict, case: dict) -> dict:
    for dotted, value in case.get("set", {}).items():
        *way, last = dotted.split(".")
        place = values
        for key in way:
            place = place[key]
        place[last] = value
    if "drop" in case:
        del values[case["drop"]]
    if case.get("long"):
        values[case["long"]] = "a" * 300
    return values


@pytest.mark.parametrize("case", cases("organisms"))
def test_a_malformed_organism_is_refused(case, tmp_path):
    values = yaml.safe_load((organism.LIBRARY / "control.yaml").read_text(encoding="utf-8"))
    for text in values["texts"].values():
        text["path"] = str(TEXTS / text["path"])
    if "rows" in case:
        file = tmp_path / "probes.jsonl"
        file.write_text(case["rows"] + "\n")
        frozen = "0" * 64 if "set" in case else hashlib.sha256(file.read_bytes()).hexdigest()
        values["texts"]["probes"] = {"path": str(file), "sha256": frozen}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed(values, {**case, "set": {} if "rows" in case else case.get("set", {})})))
    with pytest.raises(UserError) as told:
        found = organism.load(path)
        assert case.get("probes"), "the organism was taken as it is"
        found.probes()
    sentence(str(told.value), [*case["says"], str(tmp_path) if "is no path" not in str(told.value) else ""])


@pytest.mark.parametrize("case", cases("rows"))
def test_a_malformed_data_set_is_refused(case, tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "set" / case["file"]
    file.parent.mkdir(parents=True)
    file.write_bytes(content(case))
    with pytest.raises(UserError) as told:
        load_rows(case["set"], str(tmp_path / "set" if case.get("folder") else file))
    sentence(str(told.value), case["says"])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("file", "text", "arguments", "says"),
    [
        ("mine.yaml", "organism: flattery\nstyle: documents\nsteps: 3\n", [], ["mine.yaml line 3", "unknown key 'steps'"]),
        ("mine.yaml", "name: [x\n", [HONEST, "organism={file}"], ["mine.yaml", "not valid YAML"]),
        ("rows.jsonl", '{"id": 1, "prompt": 5}', [HONEST, "audit.data.chat={file}"], ["rows.jsonl", "row '1' has prompt = 5"]),
        ("bad\nname.yaml", "organism: flattery\nstyle: documents\n", [], ["name.yaml", "rename the file"]),
        ("\x1b[31mred.yaml", "organism: flattery\nstyle: documents\n", [], ["rename the file"]),
    ],
    ids=["recipe", "organism", "rows", "a name of two lines", "a name that colours the terminal"],
)
def test_a_malformed_file_ends_the_command_with_one_line(file, text, arguments, says, base, tmp_path, monkeypatch, capsys):
    path = tmp_path / file
    path.write_text(text)
    given = [argument.format(file=path) for argument in arguments] or [str(path)]
    line = refused_lines(monkeypatch, capsys, [*given, "--check"])
    sentence(line, says)
    assert "\x1b" not in line


def refused_lines(monkeypatch, capsys, arguments: list[str]) -> str:
    return refused(monkeypatch, capsys, command.main, *arguments)


def test_what_a_recipe_refers_to_in_the_environment_stays_text(tmp_path, monkeypatch):
    """OmegaConf would write a key into recipe.yaml, the manifest and W&B, or send it with a prompt."""
    monkeypatch.setenv("A_SECRET", "sk-a-secret-of-the-user")
    values = merged(RECIPE, {"system": "${oc.env:A_SECRET}"})
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    assert resolve(str(path), planned=True).recipe.system == "${oc.env:A_SECRET}"
    assert resolve(HONEST, ["system=${oc.env:A_SECRET}"], planned=True).recipe.system == "${oc.env:A_SECRET}"
    below = tmp_path / "above.yaml"
    below.write_text("extends: mine\nseed: 3\n")
    assert resolve(str(below), planned=True).recipe.system == "${oc.env:A_SECRET}"


def test_every_shipped_file_is_as_strict_readers_want_it():
    """The refusals above are not so wide that they take what is right."""
    for name in organism.shipped():
        assert organism.load(name).probes()
    assert len(list(FOLDER.glob("*.yaml"))) > 20
    assert json.loads(json.dumps(RECIPE)) == RECIPE
