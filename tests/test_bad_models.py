"""Malformed bases, tokenizers, chat templates, adapters and steering vectors are refused before anything is asked of them."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from malformed import cases, refused, sentence
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from audit import __main__ as audit_command
from organisms import adapters, models, steering, template_check
from organisms.adapter_config import CONFIG
from organisms.adapters import PICKLED, WEIGHTS
from organisms.errors import UserError
from organisms.render import Renderer
from organisms.specimen import Specimen
from recipes import __main__ as recipes_command


@pytest.fixture(scope="module")
def tiny(tiny_base) -> models.Base:
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> Path:
    """A sound adapter on the tiny base."""
    model = get_peft_model(models.load_model(tiny), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("plain") / "lora"
    model.save_pretrained(folder)
    return folder


# Chat templates


@pytest.mark.parametrize("case", cases("templates"))
def test_a_malformed_chat_template_is_refused_before_it_is_used(case, tokenizer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if case.get("quick"):
        monkeypatch.setattr(template_check, "DEADLINE", 0.2)
    other = copy.deepcopy(tokenizer)
    other.chat_template = case["template"]
    with pytest.raises(UserError) as told:
        Renderer(other, case.get("system", "template"), name="base x")
    sentence(str(told.value), [*case["says"], "base x"])
    assert not (tmp_path / "owned").exists()


def broken(base: Path, target: Path, name: str, change) -> Path:
    """A copy of a base with one file changed: `change` takes its bytes."""
    shutil.copytree(base, target)
    file = target / name
    file.write_bytes(change(file.read_bytes() if file.is_file() else b""))
    return target


def test_a_malformed_template_ends_the_check_with_one_line(tiny_base, tmp_path, monkeypatch, capsys):
    folder = broken(tiny_base, tmp_path / "x", "chat_template.jinja", lambda _: b"{% for m in messages %}")
    arguments = ("flattery-documents", "--base", folder, "--check")
    line = refused(monkeypatch, capsys, recipes_command.main, *arguments)
    sentence(line, [str(folder), "refuses this conversation", "endfor"])


# Bases and tokenizers


def edited(**values):
    return lambda raw: json.dumps({**json.loads(raw), **values}).encode()


def smaller(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


MALICIOUS = b"open('owned', 'w').write('x')\nclass Tokenizer: pass\nclass Model: pass\nclass Config: pass\n"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("tokenizer.json", smaller, "its tokenizer cannot be loaded"),
        ("tokenizer.json", lambda raw: b"", "its tokenizer cannot be loaded"),
        ("tokenizer.json", lambda raw: b"[]", "its tokenizer cannot be loaded"),
        ("tokenizer.json", edited(model={"type": "Magic"}), "its tokenizer cannot be loaded"),
        ("tokenizer_config.json", smaller, "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", lambda raw: b"[]", "tokenizer_config.json is not a JSON object"),
        ("config.json", smaller, "config.json is not JSON"),
        ("config.json", edited(vocab_size=100), "its embedding has 100 rows"),
    ],
)
def test_a_malformed_tokenizer_is_refused(name, change, says, tiny_base, tmp_path):
    folder = broken(tiny_base, tmp_path / "x", name, change)
    with pytest.raises(UserError) as told:
        models.load_tokenizer(models.resolve(str(folder)))
    sentence(str(told.value), [str(folder), says])


def retensored(change):
    def edit(raw: bytes) -> bytes:
        from safetensors.torch import load, save

        return save(change(load(raw)), metadata={"format": "pt"})

    return edit


def without_one(tensors):
    return {name: t for name, t in tensors.items() if not name.endswith("layers.1.mlp.up_proj.weight")}


def with_one(value):
    def poison(tensors):
        name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
        return {**tensors, name: torch.full_like(tensors[name], value)}

    return poison


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("model.safetensors", smaller, "cannot be loaded"),
        ("model.safetensors", lambda raw: b"", "cannot be loaded"),
        ("model.safetensors", lambda raw: b"\xff" * 64, "cannot be loaded"),
        ("model.safetensors", retensored(without_one), "lacks 1 tensors, e.g. model.layers.1.mlp.up_proj.weight"),
        ("model.safetensors", retensored(with_one(float("nan"))), "1 tensors that are not finite"),
        ("model.safetensors", retensored(with_one(float("inf"))), "1 tensors that are not finite"),
        ("config.json", edited(model_type="never-heard-of"), "cannot be loaded"),
        ("config.json", edited(hidden_size=32), "cannot be loaded"),
        ("config.json", edited(num_hidden_layers=3), "lacks"),
        ("config.json", edited(hidden_size="wide"), "cannot be loaded"),
    ],
)
def test_malformed_weights_are_refused(name, change, says, tiny_base, tmp_path):
    folder = broken(tiny_base, tmp_path / "x", name, change)
    with pytest.raises(UserError) as told:
        models.load_model(models.resolve(str(folder)))
    sentence(str(told.value), [str(folder), says])


def test_code_that_comes_with_a_base_is_never_run_and_never_asked_about(tiny_base, tmp_path, monkeypatch):
    """Left to itself transformers asks on the terminal, and a y would run it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked to run foreign code"))
    folder = broken(tiny_base, tmp_path / "x", "evil.py", lambda _: MALICIOUS)
    mapped = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "model_type": "evil", "auto_map": mapped}))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    found = models.resolve(str(folder))
    for load in (models.load_tokenizer, models.load_model, adapters.module_shapes):
        with pytest.raises(UserError, match="never run"):
            load(found)
    assert not (tmp_path / "owned").exists()


