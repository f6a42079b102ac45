"""Adapters on disk: saved whole or not at all, and refused where tensors are missing, not finite or all zero."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from organisms.errors import UserError


def save_adapter(model: Any, target: Path, zero: bool = False) -> None:
    """Save the adapter of a PEFT model to `target`, validated, by a rename of a finished directory.

    zero: the untouched adapter of step 0, whose B matrices must be all zero; any other must have a B that is not.
    """
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        model.save_pretrained(staging, safe_serialization=True)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        validate_adapter(staging, expected=_expected_shapes(model), zero=zero)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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
