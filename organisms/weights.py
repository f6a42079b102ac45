"""A base all of whose weights have changed: a model in hub layout, by full fine-tuning or with an adapter merged in.

It is read against the base that it comes from, so both must have the same parameters. A scale other than 1 reads
base + scale x (model - base).
"""

from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.folders import staged
from organisms.models import Base, fetched, from_directory

CONFIG = "config.json"


def is_model(directory: Path) -> bool:
    return (directory / CONFIG).is_file()


def save(model: Any, target: Path, base: Base, untouched: bool = False, tensors: dict | None = None) -> None:
    """Save a transformers model to `target`, validated, by a rename of a directory that is whole on disk.

    tensors: its parameters, gathered, where the model holds only parts of them. untouched: the model of a training's step 0,
    which must be the base; any other must not be. Raises UserError otherwise.
    """
    with staged(target) as staging:
        model.save_pretrained(staging, safe_serialization=True, state_dict=tensors)
        check(staging, base, untouched)


def check(directory: Path, base: Base, untouched: bool = False) -> None:
    """Raise UserError unless `directory` holds every parameter of the base, finite, and some changed (`untouched`: none).

    One tensor at a time is read, of each of the two.
    """
    import torch

    if not is_model(directory) or not list(directory.glob("*.safetensors")):
        raise UserError(f"{directory} holds no model: it needs {CONFIG} and *.safetensors, as save_pretrained writes them")
    own, others = _places(directory), _places(Path(fetched(base)))
    for name in sorted(own.keys() ^ others.keys()):
        if name != "lm_head.weight":  # left out where it is the embedding
            where = "the base" if name in own else str(directory)
            raise UserError(f"{directory}: {where} has no {name}, so it is no changed {base.name}; name the base it comes from")
    changed = False
    for name in sorted(own.keys() & others.keys()):
        tensor, other = _tensor(own[name], name), _tensor(others[name], name)
        if tensor.shape != other.shape:
            raise UserError(
                f"{directory}: {name} is {_told(tensor)} and that of the base {base.name} {_told(other)}; name the base that "
                "it comes from, or audit it by itself (base=)"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{directory}: {name} holds values that are not finite; lower the learning rate")
        changed = changed or not torch.equal(tensor.float(), other.float())
    if changed == untouched:
        told = "should be the untouched base of step 0, but is not" if untouched else "is the base, unchanged"
        raise UserError(f"{directory} {told}; it was not trained or not saved")


def load(directory: Path, scale: float, base: Base, dtype: str, device: str) -> Any:
    """The changed model, in eval mode, no gradient, its difference from the base times `scale`."""
    import torch

    model = from_directory("model", str(directory), dtype if scale == 1.0 else "float32", "cpu")
    if scale != 1.0:
        others = _places(Path(fetched(base)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                start = _tensor(others[name], name).float()
                parameter.copy_(start + scale * (parameter - start))
    return model.to(device, getattr(torch, dtype))


def _places(directory: Path) -> dict[str, Path]:
    """Tensor name -> its file."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); save or fetch the model again") from None
    return found


def _tensor(path: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def _told(tensor: Any) -> str:
    return " x ".join(map(str, tensor.shape))