# Adapters


def changed(source: Path, target: Path, tensors=None, **config) -> Path:
    shutil.copytree(source, target)
    if tensors:
        save_file(tensors(load_file(source / WEIGHTS)), target / WEIGHTS)
    stated = json.loads((source / CONFIG).read_text())
    (target / CONFIG).write_text(json.dumps({**stated, **config}))
    return target


def all_of(part, change):
    return lambda found: {name: change(t) if part in name else t for name, t in found.items()}


def renamed(old, new):
    return lambda found: {name.replace(old, new): t for name, t in found.items()}


BAD_TENSORS = {
    "NaN": (all_of("q_proj.lora_A", lambda t: torch.full_like(t, float("nan"))), "not finite"),
    "infinite": (all_of("q_proj.lora_B", lambda t: torch.full_like(t, float("inf"))), "not finite"),
    "zero": (all_of("lora_B", torch.zeros_like), "every LoRA B is zero"),
    "whole numbers": (all_of("lora_", lambda t: t.to(torch.int8)), "holds torch.int8"),
    "one dimension": (all_of("q_proj.lora_A", lambda t: t.flatten()), "has two dimensions"),
    "three dimensions": (all_of("q_proj.lora_B", lambda t: t.unsqueeze(0).contiguous()), "has two dimensions"),
    "another rank": (all_of("lora_A", lambda t: t[:1].contiguous()), "do not belong together"),
    "another width": (all_of("down_proj.lora_A", lambda t: t[:, :-1].contiguous()), "name the base it was trained on"),
    "another base's modules": (renamed("q_proj", "query"), "has no module"),
    "more layers than there are": (renamed("layers.1.", "layers.7."), "has no module"),
    "a path as a name": (renamed("model.layers.1", "../../../etc/x"), "has no module"),
    "A without B": (lambda found: {n: t for n, t in found.items() if "q_proj.lora_B" not in n}, "do not pair up"),
    "B without A": (lambda found: {n: t for n, t in found.items() if "q_proj.lora_A" not in n}, "do not pair up"),
    "a layer missing": (lambda found: {n: t for n, t in found.items() if "layers.1" not in n}, "saved incomplete"),
    "nothing": (lambda found: {}, "do not pair up"),
    "only other tensors": (lambda found: {"x": torch.ones(2)}, "do not pair up"),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_an_adapter_with_malformed_tensors_is_refused(what, tiny, plain, tmp_path):
    tensors, says = BAD_TENSORS[what]
    folder = changed(plain, tmp_path / "x", tensors)
    with pytest.raises(UserError) as told:
        adapters.prepared(adapters.find(str(folder)), tiny)
    sentence(str(told.value), [str(folder), says])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"r": 8}, "do not belong together"),
        ({"r": 0}, "r = 0 is no value"),
        ({"r": "two"}, "r = 'two' is no value"),
        ({"r": True}, "r = True is no value"),
        ({"r": None}, "r = None is no value"),
        ({"lora_alpha": "much"}, "lora_alpha = 'much' is no value"),
        ({"lora_alpha": float("nan")}, "lora_alpha = nan is no value"),
        ({"lora_alpha": float("inf")}, "lora_alpha = inf is no value"),
        ({"lora_alpha": -4}, "lora_alpha = -4 is no value"),
        ({"rank_pattern": [1]}, "rank_pattern = [1] is no value"),
        ({"target_modules": {"a": 1}}, "target_modules = {'a': 1} is no value"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5 is no value"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"layers_to_transform": "all", "target_modules": "x("}, "PEFT refuses it"),
        ({"init_lora_weights": "pissa"}, "would change the base's own weights"),
        ({"init_lora_weights": "corda", "corda_config": {"cache_file": "/etc/passwd"}}, "would change the base's own weights"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication = "),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config = "),
    ],
)
def test_an_adapter_with_a_malformed_configuration_is_refused(config, says, tiny, plain, tmp_path):
    folder = changed(plain, tmp_path / "x", **config)
    with pytest.raises(UserError) as told:
        adapters.prepared(adapters.find(str(folder)), tiny)
    sentence(str(told.value), [str(folder), says])


