"""What an adapter on disk must hold to be believed: config, safetensors, pairs of finite matrices, and a B that is not zero."""

from pathlib import Path

from organisms.adapter_config import CONFIG
from organisms.errors import UserError, first_line
from organisms.files import read_json

WEIGHTS = "adapter_model.safetensors"


def validate_adapter(directory: Path, expected: dict[str, tuple[int, ...]] | None = None, zero: bool = False) -> None:
    """Raise UserError unless `directory` holds a whole adapter.

    Checked: config and safetensors are there, every LoRA A has its B, names and shapes are the expected ones (where
    given), all values finite, and B is not all zero (or, for `zero`, is).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = directory / WEIGHTS
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} holds no {CONFIG}, so it is not an adapter")
    if not weights.is_file():
        raise UserError(f"{directory} holds no {WEIGHTS}: an adapter without weights")
    read_json(directory / CONFIG, "save or fetch the adapter again")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{weights} is damaged ({first_line(error)}); save or fetch the adapter again") from None
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
        if not tensor.is_floating_point():
            raise UserError(f"{directory}: {name} holds {tensor.dtype}, no weights; save or fetch the adapter again")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{directory}: {name} holds values that are not finite; lower the learning rate")
    silent = all(not bool(tensors[name].any()) for name in b_names)
    if silent and not zero:
        raise UserError(f"{directory}: every LoRA B is zero, so this adapter changes nothing; it was not trained or not saved")
    if zero and not silent:
        raise UserError(f"{directory} should be the untouched adapter of step 0, but its LoRA B is not zero")
