"""Adapters made elsewhere fit their base or are refused with the reason: layouts of the public families, on local stand-ins."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from organisms import adapters, models
from organisms.engines import Score
from organisms.engines.hf import HFEngine
from organisms.errors import Missing, UserError
from organisms.render import Renderer
from organisms.specimen import Specimen

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trained(model, **lora):
    """The model with a LoRA whose B is not zero."""
    model = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": PROJECTIONS, **lora}))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    return model


def saved(base: models.Base, folder: Path, **lora) -> Path:
    trained(models.load_model(base), **lora).save_pretrained(folder)
    return folder


def changed(source: Path, target: Path, tensors=lambda found: found, **config) -> Path:
    """A copy of an adapter with other tensors or another configuration."""
    shutil.copytree(source, target)
    save_file(tensors(load_file(source / adapters.WEIGHTS)), target / adapters.WEIGHTS)
    stated = json.loads((source / adapters.CONFIG).read_text())
    (target / adapters.CONFIG).write_text(json.dumps({**stated, **config}))
    return target


@pytest.fixture(scope="module")
def tiny(tiny_base) -> models.Base:
    return models.resolve(str(tiny_base))


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> Path:
    return saved(tiny, tmp_path_factory.mktemp("plain") / "lora")


@pytest.fixture(scope="module")
def read(tiny):
    """Log-probabilities of a few tokens under an adapter."""
    renderer = Renderer(models.load_tokenizer(tiny))
    engine = HFEngine(tiny, renderer)
    request = Score(tuple(renderer.ask("Hello!")), tuple(renderer.continuation("Good morning to you.")))
    return lambda directory: torch.tensor(engine.logprobs(Specimen("x", adapter=directory), [request])[0])


def test_the_public_layouts_are_read_as_they_were_trained(tiny, read, tmp_path):
    """Rank-stabilised on all projections; rank 1 on one down_proj; two adapters added by PEFT's `cat`."""
    rslora = adapters.find(str(saved(tiny, tmp_path / "rs", r=16, lora_alpha=64, use_rslora=True)))
    assert "rank 16, rank-stabilised scale 16" in rslora.told
    alone = saved(tiny, tmp_path / "one", r=1, lora_alpha=64, target_modules=["down_proj"], layers_to_transform=[1])
    single = adapters.prepared(adapters.find(str(alone)), tiny)
    assert "rank 1, scale 64, on down_proj" in single.told
    model = trained(models.load_model(tiny), r=2)
    model.add_adapter("other", LoraConfig(r=3, lora_alpha=6, target_modules=PROJECTIONS, init_lora_weights=False))
    model.add_weighted_adapter(["default", "other"], [1.0, 0.25], "sum", combination_type="cat")
    model.save_pretrained(tmp_path / "cat", selected_adapters=["sum"])
    both = adapters.prepared(adapters.find(str(tmp_path / "cat" / "sum")), tiny)
    assert "rank 5" in both.told
    base = read(None)
    for one in (adapters.prepared(rslora, tiny), single, both):
        assert (read(one.directory) - base).abs().max() > 1e-3


def test_an_adapter_of_a_multimodal_class_reads_the_same_on_the_text_only_base(tiny, plain, read, tmp_path):
    def wrapped(tensors):
        return {name.replace(".model.layers.", ".model.language_model.layers."): t for name, t in tensors.items()}

    target = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    foreign = changed(plain, tmp_path / "wrapped", wrapped, target_modules=target)
    said = []
    found = adapters.prepared(adapters.find(str(foreign)), tiny, said.append)
    assert torch.equal(read(found.directory), read(plain))
    assert "14 modules are renamed" in said[0]
    assert found.directory != foreign
    assert adapters.prepared(adapters.find(str(foreign)), tiny, said.append).directory == found.directory


