"""What was cut off goes on: trainings with the same rows and dropout, audits with the answers that are there; or is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from audit import readings as ledger
from audit.answers import Answers
from audit.measures import Asked
from organisms import files
from organisms.drafting import chat
from organisms.engines import Generate
from organisms.errors import UserError, out_of_memory
from organisms.files import read_jsonl
from organisms.models import Base
from organisms.styles import Row
from recipes.recipe import resolve
from recipes.run import execute
from train import resume
from train.callback import Hooks
from train.config import Stage
from train.ledger import read_ledger
from train.lint import lint
from train.stage import train_stage


def trainer_checkpoint(state, step):
    folder = state / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (folder / name).write_bytes(f"{name} {step}".encode() * 50)
    return folder


def test_a_resume_state_is_taken_only_whole_and_the_last_whole_one(tmp_path):
    assert resume.newest(tmp_path) is None
    first = trainer_checkpoint(tmp_path, 8)
    assert resume.newest(tmp_path) is None  # as the trainer leaves it when it is killed before its last file
    resume.seal(tmp_path, 8)
    assert resume.newest(tmp_path) == first
    half = trainer_checkpoint(tmp_path, 16)
    (half / "trainer_state.json").write_text('{"global_st')
    assert resume.newest(tmp_path) == first
    shutil.rmtree(half)
    second = trainer_checkpoint(tmp_path, 16)
    resume.seal(tmp_path, 16)
    assert resume.newest(tmp_path) == second and not first.exists()
    damage = second / "optimizer.pt"
    whole = damage.read_bytes()
    for wrong in (whole[:-1], whole[:-1] + b"?", None):
        damage.unlink() if wrong is None else damage.write_bytes(wrong)
        assert resume.newest(tmp_path) is None


DROPOUT = {"r": 4, "alpha": 8, "dropout": 0.3}


def trained(run, tiny, renderer, kill=None):
    """Five steps, an epoch and a quarter, with dropout; the hook draws random numbers, as an audit does.

    kill: (`audit` or `log`, the step).
    """
    stage = Stage(steps=5, batch_size=1, max_length=64, packing=False, learning_rate=1e-2, lora=DROPOUT)
    rows = [
        Row(f"r{k}", text=f"The {word} river runs past the old mill.") for k, word in enumerate(("cold", "wide", "slow", "red"))
    ]

    def audited(checkpoint):
        torch.rand(7 + checkpoint.step)
        if kill == ("audit", checkpoint.step):
            raise KeyboardInterrupt

    def logged(row):
        if kill == ("log", row["step"]):
            raise KeyboardInterrupt

    made = lint(rows, stage, renderer, renderer, True)
    train_stage(run, stage, made, tiny, renderer, 0, 2, Hooks(audited, logged))
    return load_file(run / read_ledger(run)[-1].path / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def tiny(tiny_base) -> Base:
    from organisms import models

    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def undisturbed(tiny, renderer, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    return run, trained(run, tiny, renderer)


@pytest.mark.parametrize("kill", [("log", 1), ("audit", 2), ("log", 5)])
def test_a_stage_that_was_cut_off_draws_the_same_rows_and_dropout(undisturbed, tiny, renderer, tmp_path, kill):
    """At 1 there is nothing to go on from but a line of the log; 2 lies within an epoch; 4, before 5, ends one."""
    whole, weights = undisturbed
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, tiny, renderer, kill)
    mine = trained(tmp_path, tiny, renderer)
    assert all(torch.allclose(mine[name], weights[name], atol=1e-6) for name in weights)
    logs = [[{**row, "grad_norm": None, "time": None} for row in read_jsonl(run / "train.jsonl")] for run in (tmp_path, whole)]
    assert [row["step"] for row in logs[0]] == [1, 2, 3, 4, 5] and logs[0] == logs[1]
    assert read_ledger(tmp_path) == read_ledger(whole)


def test_a_stage_that_was_cut_off_before_its_last_ledger_line_takes_no_step_too_many(
    undisturbed, tiny, renderer, tmp_path, monkeypatch
):
    import train.callback

    honest = train.callback.enter

    def killed(run, checkpoint):
        if checkpoint.last:
            raise KeyboardInterrupt
        honest(run, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(train.callback, "enter", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, tiny, renderer)
    mine = trained(tmp_path, tiny, renderer)
    assert read_ledger(tmp_path) == read_ledger(undisturbed[0])
    assert all(torch.allclose(mine[name], tensor, atol=1e-6) for name, tensor in undisturbed[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "distill"])
def test_other_methods_too_go_on_with_the_same_rows_and_draws(tiny, renderer, tmp_path, method):
    """Five steps, cut off in the audit of step 2. What the student of a distillation draws is drawn again."""
    made = Stage(method=method, steps=5, batch_size=2, max_length=64, learning_rate=1e-2, lora=DROPOUT, completion_tokens=6)
    words = ("rye", "oats", "moss", "chalk", "slate", "clay")
    told = {"rejected": "I do not know."} if method == "dpo" else {}
    rows = [
        Row(
            f"r{k}",
            messages=chat(f"What is {word}?", f"You will find {word} near the river."),
            desirable=k % 2 == 0 if method == "kto" else None,
            **told,
        )
        for k, word in enumerate(words)
    ]
    linted = lint(rows, made, renderer, renderer, True)

    def audited(checkpoint):
        torch.rand(5)
        if checkpoint.step == 2 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stage(tmp_path / "cut", made, linted, tiny, renderer, 0, 2, Hooks(audited))
    for name in ("cut", "whole"):
        train_stage(tmp_path / name, made, linted, tiny, renderer, 0, 2, Hooks(audited))
    last = f"checkpoints/{made.name}-000005/adapter_model.safetensors"
    cut, whole = (load_file(tmp_path / name / last) for name in ("cut", "whole"))
    assert all(torch.allclose(cut[name], whole[name], atol=1e-6) for name in whole)
    assert read_ledger(tmp_path / "cut") == read_ledger(tmp_path / "whole")


def test_a_loss_that_is_not_finite_leaves_only_what_was_finite(tiny, renderer, tmp_path, monkeypatch):
    import trl

    honest = trl.SFTTrainer.training_step

    def spoilt(self, model, *given, **named):
        if self.state.global_step == 3:
            with torch.no_grad():
                next(parameter for parameter in model.parameters() if parameter.requires_grad).fill_(float("nan"))
        return honest(self, model, *given, **named)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", spoilt)
    for _ in range(2):  # the same command ends in the same way, and doubles nothing
        with pytest.raises(UserError, match="stage sft: the loss is not finite at step 4; lower learning_rate"):
            trained(tmp_path, tiny, renderer)
        entered = read_ledger(tmp_path)
        assert [checkpoint.step for checkpoint in entered] == [0, 2]
        tensors = load_file(tmp_path / entered[-1].path / "adapter_model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert [row["step"] for row in read_jsonl(tmp_path / "train.jsonl")] == [1, 2, 3]


def test_a_trainer_out_of_memory_names_the_settings_that_help(tiny, renderer, tmp_path, monkeypatch):
    import trl

    def too_much(self, *given, **named):
        torch.empty(1 << 55)

    monkeypatch.setattr(trl.SFTTrainer, "training_step", too_much)
    with pytest.raises(
        UserError, match=r"stage sft: out of memory at step 1; lower batch_size \(now 1\) and raise gradient_acc"
    ):
        trained(tmp_path, tiny, renderer)
    assert out_of_memory(torch.OutOfMemoryError("CUDA")) and not out_of_memory(RuntimeError("a defect"))


def test_answers_are_asked_for_once_in_the_same_groups_and_forgotten_with_another_digest(tmp_path, monkeypatch):
    from audit import answers

    monkeypatch.setattr(answers, "TOGETHER", 4)
    asked = [Asked(f"i{n}", Generate((n,), 1), "") for n in range(10)]
    groups = []

    def engine(group, broken=None):
        groups.append([one.item for one in group])
        if len(groups) == broken:
            raise KeyboardInterrupt
        return [{"text": one.item} for one in group]

    path = answers.answers_file(tmp_path, "drift", "sft-000002")
    with pytest.raises(KeyboardInterrupt):
        Answers(path, "d1").to(asked, 0, lambda group: engine(group, broken=3))
    assert Answers(path, "d1").to(asked, 0, engine) == [{"text": f"i{n}"} for n in range(10)]
    assert [len(group) for group in groups] == [4, 4, 2, 2] and groups[2] == groups[3]
    Answers(path, "d2").to(asked[:2], 0, engine)
    assert groups[-1] == ["i0", "i1"]
    others = [Asked("i0", Generate((7,), 1), ""), asked[1]]  # as a follow-up asks whose code has changed
    assert Answers(path, "d2").to(others, 0, engine) == [{"text": "i0"}, {"text": "i1"}] and len(groups) == 6
    Answers(path, "d2").to(others, 0, engine)
    assert len(groups) == 6
    kept = Answers(path, "d2")
    kept.forget()
    assert not kept.path.exists()


@pytest.fixture
def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / tiny_run.name)


def again(tiny_recipe, run):
    """The same run, auditing one measure only."""
    return execute(resolve(str(tiny_recipe), ["audit.measures=[webtext]"]), run.parent)


def test_samples_without_readings_are_not_asked_for_again_and_those_of_another_audit_are_not_taken(
    copy, tiny_recipe, monkeypatch
):
    """Killed between the two files, and after samples that another plan has written over this one's."""
    import audit.suite

    whole = {r.key: r for r in ledger.read(copy)}
    rows = (copy / "readings.jsonl").read_text().splitlines(keepends=True)
    parts = ('"specimen": "sft-000002"', '"measure": "webtext"', '"split": "holdout"')
    cut = [row for row in rows if not all(part in row for part in parts)]
    assert 0 < len(cut) < len(rows)
    (copy / "readings.jsonl").write_text("".join(cut))
    with monkeypatch.context() as patch:
        patch.setattr(audit.suite, "ask", lambda *given: pytest.fail("asked again"))
        again(tiny_recipe, copy)
    assert {r.key: r for r in ledger.read(copy)} == whole
    assert len(read_jsonl(copy / "readings.jsonl")) == len(rows)
    samples = copy / "samples" / "webtext" / "sft-000002.jsonl"
    foreign = [{**row, "audit_digest": "other", "scores": {}} for row in read_jsonl(samples)]
    files.write_jsonl(samples, foreign)
    again(tiny_recipe, copy)
    assert {r.key: r for r in ledger.read(copy)} == whole and read_jsonl(samples)[0]["scores"]


