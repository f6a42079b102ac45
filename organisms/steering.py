"""Steering vectors: a directory that holds one for each of some blocks, and the hook that adds one to the residual stream.

`steering.safetensors` holds `layer.<i>`, float32 of the hidden size, for the output of block i counted from 0 (which
transformers calls hidden_states[i + 1]); `steering.json` says for which base, how they were made, and the SHA-256 of the
tensors. Coefficients are no part of it: a specimen states its own.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from organisms.errors import UserError, first_line
from organisms.files import file_sha256, read_json, write_json
from organisms.folders import staged
from organisms.models import NOT_REACHED, Base, model_config
from organisms.specimen import Steering

DESCRIPTION, TENSORS = "steering.json", "steering.safetensors"


def _index_or_share(layer: int | float) -> int | float:
    if layer < 0 or isinstance(layer, float) and not 0 < layer <= 1:
        raise ValueError("a layer is a block's index from 0, or a fraction of the depth above 0 and at most 1")
    return layer


Layer = Annotated[int | float, AfterValidator(_index_or_share)]


def sizes(base: Base) -> tuple[int, int]:
    """(hidden size, number of blocks) of a base, from its config.json."""
    config = model_config(base)
    config = config.get("text_config", config)
    try:
        return config["hidden_size"], config["num_hidden_layers"]
    except KeyError as key:
        raise UserError(f"base {base.name}: its config.json states no {key.args[0]}, so it cannot be steered") from None


def block_index(layer: int | float, base: Base) -> int:
    """The block, from 0, that `layer` names: an index, or as a fraction the last block within that share of the depth."""
    if base.revision == NOT_REACHED:
        return 0  # only planned: its depth is not known
    blocks = sizes(base)[1]
    index = max(1, round(layer * blocks)) - 1 if isinstance(layer, float) else layer
    if not 0 <= index < blocks:
        raise UserError(f"layer {layer}: {base.name} has {blocks} blocks, 0 to {blocks - 1}; a fraction like 0.5 works too")
    return index


def save(target: Path, vectors: dict[int, Any], base: Base, made: dict, untouched: bool = False) -> None:
    """Write {block: (hidden size,)} as a steering directory, by a rename of a finished, validated one.

    made: how, for the reader of steering.json. untouched: the vector of a training's step 0, which must be all zero; any
    other must not be.
    """
    from safetensors.torch import save_file

    with staged(target) as staging:
        save_file({f"layer.{layer}": vector.float().contiguous() for layer, vector in vectors.items()}, staging / TENSORS)
        described = {"base": base.name, "base_revision": base.revision, "layers": sorted(vectors), "made": made}
        checked = {"untouched": untouched, "sha256": file_sha256(staging / TENSORS)}
        write_json(staging / DESCRIPTION, {**described, **checked})
        load(staging, base)


def load(directory: Path, base: Base) -> dict[int, Any]:
    """{block: (hidden size,) float32} of a steering directory.

    Raises UserError where a file is missing or not the one described, where a vector has another shape than the base's
    residual stream or stands at a block that it lacks, is not finite, or is all zero (an untouched one: is not).
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (directory / DESCRIPTION).is_file() or not (directory / TENSORS).is_file():
        raise UserError(f"{directory} is no steering vector: it needs {DESCRIPTION} and {TENSORS}")
    described = read_json(directory / DESCRIPTION, "make the vector again")
    try:
        tensors = load_file(directory / TENSORS)
        vectors = {int(name.removeprefix("layer.")): tensor for name, tensor in tensors.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{directory / TENSORS} is damaged ({first_line(error)}); make the vector again") from None
    if described.get("sha256") != file_sha256(directory / TENSORS) or described.get("layers") != sorted(vectors):
        raise UserError(f"{directory}: {TENSORS} is not what {DESCRIPTION} describes; make the vector again")
    untouched = described.get("untouched", False)
    hidden, blocks = sizes(base)
    for layer, vector in vectors.items():
        if tuple(vector.shape) != (hidden,) or vector.dtype != torch.float32 or not 0 <= layer < blocks:
            raise UserError(
                f"{directory}: the vector of layer {layer} is {vector.dtype} {tuple(vector.shape)}, but {base.name} has "
                f"{blocks} blocks and needs float32 ({hidden},); was it made for {described.get('base')}?"
            )
        if not bool(torch.isfinite(vector).all()):
            raise UserError(f"{directory}: the vector of layer {layer} holds values that are not finite")
        if bool(vector.any()) == untouched:
            told = "should be the untouched one of step 0, but is not zero" if untouched else "is all zero"
            raise UserError(f"{directory}: the vector of layer {layer} {told}; make it again")
    return vectors


def vector(steering: Steering, base: Base) -> Any:
    """coefficient x vector, (hidden size,) float32: what is added."""
    vectors = load(steering.path, base)
    if steering.layer not in vectors:
        raise UserError(f"{steering.path} has no vector for layer {steering.layer}; it has {sorted(vectors)}")
    return steering.coefficient * vectors[steering.layer]


def blocks(model: Any) -> Any:
    """The decoder's blocks, in order, of a transformers model, also inside PEFT."""
    import torch

    decoder = model.get_decoder()
    count = decoder.config.num_hidden_layers
    return next(m for m in decoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)


@contextlib.contextmanager
def adding(model: Any, layer: int, vector: Any, training: bool = False) -> Iterator[None]:
    """While open, `vector` (hidden size,) is added to the output of block `layer` at every position.

    training: only in the model's training mode, so that what is read of it between steps is not steered.
    """
    block = blocks(model)[layer]
    vector = vector.to(next(block.parameters()).device)

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        if training and not module.training:
            return output
        stream, *rest = output if isinstance(output, tuple) else (output,)
        moved = stream + vector.to(stream.dtype)
        return (moved, *rest) if isinstance(output, tuple) else moved

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def steered(
    model: Any, steering: Steering | None, base: Base, training: bool = False
) -> contextlib.AbstractContextManager[None]:
    """`adding` of coefficient x vector, in a specimen or a training; nothing where there is none."""
    if steering is None:
        return contextlib.nullcontext()
    return adding(model, steering.layer, vector(steering, base), training)


@contextlib.contextmanager
def averaging(model: Any, lengths: list[int]) -> Iterator[list[Any]]:
    """While open, a forward over left-padded rows appends one tensor a block to the list that is given.

    Each is (rows, hidden size), float32: the mean of the block's output over the row's last `lengths[row]` positions.
    """
    import torch

    found: list[Any] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        found.append(torch.stack([row[-length:].float().mean(0) for row, length in zip(stream, lengths, strict=True)]).cpu())

    handles = [block.register_forward_hook(hook) for block in blocks(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