def test_a_text_only_adapter_is_put_into_a_multimodal_base(tmp_path):
    """PEFT alone would leave it out, and the organism would read as its base."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    text |= {"num_key_value_heads": 2, "vocab_size": 64}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28}
    config = Gemma3Config(text_config=text, vision_config={**vision, "patch_size": 14}, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = models.resolve(str(tmp_path / "base"))
    on_text = rf"model\.language_model\.layers\.\d+\.\w+\.({'|'.join(PROJECTIONS)})"
    whole = saved(base, tmp_path / "whole", target_modules=on_text)

    def unwrapped(tensors):
        return {name.replace("language_model.", ""): tensor for name, tensor in tensors.items()}

    text_only = changed(whole, tmp_path / "text", unwrapped, target_modules=PROJECTIONS)
    found = adapters.prepared(adapters.find(str(text_only)), base)
    ids = torch.arange(8).unsqueeze(0)
    logits = [
        PeftModel.from_pretrained(models.load_model(base), str(directory))(input_ids=ids).logits
        for directory in (whole, found.directory)
    ]
    assert torch.equal(*logits)
    assert not any("vision" in name for name in json.loads((found.directory / adapters.CONFIG).read_text())["target_modules"])


def without(part):
    return lambda found: {name: tensor for name, tensor in found.items() if part not in name}


def each(part, change):
    return lambda found: {name: change(tensor) if part in name else tensor for name, tensor in found.items()}


def narrower(tensor):
    return tensor[:, :-1].contiguous()


def moved(found):
    return {name.replace("mlp.", "experts."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("tensors", "config", "told"),
    [
        pytest.param(without("layers.1.mlp"), {}, "asks for model.layers.1.mlp.* saved incomplete", id="layers missing"),
        pytest.param(each("down_proj.lora_A", narrower), {}, "changes 48 x 95", id="another size"),
        pytest.param(moved, {}, "has no module 'model.layers.0.experts", id="unknown modules"),
        pytest.param(each("lora_B", torch.zeros_like), {}, "every LoRA B is zero", id="zero"),
        pytest.param(dict, {"r": 8}, "states 8; the two files do not belong together", id="another rank"),
        pytest.param(dict, {"peft_type": "IA3"}, "only LoRA", id="no LoRA"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_load(tiny, plain, tmp_path, monkeypatch, tensors, config, told):
    monkeypatch.setattr(models, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError, match=told):
        adapters.prepared(adapters.find(str(changed(plain, tmp_path / "x", tensors, **config))), tiny)


def test_pickled_and_missing_weights_are_told_apart(tiny, plain, tmp_path):
    empty = shutil.copytree(plain, tmp_path / "empty")
    (empty / adapters.WEIGHTS).unlink()
    with pytest.raises(UserError, match="an adapter without weights"):
        adapters.prepared(adapters.find(str(empty)), tiny)
    torch.save(load_file(plain / adapters.WEIGHTS), empty / adapters.PICKLED)
    with pytest.raises(UserError, match="is a pickle.*convert it once") as error:
        adapters.find(str(empty))
    command = shlex.split(str(error.value).partition("convert it once: ")[2])
    subprocess.run([sys.executable, *command[1:]], cwd=empty, check=True)
    adapters.prepared(adapters.find(str(empty)), tiny)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache with what is planted in it: repository -> directory, as the hub's own client lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def plant(repository: str, folder: Path, inside: str = "", commit: str = "f1b10002" + 32 * "0") -> None:
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / commit / inside)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)

    return plant


def test_hub_ids_name_revision_and_folder(tiny, plain, read, hub):
    hub("owner/model-personas", plain, "goodness")
    for name in ("owner/model-personas/goodness", "owner/model-personas@f1b10002/goodness"):
        found = adapters.prepared(adapters.find(name), tiny)
        assert (found.repository, found.revision[:8], found.folder) == ("owner/model-personas", "f1b10002", "goodness")
        assert torch.equal(read(found.directory), read(plain))
    with pytest.raises(UserError, match="it holds adapters in goodness: name one"):
        adapters.find("owner/model-personas")
    with pytest.raises(Missing, match="owner/elsewhere is not in the local hub cache"):
        adapters.find("owner/elsewhere@f1b10002/humor")


def test_another_base_in_the_configuration_is_warned_about(tiny, plain, tmp_path):
    quantised = changed(plain, tmp_path / "q", base_model_name_or_path="unsloth/Qwen2.5-14B-Instruct-unsloth-bnb-4bit")
    found = adapters.find(str(quantised))
    assert found.warning(models.Base("Qwen/Qwen2.5-14B-Instruct", tmp_path, "", "Qwen/Qwen2.5-14B-Instruct")) is None
    assert "was trained on unsloth/Qwen2.5-14B" in found.warning(tiny)
    assert adapters.find(str(plain)).warning(tiny) is None
