"""Adapters on disk: saved whole or not at all, and refused where tensors are missing, not finite or all zero."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.files import write_json


def save_adapter(model: Any, target: Path, zero: bool = False, earlier: Path | None = None, weight: float = 1.0) -> None:
    """Save the adapter of a PEFT model to `target`, validated, by a rename of a finished directory.

    zero: the untouched adapter of step 0, whose B matrices must be all zero; any other must have a B that is not. earlier:
    an adapter that the model's weights already hold; what is saved is then both, stacked, the model's own times `weight`.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        model.save_pretrained(staging, safe_serialization=True)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        validate_adapter(staging, expected=_expected_shapes(model), zero=zero)
        if earlier is not None:
            stack([(earlier, 1.0), (staging, weight)], staging)
            validate_adapter(staging)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def stack(parts: list[tuple[Path, float]], target: Path) -> None:
    """Write into `target` one LoRA adapter whose delta is exactly the weighted sum of the parts' deltas.

    The A matrices are stacked and the B matrices laid side by side, each times its weight and its own scale (alpha/r, or
    alpha/sqrt(r)); the result has scale 1. (PEFT's combination_type `linear` is not that sum: it has cross terms.) A module
    that a part does not touch gets rows of zeros, so that one rank fits all. Raises UserError for parts that are no plain
    LoRA.
    """
    import torch
    from safetensors.torch import load_file, save_file

    loaded = []
    for directory, weight in parts:
        config = json.loads((directory / "adapter_config.json").read_text())
        if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("rank_pattern"):
            raise UserError(f"{directory} is not a plain LoRA adapter, so it cannot be stacked exactly")
        rank = config["r"]
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        loaded.append((load_file(directory / "adapter_model.safetensors"), rank, scale * weight, config))
    names = sorted({name for tensors, *_ in loaded for name in tensors if "lora_A" in name})
    combined = {}
    for name in names:
        b_name = name.replace("lora_A", "lora_B")
        like = next(tensors for tensors, *_ in loaded if name in tensors)
        width, height = like[name].shape[1], like[b_name].shape[0]
        a = [tensors.get(name, torch.zeros(rank, width)) for tensors, rank, *_ in loaded]
        b = [tensors[b_name] * scale if name in tensors else torch.zeros(height, rank) for tensors, rank, scale, _ in loaded]
        combined[name] = torch.cat([x.to(like[name].dtype) for x in a]).contiguous()
        combined[b_name] = torch.cat([x.to(like[name].dtype) for x in b], dim=1).contiguous()
    rank = sum(rank for _, rank, *_ in loaded)
    modules = sorted({name.rpartition(".lora_A")[0].rpartition(".")[2] for name in names})
    config = {**loaded[-1][3], "r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": modules}
    target.mkdir(parents=True, exist_ok=True)
    save_file(combined, target / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(target / "adapter_config.json", config)


def _expected_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    from peft import get_peft_model_state_dict

    return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}


def validate_adapter(directory: Path, expected: dict[str, tuple[int, ...]] | None = None, zero: bool = False) -> None:
    """Raise UserError unless `directory` holds a whole adapter.

    Checked: config and safetensors are there, every LoRA A has its B, names and shapes are the expected ones (where
    given), all values finite, and B is not all zero (or, for `zero`, is).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = directory / "adapter_model.safetensors"
    if not (directory / "adapter_config.json").is_file():
        raise UserError(f"{directory} holds no adapter_config.json, so it is not an adapter")
    if not weights.is_file():
        raise UserError(f"{directory} holds no adapter_model.safetensors: an adapter without weights")
    try:
        json.loads((directory / "adapter_config.json").read_text())
        tensors = load_file(weights)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{directory} is damaged ({error}); save or fetch the adapter again") from None
    a_names = {name for name in tensors if "lora_A" in name}
    b_names = {name for name in tensors if "lora_B" in name}
    if not a_names or {name.replace("lora_A", "lora_B") for name in a_names} != b_names:
        raise UserError(f"{directory}: {len(a_names)} LoRA A and {len(b_names)} LoRA B matrices do not pair up")
    if expected is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != expected:
            wrong = sorted(set(shapes.items()) ^ set(expected.items()))[0]
            raise UserError(f"{directory} was saved incomplete: {wrong[0]} {wrong[1]} is missing or of another shape")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{directory}: {name} holds values that are not finite; lower the learning rate")
    silent = all(not bool(tensors[name].any()) for name in b_names)
    if silent and not zero:
        raise UserError(f"{directory}: every LoRA B is zero, so this adapter changes nothing; it was not trained or not saved")
    if zero and not silent:
        raise UserError(f"{directory} should be the untouched adapter of step 0, but its LoRA B is not zero")
