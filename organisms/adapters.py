"""Adapters that exist already: found in a directory or on the hub, and refused where they do not fit their base."""

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from organisms.adapter_check import WEIGHTS, validate_adapter
from organisms.adapter_config import CONFIG, read_config
from organisms.errors import UserError, first_line
from organisms.files import cache_dir, digest, file_sha256, named_path, write_json
from organisms.folders import staged
from organisms.hub import snapshot
from organisms.models import Base, reading_errors, unreadable

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>[\w./-]+))?")
PICKLED = "adapter_model.bin"
# What stands before the layers of a language model, by the class that wraps it: multimodal now, multimodal before
# transformers 4.52, its head, text only, the bare backbone. Longer ones first.
WRAPPERS = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was found. `directory` holds its configuration; a hub adapter's weights are fetched by `prepared`."""

    name: str
    directory: Path
    config: dict[str, Any]
    repository: str | None = None
    revision: str | None = None
    folder: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of configuration and tensors, once they are here."""
        return digest([file_sha256(self.directory / name) for name in (CONFIG, WEIGHTS)])

    @property
    def told(self) -> str:
        """Rank, scale and modules in words."""
        rank, alpha = self.config["r"], self.config.get("lora_alpha", 8)
        rslora = self.config.get("use_rslora")
        modules = self.config.get("target_modules")
        where = modules if isinstance(modules, str) else _shortened(modules or ["target_parameters"])
        varied = ", varied by module" if self.config.get("rank_pattern") or self.config.get("alpha_pattern") else ""
        scale = alpha / rank**0.5 if rslora else alpha / rank
        return f"rank {rank}, {'rank-stabilised ' if rslora else ''}scale {scale:.3g}{varied}, on {where}"

    def warning(self, base: Base) -> str | None:
        """What to say where the configuration names another base than `base`."""
        trained_on = self.config.get("base_model_name_or_path")
        given = base.hub_id or base.name
        if not trained_on or _plain(trained_on) in (_plain(given), _plain(str(base.directory))):
            return None
        return f"adapter {self.name} says that it was trained on {trained_on}; its difference from {given} is what is read"


def find(name: str) -> Adapter:
    """An adapter by directory or hub id (`owner/name[@revision][/folder]`), without its weights.

    Raises UserError where there is none, where it is no LoRA, or where its weights are pickled; Missing where the hub is
    out of reach.
    """
    path = named_path(name)
    matched = HUB_ID.fullmatch(name)
    if path.is_dir() or not matched or name.startswith(("/", ".", "~")):
        found = Adapter(name, path, read_config(name, path))
        _refuse_pickled(name, path)
        return found
    repository, revision, folder = matched["repository"], matched["revision"], matched["folder"] or ""
    if ".." in folder.split("/"):
        raise UserError(f"adapter {name}: the folder {folder!r} leads out of the repository; name one inside it")
    root = Path(snapshot(repository, revision, [f"{folder}/{CONFIG}" if folder else CONFIG]))
    return Adapter(name, root / folder, read_config(name, root / folder), repository, root.name, folder)


def prepared(adapter: Adapter, base: Base, say: Callable[[str], None] = print) -> Adapter:
    """The adapter with its weights, checked against the base's modules; no weights of the base are read.

    Where it was saved from a text-only class and the base loads as a multimodal one, or the other way round, its tensors
    are renamed in a copy in the cache, and `say` is told. Raises UserError where weights are missing, pickled, not finite or
    all zero, or of another shape than the base's modules.
    """
    if adapter.repository:
        pattern = f"{adapter.folder}/{WEIGHTS}" if adapter.folder else WEIGHTS
        snapshot(adapter.repository, adapter.revision, [pattern])
        if not (adapter.directory / WEIGHTS).is_file():
            raise UserError(
                f"adapter {adapter.name}: the repository has no {pattern}: it is empty, or its weights are pickled "
                f"({PICKLED}), which are never loaded; ask its owners for safetensors"
            )
    validate_adapter(adapter.directory)
    modules = module_shapes(base)
    names = _tensor_shapes(adapter.directory / WEIGHTS)
    renamed = {module: _in_base(module, modules) for module in map(_module, names)}
    lost = sorted(module for module, target in renamed.items() if target is None)
    if lost:
        raise UserError(
            f"adapter {adapter.name}: the base {base.name} has no module {lost[0]!r} ({len(lost)} of {len(renamed)} are "
            f"unknown to it); name the base it was trained on{_named(adapter)}"
        )
    _check_shapes(adapter, base, names, renamed, modules)
    _check_whole(adapter, renamed, modules)
    moved = {old: new for old, new in renamed.items() if old != new}
    if not moved:
        return adapter
    old, new = next(iter(moved.items()))
    say(f"  adapter {adapter.name}: {len(moved)} modules are renamed to fit the base's class, e.g. {old} -> {new}")
    return dataclasses.replace(adapter, directory=_renamed_copy(adapter, moved))


def module_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Weight shapes of the base's modules by name, of the class that the engine loads; nothing is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(base.directory, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except reading_errors() as error:
        raise unreadable(f"base {base.name}", base.directory, error) from None
    parameters = ((name.removesuffix(".weight"), p) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: tuple(parameter.shape) for name, parameter in parameters}


def _refuse_pickled(name: str, directory: Path) -> None:
    if (directory / PICKLED).is_file() and not (directory / WEIGHTS).is_file():
        convert = (
            "import sys, torch; from safetensors.torch import save_file as save; "
            "tensors = torch.load(sys.argv[1], weights_only=True); "
            "save({k: v.contiguous() for k, v in tensors.items()}, sys.argv[2])"
        )
        raise UserError(
            f"adapter {name}: {PICKLED} is a pickle, which can run code when it is read; if you trust it, convert it once: "
            f'.venv/bin/python -c "{convert}" {PICKLED} {WEIGHTS}'
        )


def _tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}


def _module(tensor: str) -> str:
    """`base_model.model.model.layers.0.mlp.up_proj.lora_A.weight` -> `model.layers.0.mlp.up_proj`."""
    name = tensor.removeprefix("base_model.model.")
    return name.partition(".lora_")[0] if ".lora_" in name else name.removesuffix(".weight")


def _in_base(module: str, modules: dict[str, Any]) -> str | None:
    """The base's name of an adapter's module: the same, or the same behind another wrapper; None where it has none."""
    if module in modules:
        return module
    rests = [module.removeprefix(wrapper) for wrapper in WRAPPERS if module.startswith(wrapper)]
    return next((wrapper + rest for rest in rests for wrapper in WRAPPERS if wrapper + rest in modules), None)


def _check_shapes(adapter: Adapter, base: Base, names: dict, renamed: dict, modules: dict) -> None:
    from peft.utils.other import get_pattern_key

    pattern = adapter.config.get("rank_pattern") or {}
    odd = next((n for n, shape in names.items() if n.endswith(("lora_A.weight", "lora_B.weight")) and len(shape) != 2), None)
    if odd:
        raise UserError(f"adapter {adapter.name}: {odd} has the shape {names[odd]}, but a LoRA matrix has two dimensions")
    for name, (rank, width) in ((n, shape) for n, shape in names.items() if n.endswith("lora_A.weight") and len(shape) == 2):
        module = _module(name)
        height, inner = names[name.replace("lora_A", "lora_B")]
        declared = pattern.get(get_pattern_key(pattern, module), adapter.config["r"])
        expected = modules[renamed[module]]
        if (height, width) not in (expected, expected[::-1]):
            raise UserError(
                f"adapter {adapter.name}: {module} changes {height} x {width} weights, but that of the base {base.name} has "
                f"{' x '.join(map(str, expected))}; name the base it was trained on{_named(adapter)}"
            )
        if not rank == inner == declared:
            raise UserError(
                f"adapter {adapter.name}: {module} has A of rank {rank} and B of rank {inner}, but {CONFIG} states {declared}; "
                "the two files do not belong together"
            )


def _check_whole(adapter: Adapter, renamed: dict[str, str], modules: dict[str, Any]) -> None:
    """Refuse a file in which some layers' tensors are missing: sharded trainers have saved such files.

    A module is missing where the configuration asks for it and the file has its like in another layer.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    known = {key: value for key, value in adapter.config.items() if key in LoraConfig.__dataclass_fields__}
    try:
        config = LoraConfig(**known)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{adapter.directory / CONFIG}: PEFT refuses it ({first_line(error)}); fetch it again") from None
    theirs = {new: old for old, new in renamed.items()}
    kinds = {_kind(module): _prefixes(old, module) for old, module in renamed.items()}
    for module in modules:
        if module in theirs or _kind(module) not in kinds:
            continue
        old, new = kinds[_kind(module)]
        own = old + module.removeprefix(new)
        if check_target_module_exists(config, own):
            raise UserError(
                f"adapter {adapter.name}: {CONFIG} asks for {own}, which has no tensors in {WEIGHTS}: it was saved incomplete "
                "(by one process of several?); save or fetch it again"
            )


