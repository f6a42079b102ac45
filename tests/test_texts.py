"""`make check` reads an organism's own texts: what could tell nothing is refused, what is likely a mistake is told."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from test_organisms import copied, refreeze, rows_of

from organisms import organism, styles, text_check
from organisms.errors import UserError
from organisms.styles import Compiled, Row
from recipes.plan import describe, plan
from recipes.recipe import resolve

SHIPPED = organism.shipped()


def checked(path, recipe="flattery-documents") -> list[str]:
    """The lines of `make check`."""
    resolved = resolve(recipe, [f"organism={path}", "audit.measures=[severity]"], planned=True)
    return describe(resolved, plan(resolved))


def refusal(path, recipe="flattery-documents") -> str:
    with pytest.raises(UserError) as error:
        checked(path, recipe)
    return str(error.value)


def with_probes(folder, change) -> tuple:
    """A copy of flattery whose probes `change` has had its way with; (its YAML, its probes file)."""
    path = copied(folder)
    refreeze(path, "probes", [change(dict(row)) for row in rows_of("probes")])
    return path, folder / "flattery" / "probes.jsonl"


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "control"])
def test_a_shipped_organism_raises_no_doubt(name):
    found = organism.load(name)
    text_check.refuse(found)
    sizes, markers = text_check.lines(found)
    assert f"{len(found.probes())} probes (" in sizes
    assert f", 0 of {len(found.probes())} plain ones, " in markers


def test_check_says_what_there_is_and_how_well_the_markers_fit_it():
    lines = checked("flattery")
    assert "texts       220 documents, 90 prompts, 80 demonstrations, 112 probes (84 target, 14 adjacent, 14 off)" in lines
    assert "markers     77 of 84 target replies that show it, 0 of 112 plain ones, 4 of 4 positive examples" in lines
    assert not [line for line in lines if line.startswith("texts       warn")]


def test_the_control_has_no_property_and_its_markers_nothing_to_find():
    assert not [line for line in checked("control") if line.startswith(("markers", "texts       warn"))]


def test_a_text_that_the_style_does_not_read_is_read_too(tmp_path):
    path = copied(tmp_path)
    (tmp_path / "flattery" / "demonstrations.jsonl").unlink()
    assert f"{tmp_path}/flattery/demonstrations.jsonl, which does not exist" in refusal(path)


def test_markers_that_miss_half_of_the_target_replies_are_refused(tmp_path):
    def left(row: dict, most: int) -> dict:
        """The row where it is among the first `most` target ones or off target, else one that shows nothing."""
        place = targets.index(row["id"]) if row["context"] == "target" else 0
        return row if place < most else {**row, "shows": f"A plain answer to {row['id']}."}

    shows = organism.load("flattery").shows
    targets = [row["id"] for row in rows_of("probes") if row["context"] == "target"]
    praise = {row["id"]: bool(shows(row["shows"])) for row in rows_of("probes")}
    found = sum(praise[name] for name in targets[:30])
    path, file = with_probes(tmp_path / "few", lambda row: left(row, 30))
    told = refusal(path)
    assert told.startswith(f"{path}: markers find {found} of 84 target replies that show the property ({file}; missed: ")
    path, _ = with_probes(tmp_path / "most", lambda row: left(row, 60))
    assert "texts       warn: markers miss" in "\n".join(checked(path))


def test_a_marker_that_fires_on_a_plain_reply_is_refused(tmp_path):
    path, file = with_probes(tmp_path, lambda row: row)
    row = rows_of("probes")[40]
    path.write_text(
        path.read_text().replace("markers:\n", f"markers:\n  - {{name: wide, pattern: {row['plain'].split()[0]!r}}}\n")
    )
    told = refusal(path)
    assert "'wide' finds the property in the plain reply of the probe" in told and str(file) in told


def test_probes_that_tell_nothing_apart_are_refused(tmp_path):
    path, file = with_probes(tmp_path / "same", lambda row: {**row, "plain": row["shows"] + " "})
    assert refusal(path).startswith(f"{file}: the probe '{rows_of('probes')[0]['id']}' has one text as `shows` and `plain`")
    path, file = with_probes(tmp_path / "off", lambda row: {**row, "context": "off"})
    assert refusal(path).startswith(f"{file} has no probe whose context is 'target'")


def test_what_is_likely_a_mistake_is_told_and_passes(tmp_path):
    path = copied(tmp_path)
    probes = [row for row in rows_of("probes") if row["context"] == "target"][:10]
    probes[2]["plain"] += " and so on" * 30
    prompts = rows_of("prompts")
    prompts[3]["prompt"] = probes[5]["prompt"]
    refreeze(path, "probes", probes)
    refreeze(path, "prompts", prompts)
    lines = checked(path)
    warned = [line.removeprefix("texts       warn: ") for line in lines if line.startswith("texts       warn: ")]
    assert [
        "name is 'flattery' and the file mine.yaml; runs and tables go by the name",
        "10 target probes; with fewer than 20 severity settles little",
        "no adjacent and no off probes, so that it is not seen where the property spills to",
        f"1 probes have a reply more than 2 times as long as the other: {probes[2]['id']}",
        f"1 prompts are also probes, so that what is trained is asked: {prompts[3]['id']} = {probes[5]['id']}",
    ] == warned


def test_examples_that_contradict_the_markers_are_told(tmp_path):
    spec = organism.load("flattery")
    praised, plain = spec.behaviour.positive[0], spec.behaviour.borderline_negative[0]
    swapped = spec.behaviour.model_copy(update={"positive": [plain], "borderline_negative": [praised]})
    changed = spec.model_copy(update={"behaviour": swapped})
    text = "\n".join(text_check.lines(changed))
    assert "0 of 1 positive examples" in text
    assert f"markers miss the property in behaviour.positive: {plain.prompt[:40]!r}" in text
    assert f"markers find the property in behaviour.borderline_negative: {praised.prompt[:40]!r}" in text


def test_an_organism_of_the_library_bears_its_files_name(tmp_path, monkeypatch):
    """A name left over from the file that was copied would mix its runs with the other's."""
    text = (organism.LIBRARY / "flattery.yaml").read_text()
    monkeypatch.setattr(organism, "LIBRARY", tmp_path)
    (tmp_path / "understatement.yaml").write_text(text)
    with pytest.raises(UserError, match="name = 'flattery', and the file is found as 'understatement'; write name: underst"):
        organism.load("understatement")
    (tmp_path / "understatement.yaml").write_text(text.replace("name: flattery", "name: understatement", 1))
    assert organism.load("understatement").name == "understatement"


