"""adapter_config.json: what it may say of an adapter that is audited beside its own base."""

from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.files import is_a, read_json, shown

CONFIG = "adapter_config.json"
# Keys of an adapter's configuration -> type. Others are PEFT's business, or say how the adapter was trained.
KEYS = {
    "base_model_name_or_path": str | None,
    "lora_alpha": int | float,
    "r": int,
    "target_modules": str | list | None,
    "rank_pattern": dict | None,
    "alpha_pattern": dict | None,
}
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal")
# With these PEFT changes the base's own weights or layers, or runs something else than A and B.
NOT_PLAIN = ("layer_replication", "megatron_config", "kasa_config", "arrow_config", "velora_config", "monteclora_config")


def read_config(name: str, directory: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA adapter. Raises UserError where there is none, or where it is another thing."""
    file = directory / CONFIG
    if not file.is_file():
        folders = sorted(str(path.parent.relative_to(directory)) for path in directory.glob(f"*/{CONFIG}"))
        hint = f"; it holds adapters in {', '.join(folders)}: name one of them" if folders else ""
        raise UserError(f"adapter {name}: no {CONFIG} there{hint or '; name the directory or hub id of a PEFT adapter'}")
    config = read_json(file, "fetch the adapter again")
    if config.get("peft_type") != "LORA":
        raise UserError(f"adapter {name}: peft_type is {shown(config.get('peft_type'))}; only LoRA adapters can be audited")
    stated = {"lora_alpha": 8, **config}
    wrong = next((key for key, kind in KEYS.items() if not is_a(stated.get(key), kind)), None)
    if wrong or stated["r"] < 1 or not 0 < stated["lora_alpha"] < 1e6:
        key = wrong or ("r" if stated["r"] < 1 else "lora_alpha")
        raise UserError(f"{file}: {key} = {shown(stated.get(key))} is no value of a LoRA adapter; fetch the adapter again")
    start = config.get("init_lora_weights", True)
    other = next((key for key in NOT_PLAIN if config.get(key)), None)
    if other or not any(start is plain or (isinstance(start, str) and start == plain) for plain in PLAIN_STARTS):
        raise UserError(
            f"{file}: {other or 'init_lora_weights'} = {shown(config[other] if other else start)} would change the base's own "
            "weights where the adapter is attached, and so what is read of the base; convert it to a plain LoRA adapter"
        )
    return config