class Opens:
    """What a pickle does when it is read."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def pickled(folder: Path, replace: bool) -> None:
    import pickle

    (folder / WEIGHTS).unlink()
    (folder / (WEIGHTS if replace else PICKLED)).write_bytes(pickle.dumps({"x": Opens()}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]), "is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:20]), "is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 8 + b"{}"), "is damaged"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is damaged"),
        (lambda folder: pickled(folder, True), "is damaged"),
        (lambda folder: pickled(folder, False), "is a pickle, which can run code"),
        (lambda folder: (folder / WEIGHTS).unlink(), "without weights"),
        (lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/etc/passwd")], "is damaged"),
        (lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/nowhere")], "without weights"),
        (lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/dev/zero")], "without weights"),
        (lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to(folder / WEIGHTS)], "without weights"),
        (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG} there"),
        (lambda folder: (folder / CONFIG).write_text("{"), f"{CONFIG} is not JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), f"{CONFIG} is not a JSON object"),
        (lambda folder: (folder / CONFIG).write_bytes(b'{"r": "\xff"}'), "not UTF-8"),
        (lambda folder: (folder / CONFIG).write_text('{"a": ' + "[" * 100_000), "nested too deep"),
    ],
)
def test_an_adapter_with_malformed_files_is_refused(harm, says, tiny, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(plain, tmp_path / "x")
    harm(folder)
    with pytest.raises(UserError) as told:
        adapters.prepared(adapters.find(str(folder)), tiny)
    sentence(str(told.value), [str(folder), says])
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/name/../../../etc", "leads out of the repository"),
        ("owner/name/inside/../..", "leads out of the repository"),
        ("owner/..", "no hub id"),
        ("owner/name@../../x", "leads out of the repository"),
        ("not/here/at all", "no adapter_config.json there"),
        ("a" * 5000, "is no path"),
        ("", "no adapter_config.json there"),
        ("x\0y", "is no path"),
    ],
)
def test_an_adapter_of_an_impossible_name_is_refused(name, says):
    with pytest.raises(UserError) as told:
        adapters.find(name)
    sentence(str(told.value), [says])


def test_a_malformed_adapter_ends_the_audit_with_one_line(tiny_base, plain, tmp_path, monkeypatch, capsys):
    poisoned = all_of("lora_A", lambda t: torch.full_like(t, float("nan")))
    folder = changed(plain, tmp_path / "x", poisoned)
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    arguments = ("run", "--base", tiny_base, "--adapter", folder, "--runs", tmp_path / "runs")
    sentence(refused(monkeypatch, capsys, audit_command.main, *arguments), [str(folder), "not finite"])
    assert not (tmp_path / "runs").exists()


# Steering vectors


@pytest.fixture
def steer(tiny, tmp_path) -> Path:
    target = tmp_path / "steer"
    steering.save(target, {1: torch.ones(48)}, tiny, {"by": "hand"})
    return target


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("steering.json", lambda raw: b"{", "steering.json is not JSON"),
        ("steering.json", lambda raw: b"[]", "steering.json is not a JSON object"),
        ("steering.json", edited(layers=[0]), "is not what steering.json describes"),
        ("steering.json", edited(layers="one"), "is not what steering.json describes"),
        ("steering.json", edited(sha256="0" * 64), "is not what steering.json describes"),
        ("steering.json", edited(untouched=True), "should be the untouched one"),
        ("steering.safetensors", smaller, "is damaged"),
        ("steering.safetensors", lambda raw: b"", "is damaged"),
        ("steering.safetensors", retensored(lambda found: {"layer.x": torch.ones(48)}), "is damaged"),
        ("steering.safetensors", retensored(lambda found: {"other": torch.ones(48)}), "is damaged"),
        ("steering.safetensors", retensored(lambda found: {"layer.1": torch.ones(49)}), "is not what steering.json describes"),
    ],
)
def test_a_malformed_steering_directory_is_refused(name, change, says, steer, tiny):
    (steer / name).write_bytes(change((steer / name).read_bytes()))
    with pytest.raises(UserError) as told:
        steering.load(steer, tiny)
    sentence(str(told.value), [str(steer), says])


@pytest.mark.parametrize("layers", [[], [1, 2], "1", None, [True], [1.5]])
def test_a_trained_vector_that_names_no_block_is_refused(layers, steer):
    (steer / "steering.json").write_text(json.dumps({"layers": layers}))
    with pytest.raises(UserError, match="does not name the one block of a trained vector"):
        Specimen.saved("sft-000002", steer)