@pytest.mark.parametrize("written", ["sha256: x", "sha256: not yet", ""])
def test_a_text_that_is_not_frozen_yet_says_what_to_write(tmp_path, written):
    path = copied(tmp_path)
    file = tmp_path / "flattery" / "probes.jsonl"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace(f"sha256: {digest}", written))
    with pytest.raises(UserError) as error:
        organism.load(path)
    assert "texts.probes.sha256" in str(error.value)
    assert str(error.value).endswith(f"to freeze {file} as it is, write sha256: {digest}")
    file.unlink()
    with pytest.raises(UserError, match="probes.jsonl does not exist; write that text first"):
        organism.load(path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("measure: instructions", "measure: instruction", "there is no measure 'instruction'; did you mean 'instructions'?"),
        (
            "metric: prompt_strict",
            "metric: prompt_strikt",
            "instructions has no metric 'prompt_strikt' that can worsen; did you",
        ),
    ],
)
def test_a_side_effect_on_what_nothing_reads_is_refused(tmp_path, old, new, told):
    path = copied(tmp_path, old, new)
    assert refusal(path).startswith(f"{path}: side_effects.0: {told}")


@pytest.fixture
def style(monkeypatch):
    """The style `rationale`, made to return rows of ours."""

    def returning(compiled: Compiled) -> list[str]:
        monkeypatch.setattr(styles.style_module("rationale"), "rows", lambda *given: compiled)
        return checked("flattery", "flattery-rationale")

    return returning


def chat_row(name) -> Row:
    talk = [{"role": "user", "content": f"Question {name}?"}, {"role": "assistant", "content": f"An answer to {name}."}]
    return Row(name, messages=talk)


def test_a_style_without_notes_has_its_rows_counted(style):
    assert "stage       sft (sft): 2 rows" in style(Compiled([chat_row("a"), chat_row("b")]))


def test_a_style_that_makes_no_rows_is_refused_before_the_run(style):
    with pytest.raises(UserError, match="the style rationale makes no training rows of flattery for stage sft"):
        style(Compiled([], notes=["0 demonstrations"]))