def _kind(module: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", module)


def _prefixes(old: str, new: str) -> tuple[str, str]:
    """What stands before the common end of two names."""
    common = os.path.commonprefix([old[::-1], new[::-1]])[::-1]
    return old.removesuffix(common), new.removesuffix(common)


def _renamed_copy(adapter: Adapter, moved: dict[str, str]) -> Path:
    from safetensors.torch import load_file, save_file

    target = cache_dir() / "adapters" / digest([adapter.fingerprint, moved])
    if (target / WEIGHTS).is_file():
        return target
    tensors = {}
    for name, tensor in load_file(adapter.directory / WEIGHTS).items():
        module = _module(name)
        tensors[name.replace(module, moved.get(module, module), 1)] = tensor
    # Full names: a suffix could also match modules of the vision tower.
    touched = sorted({_module(name) for name in tensors if ".lora_" in name})
    patterns = {
        kind: {moved.get(key, key): value for key, value in (adapter.config.get(kind) or {}).items()}
        for kind in ("rank_pattern", "alpha_pattern")
    }
    selected = {"target_modules": touched, "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    with staged(target, replace=False) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        write_json(staging / CONFIG, {**adapter.config, **patterns, **selected})
    return target


def _plain(name: str) -> str:
    """The last part of a base's name, without revision, case, and the marks of quantised copies."""
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", name.partition("@")[0].rstrip("/").rpartition("/")[2].lower())


def _named(adapter: Adapter) -> str:
    trained_on = adapter.config.get("base_model_name_or_path")
    return f" ({trained_on}, by its {CONFIG})" if trained_on else ""


def _shortened(modules: list[str]) -> str:
    names = sorted({module.rpartition(".")[2] for module in modules})
    return ", ".join(names)