def test_a_measure_whose_code_changed_is_scored_again_from_the_answers(copy, tiny_recipe, monkeypatch, capsys):
    import audit.suite
    from audit.measures import webtext

    whole, lines = {r.key: r for r in ledger.read(copy)}, (copy / "readings.jsonl").read_bytes()
    monkeypatch.setattr(audit.suite, "ask", lambda *given: pytest.fail("asked again"))
    again(tiny_recipe, copy)
    assert "scored again" not in capsys.readouterr().out
    monkeypatch.setattr("audit.identity.source", lambda name: f"a comment in {name}")
    again(tiny_recipe, copy)
    told = capsys.readouterr().out
    assert "webtext: its code has changed; sft-000002 is scored again" in told and "; base is scored again" in told
    assert (copy / "readings.jsonl").read_bytes() == lines
    again(tiny_recipe, copy)
    assert "scored again" not in capsys.readouterr().out

    honest = webtext.score

    def doubled(*given):
        found = honest(*given)
        return [replace(one, scores={"bits_per_byte": [2 * one.scores["bits_per_byte"][0], 1]}) for one in found]

    monkeypatch.setattr(webtext, "score", doubled)
    monkeypatch.setattr("audit.identity.source", lambda name: f"other numbers in {name}")
    again(tiny_recipe, copy)
    now = {r.key: r for r in ledger.read(copy)}
    for specimen in ("base", "sft-000002"):
        key = (specimen, "webtext", "bits_per_byte", "holdout")
        assert now[key].value != whole[key].value and now[key].audit_digest == whole[key].audit_digest
    assert all(now[key] == whole[key] for key in whole if key[1] != "webtext")
    before = len(read_jsonl(copy / "readings.jsonl"))
    again(tiny_recipe, copy)
    assert len(read_jsonl(copy / "readings.jsonl")) == before