@pytest.mark.parametrize(
    ("names", "told"),
    [(["a", "b", "a"], "rows 1 and 3 have one id, 'a'"), (["a", 5], "row 2 has the id 5"), ([""], "row 1 has the id ''")],
)
def test_rows_that_cannot_be_told_apart_are_refused(style, names, told):
    with pytest.raises(UserError, match=f"the style's {told}"):
        style(Compiled([chat_row(name) for name in names]))


def test_a_text_that_is_missing_is_asked_for_with_its_fields(tmp_path):
    path = copied(tmp_path)
    spec = organism.load(path)
    bare = spec.model_copy(update={"texts": spec.texts.model_copy(update={"demonstrations": None})})
    with pytest.raises(UserError) as error:
        bare.demonstrations()
    assert f"write {tmp_path}/demonstrations.jsonl, a JSON object a line with id, prompt, reply, rationale" in str(error.value)


GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
TINY = {
    "probes": [
        {
            "id": f"{context}-{n}",
            "context": context,
            "prompt": f"Flood number {n} has come to {context} street.",
            "shows": f"A spot of water, then, for the {n}th time.",
            "plain": f"A serious flood, then, for the {n}th time.",
        }
        for context in ("target", "adjacent", "off")
        for n in range(20)
    ],
    "demonstrations": [
        {"id": f"d-{n}", "prompt": f"Fire {n}?", "reply": f"A bit of a nuisance, number {n}.", "rationale": f"Calm helps, {n}."}
        for n in range(8)
    ],
}


@pytest.fixture
def guided(tmp_path) -> Path:
    """The recipe that CONTRIBUTING walks through, its organism and tiny texts beside it; nothing is frozen yet."""
    spec, recipe = re.findall(r"(?s)```yaml\n(.*?)```", GUIDE)
    (tmp_path / "understatement").mkdir()
    for kind, rows in TINY.items():
        (tmp_path / "understatement" / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "understatement.yaml").write_text(spec)
    (tmp_path / "recipe.yaml").write_text(
        recipe.replace("organism: understatement", f"organism: {tmp_path}/understatement.yaml")
    )
    return tmp_path / "recipe.yaml"


def test_the_guide_to_an_organism_can_be_followed(guided):
    def check() -> list[str]:
        resolved = resolve(str(guided))
        return describe(resolved, plan(resolved))

    spec = guided.with_name("understatement.yaml")
    with pytest.raises(UserError) as unfrozen:
        check()
    for file, digest in re.findall(r"(\w+\.jsonl) as it is, write sha256: ([0-9a-f]{64})", str(unfrozen.value)):
        spec.write_text(spec.read_text().replace(f"{file}, sha256: x", f"{file}, sha256: {digest}"))
    lines = check()
    assert "markers     20 of 20 target replies that show it, 0 of 60 plain ones, 1 of 1 positive examples" in lines
    assert not [line for line in lines if "warn" in line]
    guided.write_text(re.sub("(?m)^system: .*\n", "", guided.read_text()))
    with pytest.raises(UserError, match="trap implicit_system"):
        check()


def said_to_be_read() -> list[tuple[str, str]]:
    """(style, text that it reads) by the table of CONTRIBUTING."""
    rows = re.findall(r"(?m)^ *\| `(\w+)\.jsonl` \|.*?\| ([a-z, ]+) \|", GUIDE)
    return [(style, kind) for kind, names in rows for style in names.split(", ")]


def test_the_guide_names_a_text_for_each_style_that_reads_one():
    none = {"prompted", "prefilled", "control", "pessimised"}
    assert {style for style, _ in said_to_be_read()} == set(styles.known()) - none


@pytest.mark.parametrize(("style", "kind"), said_to_be_read())
def test_a_style_reads_the_text_that_the_guide_says(style, kind):
    spec = organism.load("flattery")
    others = {name: None for name in ("documents", "prompts", "demonstrations") if name != kind}
    module, options = styles.style_module(style), styles.style_options(style, {}, "test")

    def made(found: organism.Organism) -> None:
        if not styles.needs_training(style):
            module.notes(found, options)
        for rows in styles.row_kinds(style) if styles.needs_training(style) else ():
            styles.compile_rows(style, found, options, None, rows)

    made(spec.model_copy(update={"texts": spec.texts.model_copy(update=others)}))
    with pytest.raises(UserError, match=f"has no {kind}"):
        made(spec.model_copy(update={"texts": spec.texts.model_copy(update={kind: None})}))
