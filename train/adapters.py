"""Adapters on disk: saved whole or not at all, and stacked exactly."""

import json
from pathlib import Path
from typing import Any

from organisms.adapter_check import validate_adapter
from organisms.errors import UserError
from organisms.files import write_json
from organisms.folders import staged


def save_adapter(
    model: Any,
    target: Path,
    zero: bool = False,
    earlier: Path | None = None,
    weight: float = 1.0,
    tensors: dict[str, Any] | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> None:
    """Save the adapter of a PEFT model to `target`, validated, by a rename of a directory that is whole on disk.

    tensors: its parameters, gathered, where the model holds only parts of them. shapes: those that must be saved, as
    `expected_shapes` gave them before the model was taken apart; None: as the model has them now. zero: the untouched adapter
    of step 0, whose B matrices must be all zero; any other must have a B that is not. earlier: an adapter that the model's
    weights already hold; what is saved is then both, stacked, the model's own times `weight`.
    """
    with staged(target) as staging:
        model.save_pretrained(staging, safe_serialization=True, **({} if tensors is None else {"state_dict": tensors}))
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        validate_adapter(staging, expected=shapes or expected_shapes(model), zero=zero)
        if earlier is not None:
            stack([(earlier, 1.0), (staging, weight)], staging)
            validate_adapter(staging)


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


def expected_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a PEFT model's adapter by the names that it is saved under."""
    from peft import get_peft_model_state_dict

    return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
