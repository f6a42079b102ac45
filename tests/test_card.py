"""The organism card says what the run directory says, in the hub's format, and claims nothing else."""

import json
import shutil

import pytest
import yaml

from audit import card
from audit import readings as ledger
from audit.table import difference
from organisms.errors import UserError
from organisms.sealed import write_sealed


@pytest.fixture(scope="module")
def text(tiny_run):
    return (tiny_run / "README.md").read_text(encoding="utf-8")


def test_the_head_is_what_the_hub_reads(text, tiny_run):
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft" and "model-organism" in head["tags"] and "flattery" in head["tags"]
    assert head["base_model"] == json.loads((tiny_run / "manifest.json").read_text())["base"]


def test_every_reading_with_a_margin_stands_in_the_card_as_it_was_read(text, tiny_run):
    last = [r for r in ledger.read(tiny_run) if r.specimen == "sft-000004" and r.split == "holdout" and r.value is not None]
    judged = [r for r in last if r.margin is not None]
    assert len(judged) > 5
    for r in judged:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {r.measure}.{r.metric} |")]
        assert difference(r) in line and r.verdict in line and f"| {r.n} |" in line
    assert "| contrast (target probes" in text


def test_the_checklist_is_read_off_the_run(text, tiny_run):
    assert "- [x] the zero adapter reads exactly as the base" in text
    assert "- [ ] a matched control gives the margin of drift" in text
    assert "- [ ] the base's own replies to ordinary prompts are mixed in" in text


def test_a_card_is_rebuilt_from_the_directory_alone_and_names_what_has_changed(tiny_run, tmp_path):
    run = tmp_path / tiny_run.name
    shutil.copytree(tiny_run, run)
    before = (run / "README.md").read_text()
    assert card.write(run).read_text() == before
    manifest = json.loads((run / "manifest.json").read_text())
    write_sealed(run / "manifest.json", {**manifest, "organism_fingerprint": "0" * 16, "final": "sft-000002"})
    after = card.write(run).read_text()
    assert "The organism's text has changed since this run (fingerprint 0000000000000000 then" in after
    assert "sft-000002, against its own base" in after
    with pytest.raises(UserError, match="has no readings.jsonl"):
        card.write(tmp_path)
