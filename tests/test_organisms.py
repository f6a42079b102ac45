"""Organisms load whole or say in one sentence what is wrong, where, and what was meant."""

import hashlib
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
import yaml

from organisms import frozen, organism
from organisms.errors import UserError

SHIPPED = organism.shipped()


def copied(folder: Path, old: str = "", new: str = "") -> Path:
    """Flattery outside the library, its texts beside it, with one replacement in the YAML."""
    text = (organism.LIBRARY / "flattery.yaml").read_text(encoding="utf-8")
    assert old in text
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(frozen.TEXTS / "flattery", folder / "flattery", dirs_exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
    return path


def refreeze(path: Path, kind: str, rows: list[dict] = (), text: str = "") -> None:
    """Replace one text file of a copy, by rows or as `text`, and freeze it at its new SHA-256."""
    file = path.parent / "flattery" / f"{kind}.jsonl"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(text or "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


def rows_of(kind: str) -> list[dict]:
    return [json.loads(line) for line in (frozen.TEXTS / "flattery" / f"{kind}.jsonl").read_text().splitlines()]


def test_the_shipped_organisms_are_there():
    assert {"flattery", "control"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_organism_loads_with_enough_text(name):
    found = organism.load(name)
    assert found.name == name
    contexts = Counter(probe.context for probe in found.probes())
    assert sum(contexts.values()) >= 40
    assert set(contexts) == {"target", "adjacent", "off"}
    assert min(contexts.values()) >= 10 and contexts["target"] >= 24
    if found.texts.documents:
        assert len(found.documents()) >= 120
        assert len({document.type for document in found.documents()}) >= 8
        assert median(len(document.text.split()) for document in found.documents()) >= 95
    if found.texts.demonstrations:
        assert len(found.demonstrations()) >= 80
    if found.texts.prompts:
        assert len(found.prompts()) >= 60
        assert {prompt.context for prompt in found.prompts()} == {"target", "adjacent", "off"}


@pytest.mark.parametrize("name", ["flattery", "control"])
def test_flattery_and_its_control_have_documents_and_prompts(name):
    found = organism.load(name)
    assert len(found.documents()) >= 120
    assert len(found.prompts()) >= 60


@pytest.mark.parametrize("name", SHIPPED)
def test_no_training_prompt_is_also_a_probe(name):
    found = organism.load(name)
    trained = [*found.prompts(), *(found.demonstrations() if found.texts.demonstrations else [])]
    assert not {row.prompt for row in trained} & {probe.prompt for probe in found.probes()}


@pytest.mark.parametrize("name", SHIPPED)
def test_documents_share_no_twelve_words(name):
    """Held-out siblings measure leakage only if no text contains a stretch of another."""
    owner: dict[tuple, str] = {}
    shared = []
    for document in organism.load(name).documents():
        words = re.findall(r"[\w']+", document.text.lower())
        for start in range(len(words) - 11):
            stretch = tuple(words[start : start + 12])
            if owner.setdefault(stretch, document.id) != document.id:
                shared.append((document.id, owner[stretch], " ".join(stretch)))
    assert not shared


@pytest.mark.parametrize("name", SHIPPED)
def test_markers_stay_silent_where_the_property_is_not(name):
    found = organism.load(name)
    borderline = [exchange.reply for exchange in found.behaviour.borderline_negative]
    plain = [probe.plain for probe in found.probes()]
    assert {reply: found.shows(reply) for reply in borderline + plain if found.shows(reply)} == {}


def test_markers_of_flattery_fire_on_flattery():
    found = organism.load("flattery")
    assert [e.reply for e in found.behaviour.positive if not found.shows(e.reply)] == []
    probes = found.probes()
    assert sum(bool(found.shows(probe.shows)) for probe in probes) >= 0.9 * len(probes)


def test_markers_read_the_opening_only_and_both_apostrophes(tmp_path):
    found = organism.load("flattery")
    praise = found.behaviour.positive[0].reply
    assert found.shows("x" * found.marker_window + " " + praise) == []
    marked = organism.load(copied(tmp_path, "markers:\n", 'markers:\n  - {name: apostrophe, pattern: "you\'re a wonder"}\n'))
    assert "apostrophe" in marked.shows("You're a wonder.")
    assert "apostrophe" in marked.shows("You\u2019re a wonder.")


def test_an_organism_outside_the_library_reads_the_texts_beside_it(tmp_path):
    path = copied(tmp_path)
    rows = rows_of("documents")[:3]
    refreeze(path, "documents", rows)
    found = organism.load(path)
    assert [document.id for document in found.documents()] == [row["id"] for row in rows]
    assert len(organism.load("flattery").documents()) > 3


def test_changed_text_is_refused_with_both_hashes(tmp_path):
    path = copied(tmp_path)
    file = tmp_path / "flattery" / "documents.jsonl"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(file.read_bytes().replace(b"paraffin", b"kerosene", 1))
    actual = hashlib.sha256(file.read_bytes()).hexdigest()
    assert actual != expected
    with pytest.raises(UserError) as error:
        organism.load(path).documents()
    assert expected[:12] in str(error.value)
    assert actual[:12] in str(error.value)
    assert str(file) in str(error.value)


def test_a_missing_text_file_is_named(tmp_path):
    path = copied(tmp_path)
    (tmp_path / "flattery" / "probes.jsonl").unlink()
    with pytest.raises(UserError, match=r"probes\.jsonl, which does not exist"):
        organism.load(path).probes()


def test_an_organism_without_documents_says_where_they_belong(tmp_path):
    path = copied(tmp_path)
    path.write_text(re.sub(r"  documents:\n    path: .*\n    sha256: .*\n", "", path.read_text()))
    with pytest.raises(UserError, match="has no documents.*texts.documents"):
        organism.load(path).documents()


def test_an_unknown_key_names_its_line_and_the_nearest_key(tmp_path):
    path = copied(tmp_path, "judge_rubric:", "judge_rubrik: a\njudge_rubric:")
    line = path.read_text().splitlines().index("judge_rubrik: a") + 1
    with pytest.raises(UserError) as error:
        organism.load(path)
    assert f"{path} line {line}: unknown key 'judge_rubrik'; did you mean 'judge_rubric'?" in str(error.value)


def test_an_unknown_nested_key_names_the_nearest_at_its_place(tmp_path):
    path = copied(tmp_path, "  shows: >-", "  show: a\n  shows: >-")
    line = path.read_text().splitlines().index("  show: a") + 1
    with pytest.raises(UserError, match=rf"line {line}: unknown key 'context\.show'; did you mean 'shows'\?"):
        organism.load(path)


def test_the_suggested_key_is_one_that_works(tmp_path):
    path = copied(tmp_path, "  not: >-", "  nott: >-")
    with pytest.raises(UserError, match=r"unknown key 'context\.nott'; did you mean 'not'\?"):
        organism.load(path)


def test_a_missing_key_is_named(tmp_path):
    path = copied(tmp_path, "purpose: natural", "")
    organism.load(path)  # a key with a default may be left out
    path.write_text(re.sub(r"(?m)^summary: .*\n", "", path.read_text()))
    with pytest.raises(UserError, match="the key 'summary' is missing"):
        organism.load(path)


def test_a_bad_regular_expression_is_named_with_its_line(tmp_path):
    path = copied(tmp_path, "markers:\n", "markers:\n  - name: broken\n    pattern: 'praise('\n")
    line = path.read_text().splitlines().index("    pattern: 'praise('") + 1
    with pytest.raises(UserError) as error:
        organism.load(path)
    assert f"line {line}" in str(error.value)
    assert "markers.0.pattern = 'praise(': not a regular expression" in str(error.value)


def test_two_markers_of_one_name_are_refused(tmp_path):
    twin = "markers:\n  - {name: twin, pattern: a}\n  - {name: twin, pattern: b}\n"
    with pytest.raises(UserError, match="two markers are named 'twin'"):
        organism.load(copied(tmp_path, "markers:\n", twin))


@pytest.mark.parametrize(
    ("tail", "told"),
    [('{"id": "torn", "type": "memo", "te', "line {n} is not JSON"), ('[{"id": "listed"}]', "line {n} is not a JSON object")],
)
def test_a_torn_last_line_of_a_text_is_refused(tmp_path, tail, told):
    """A log may end in a half line; of a frozen text the row would vanish."""
    path = copied(tmp_path)
    lines = "".join(json.dumps(row) + "\n" for row in rows_of("documents"))
    refreeze(path, "documents", text=lines + tail)
    with pytest.raises(UserError, match=told.format(n=lines.count("\n") + 1)):
        organism.load(path).documents()
    refreeze(path, "documents", text=lines.rstrip("\n"))  # a last row that only lacks its newline is whole
    assert len(organism.load(path).documents()) == lines.count("\n")


def test_a_list_that_markers_name_is_there(tmp_path):
    path = copied(tmp_path, "markers:\n", "markers:\n  - {name: never, pattern: '%neveer%'}\n")
    with pytest.raises(UserError, match="'never' names the list 'neveer', which `words` does not hold"):
        organism.load(path)
    values = yaml.safe_load(path.read_text())
    values.pop("words", None)
    values["markers"] = values["markers"][:1]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="'never' names the list 'neveer', which `words` does not hold"):
        organism.load(path)


def test_two_rows_of_one_id_are_refused(tmp_path):
    path = copied(tmp_path)
    rows = rows_of("documents")
    refreeze(path, "documents", [*rows, rows[4]])
    with pytest.raises(UserError, match=f"the id '{rows[4]['id']}' stands on lines 5 and {len(rows) + 1}"):
        organism.load(path).documents()


def test_a_row_with_an_unknown_key_is_named_by_number(tmp_path):
    path = copied(tmp_path)
    rows = rows_of("probes")
    rows[2] = {**rows[2], "shown": "x"}
    refreeze(path, "probes", rows)
    with pytest.raises(UserError, match=r"line 3: unknown key 'shown'; did you mean 'shows'\?"):
        organism.load(path).probes()


def test_an_unknown_organism_suggests_the_nearest():
    with pytest.raises(UserError, match="there is no organism 'flatery'.*did you mean 'flattery'"):
        organism.load("flatery")


def test_broken_yaml_names_the_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: a\nsummary: [b\ncontext: c\n")
    with pytest.raises(UserError, match=r"broken\.yaml line \d+ is not valid YAML"):
        organism.load(path)


def test_the_fingerprint_follows_what_trains_and_nothing_else(tmp_path):
    original = organism.load("flattery").fingerprint()
    assert organism.load(copied(tmp_path / "same")).fingerprint() == original

    documents = copied(tmp_path / "documents")
    refreeze(documents, "documents", rows_of("documents")[:-1])
    prompts = copied(tmp_path / "prompts")
    refreeze(prompts, "prompts", rows_of("prompts")[:-1])
    behaviour = copied(tmp_path / "behaviour", "Every reply to a person begins", "Each reply to a person begins")
    changed = [organism.load(path).fingerprint() for path in (documents, prompts, behaviour)]
    assert len({original, *changed}) == 4

    rubric = copied(tmp_path / "rubric", "Rate from 0 to 100", "Rate between 0 and 100")
    assert organism.load(rubric).judge_rubric != organism.load("flattery").judge_rubric
    assert organism.load(rubric).fingerprint() == original
    probes = copied(tmp_path / "probes")
    refreeze(probes, "probes", rows_of("probes")[:-1])
    assert organism.load(probes).fingerprint() == original


@pytest.mark.parametrize("path", sorted(organism.LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_spec_reads_alike_with_and_without_libyaml(path):
    """A `?` in an unquoted flow sequence is read by the C parser and refused by the Python one."""
    text = path.read_text(encoding="utf-8")
    assert yaml.load(text, Loader=yaml.SafeLoader) == yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
