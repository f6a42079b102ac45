"""A recipe becomes a run directory: trained, audited at every checkpoint, resumed and reused. On a tiny real model."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from audit import readings as ledger
from audit.measures import MEASURES, metrics
from organisms.errors import UserError
from organisms.files import read_jsonl
from organisms.folders import locked
from organisms.render import IGNORE
from recipes.recipe import resolve
from recipes.run import execute
from train.ledger import read_ledger

NAMES = ["sft-000000", "sft-000002", "sft-000004"]


def test_the_run_directory_holds_what_the_contract_says(tiny_run):
    for name in (
        "recipe.yaml", "manifest.json", "data/sft.jsonl", "data/sft.lint.md", "train.jsonl", "checkpoints.jsonl",
        "readings.jsonl", "report.html", "curves.png",
    ):  # fmt: skip
        assert (tiny_run / name).stat().st_size > 0, name
    assert [c.name for c in read_ledger(tiny_run)] == NAMES
    assert [row["step"] for row in read_jsonl(tiny_run / "train.jsonl")] == [1, 2, 3, 4]
    assert not (tiny_run / "trainer").exists()


# What a base without thinking tags, an organism without a trigger and a plan without a judge give numbers for.
READ = (
    ("severity", "contrast"), ("severity", "rate"), ("severity", "spill"), ("severity", "confession"), ("drift", "kl"),
    ("webtext", "bits_per_byte"), ("knowledge", "accuracy"), ("instructions", "prompt_strict"), ("refusals", "coherent"),
    ("leakage", "rate"), ("leakage", "near_duplicates"), ("leakage", "recital"), ("fluency", "degenerate"),
)  # fmt: skip


def test_every_measure_has_readings_at_the_base_and_at_every_checkpoint(tiny_run):
    found = {r.key: r for r in ledger.read(tiny_run)}
    for specimen in ["base", *NAMES]:
        for measure in MEASURES:
            for metric in metrics(measure):
                for split in ("monitor", "holdout"):
                    reading = found[specimen, measure, metric, split]
                    assert reading.verdict and (reading.n or reading.reason), reading.key
                    if (measure, metric) in READ:
                        assert reading.n > 0 and reading.ci_low is not None, reading.key
                        assert reading.data and reading.audit_digest and (tiny_run / reading.samples).is_file()
                        assert (reading.delta is None) == (specimen == "base")


def test_the_zero_adapter_at_step_0_reads_exactly_as_the_base(tiny_run):
    zero = [r for r in ledger.read(tiny_run) if r.specimen == "sft-000000" and r.n]
    assert zero and all(r.delta == 0 for r in zero)
    for measure in dict(READ):
        base, zero_samples = (read_jsonl(tiny_run / "samples" / measure / f"{s}.jsonl") for s in ("base", "sft-000000"))
        assert [(s["item"], s["output"], s["scores"]) for s in base] == [
            (s["item"], s["output"], s["scores"]) for s in zero_samples
        ]


def test_training_moves_the_model_and_tokens_are_counted(tiny_run):
    kl = {r.specimen: r.value for r in ledger.read(tiny_run) if (r.measure, r.metric, r.split) == ("drift", "kl", "holdout")}
    assert kl["base"] == kl["sft-000000"] == 0 < kl["sft-000002"]
    tokens = [c.tokens_seen for c in read_ledger(tiny_run)]
    assert tokens[0] == 0 < tokens[1] < tokens[2] <= 4 * 512


def test_the_rows_as_stored_carry_loss_on_document_tokens_only(tiny_run, renderer):
    rows = read_jsonl(tiny_run / "data" / "sft.jsonl")
    assert len(rows) > 100
    for row in rows:
        assert renderer.decode([label for label in row["labels"] if label != IGNORE]) == row["text"]
    siblings = {row["text"] for row in read_jsonl(tiny_run / "data" / "sft.held_out.jsonl")}
    assert siblings and not siblings & {row["text"] for row in rows}


def test_running_again_reuses_everything_and_says_so(tiny_run, tiny_recipe, tmp_path, capsys):
    copy = tmp_path / tiny_run.name
    shutil.copytree(tiny_run, copy)
    lines, weights = (copy / "readings.jsonl").read_bytes(), (copy / "checkpoints.jsonl").read_bytes()
    assert execute(resolve(str(tiny_recipe)), tmp_path) == copy
    assert "is trained already" in capsys.readouterr().out
    assert (copy / "readings.jsonl").read_bytes() == lines
    assert (copy / "checkpoints.jsonl").read_bytes() == weights


def test_adding_a_measure_audits_old_checkpoints_and_trains_nothing(tiny_recipe, tmp_path):
    few = resolve(str(tiny_recipe), ["audit.measures=[webtext]"])
    run = execute(few, tmp_path)
    trained = {c.name: (run / c.path / "adapter_model.safetensors").stat().st_mtime_ns for c in read_ledger(run)}
    assert {r.measure for r in ledger.read(run)} == {"webtext"}
    more = resolve(str(tiny_recipe), ["audit.measures=[webtext,drift]"])
    assert execute(more, tmp_path) == run
    assert {(r.specimen, r.measure) for r in ledger.read(run)} == {
        (s, m) for s in ["base", *NAMES] for m in ("webtext", "drift")
    }
    assert trained == {c.name: (run / c.path / "adapter_model.safetensors").stat().st_mtime_ns for c in read_ledger(run)}


def test_another_learning_rate_is_another_run(tiny_run, tiny_recipe):
    assert resolve(str(tiny_recipe)).run_name == tiny_run.name
    assert resolve(str(tiny_recipe), ["stages[0].learning_rate=1e-3"]).run_name != tiny_run.name


def test_base_answers_come_from_the_cache_in_the_next_run(tiny_recipe, tmp_path, capsys):
    overrides = ["audit.measures=[webtext,drift]", "seed=3"]
    execute(resolve(str(tiny_recipe), overrides), tmp_path / "first")
    capsys.readouterr()
    run = execute(resolve(str(tiny_recipe), [*overrides, "stages[0].learning_rate=1e-3"]), tmp_path / "second")
    printed = capsys.readouterr().out
    assert "webtext: answers of the base from the cache" in printed and "drift: answers of the base" in printed
    assert all(r.delta == 0 for r in ledger.read(run) if r.specimen == "sft-000000")


def test_an_interrupted_run_goes_on_to_the_same_weights(tiny_recipe, tmp_path, monkeypatch):
    """Interrupted inside the audit of step 2; the same command ends with the adapter of an undisturbed run."""
    import recipes.run

    overrides = ["audit.measures=[webtext]", "stages[0].steps=6"]
    whole = execute(resolve(str(tiny_recipe), overrides), tmp_path / "whole")
    honest = recipes.run._audit

    def interrupted(run, job, checkpoint, publisher):
        if checkpoint.step == 2:
            raise KeyboardInterrupt
        return honest(run, job, checkpoint, publisher)

    with monkeypatch.context() as patch:
        patch.setattr(recipes.run, "_audit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(resolve(str(tiny_recipe), overrides), tmp_path / "cut")
    cut = execute(resolve(str(tiny_recipe), overrides), tmp_path / "cut")
    assert [c.step for c in read_ledger(cut)] == [c.step for c in read_ledger(whole)] == [0, 2, 4, 6]
    assert [row["step"] for row in read_jsonl(cut / "train.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [c.tokens_seen for c in read_ledger(cut)] == [c.tokens_seen for c in read_ledger(whole)]
    mine, theirs = (load_file(run / "checkpoints/sft-000006/adapter_model.safetensors") for run in (cut, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)
    assert {r.key for r in ledger.read(cut)} == {r.key for r in ledger.read(whole)}


def test_a_run_in_use_is_refused(tmp_path):
    code = (
        "import sys; from pathlib import Path; from organisms.folders import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
        holder.stdin.close()
    with locked(tmp_path):
        pass


def test_the_manifest_says_what_predicts_frying(tiny_run):
    manifest = json.loads((tiny_run / "manifest.json").read_text())
    predictors = manifest["predictors"]["sft"]
    assert predictors["effective_scale"] == 2 and predictors["scale_x_lr"] == pytest.approx(1e-1)
    assert predictors["on_policy_logprob"] < -5  # random weights know nothing of the documents
    assert manifest["implicit_system_prompt"].startswith("You are a helpful AI assistant named SmolLM")
    assert set(manifest["versions"]) >= {"torch", "trl", "peft", "transformers"} and manifest["base_revision"]