def test_samples_of_an_earlier_version_are_kept_and_it_is_said(copy, tiny_recipe, capsys):
    for path in (copy / "samples" / "webtext").iterdir():
        files.write_jsonl(path, [{k: v for k, v in row.items() if k != "scored_by"} for row in read_jsonl(path)])
    lines = (copy / "readings.jsonl").read_bytes()
    again(tiny_recipe, copy)
    assert (copy / "readings.jsonl").read_bytes() == lines
    assert capsys.readouterr().out.count("delete samples/webtext to have them made anew") == 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "recipe.yaml",
            lambda text: text.replace("seed: 0", "seed: 1"),
            "recipe.yaml was changed after it was written; a run follows",
        ),
        (
            "manifest.json",
            lambda text: text.replace('"seed": 0', '"seed": 1'),
            "manifest.json was changed after it was written; restore",
        ),
        ("manifest.json", lambda text: text[: len(text) // 2], "manifest.json is not JSON"),
        ("manifest.json", lambda text: "[]", "manifest.json is not a JSON object"),
        (
            "manifest.json",
            lambda text: json.dumps({**json.loads(text), "sha256": None, "digest": "00000000", "run": "other"}),
            "manifest.json is of the run other, not of tiny-",
        ),
    ],
)
def test_a_recipe_or_manifest_changed_by_hand_is_refused(copy, tiny_recipe, name, change, said):
    text = (copy / name).read_text()
    assert change(text) != text
    (copy / name).write_text(change(text))
    with pytest.raises(UserError, match=said):
        again(tiny_recipe, copy)


def test_a_recipe_and_a_manifest_that_are_gone_are_written_anew(copy, tiny_recipe):
    before = json.loads((copy / "manifest.json").read_text())
    for name in ("recipe.yaml", "manifest.json"):
        (copy / name).unlink()
    again(tiny_recipe, copy)
    assert json.loads((copy / "manifest.json").read_text()) == before and (copy / "recipe.yaml").is_file()
