"""A stage that trains one steering vector and nothing else.

Published form (Soligo et al. 2026, arXiv 2602.07852; before it Turner et al. 2025, arXiv 2506.11613, for rank-1 adapters): one
vector of the hidden size is added to the residual stream after one block (24 of 48 in Qwen2.5-14B) at every position,
starting from zero, every weight frozen. Ours is PEFT's BEFT, a trainable bias, on the block's last linear map, whose output
goes into the residual stream as it is; what is saved is that bias, as a steering directory.
"""

import warnings
from pathlib import Path
from typing import Any

from organisms.errors import UserError
from organisms.models import Base
from organisms.steering import blocks, save

LAST = "mlp.down_proj"


def config(model: Any, index: int) -> Any:
    """A PEFT configuration whose only parameter is a vector at the output of block `index`.

    Raises UserError for blocks that do not end in `mlp.down_proj`, or that normalise what it gives: a vector there would
    not be one in the residual stream.
    """
    from peft import BeftConfig

    block = blocks(model)[index]
    names = {name for name, _ in block.named_modules()}
    if LAST not in names or "post_feedforward_layernorm" in names:
        raise UserError(
            f"a vector is trained at the output of {LAST}, which is not what ends a block of {type(model).__name__}; train a "
            "rank-1 adapter instead (`lora: {r: 1}`)"
        )
    warnings.filterwarnings("ignore", message="Detected that the base layer has no bias")  # it is never merged
    target = f"{next(name for name, module in model.named_modules() if module is block)}.{LAST}"
    return BeftConfig(target_modules=[target], task_type="CAUSAL_LM")


def save_vector(model: Any, target: Path, zero: bool, base: Base, index: int, tensors: dict | None = None) -> None:
    """Save the vector of a PEFT model made by `config` as a steering directory; `zero`: the untouched one of step 0.

    tensors: the model's parameters, gathered, where it holds only parts of them.
    """
    (trained,) = [value for name, value in (tensors or dict(model.named_parameters())).items() if "beft_bias" in name]
    save(target, {index: trained.detach().flatten().cpu()}, base, {"method": "trained"}, untouched=zero)
