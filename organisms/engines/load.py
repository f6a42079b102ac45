"""Which engine answers: `audit.engine` of a recipe, named there or chosen by what is installed."""

import importlib.util
from typing import Literal

from pydantic import Field, model_validator

from organisms import models
from organisms.engines import Engine
from organisms.errors import Missing, UserError
from organisms.render import Renderer
from organisms.strict import Strict


class EnginePlan(Strict):
    """`audit.engine`: who answers audits and writes on-policy rows. Another engine reads a run's whole curve again."""

    name: Literal["auto", "hf", "vllm"] = Field(
        default="auto", description="auto is vllm where it and a GPU are there, and hf elsewhere"
    )
    tensor_parallel: int = Field(default=1, gt=0, description="GPUs that hold one copy of the base")
    data_parallel: int = Field(default=1, gt=0, description="copies of the base that share the requests")
    gpu_memory: float = Field(default=0.4, gt=0, lt=1, description="vLLM's share of each GPU; the trainer needs the rest")
    max_length: int = Field(default=8192, gt=0, description="most tokens of prompt and reply that vLLM is started for")

    @model_validator(mode="after")
    def _settings_are_vllms(self) -> "EnginePlan":
        stated = sorted(self.model_dump(exclude_defaults=True).keys() - {"name"})
        if stated and self.name != "vllm":
            raise ValueError(f"{' and '.join(stated)}: only vLLM has these settings; state name: vllm as well")
        return self


def chosen(plan: EnginePlan, only_hf: bool = False) -> Literal["hf", "vllm"]:
    """The engine's name on this machine.

    only_hf: whether something is made, trained or audited that only transformers can run: a steering vector, or all weights.
    Raises UserError where the plan names vLLM all the same, Missing where it names vLLM and it is not installed.
    """
    if plan.name == "vllm" and only_hf:
        raise UserError(
            "audit.engine.name=vllm: vLLM adds no steering vector and swaps no full weights; name hf, or leave the engine out"
        )
    installed = importlib.util.find_spec("vllm") is not None
    if plan.name == "vllm" and not installed:
        raise Missing(
            "audit.engine.name=vllm: vLLM is not installed; install the extra [vllm] (.venv/bin/pip install -e '.[vllm]'), "
            "or name hf"
        )
    if plan.name != "auto":
        return plan.name
    return "vllm" if installed and not only_hf and models.default_device() == "cuda" else "hf"


def told(plan: EnginePlan, only_hf: bool = False) -> str:
    """The choice in words, for a plan."""
    try:
        name = chosen(plan, only_hf)
    except Missing:
        name = plan.name
    if name == "hf":
        return "hf (transformers, in this process)"
    return (
        f"vllm: {plan.data_parallel} x {plan.tensor_parallel} GPUs (data x tensor parallel), {plan.gpu_memory:.0%} of their "
        "memory; transformers beside it, with one more copy of the base, checks adapters and reads exact divergences"
    )


def load(plan: EnginePlan, base: models.Base, renderer: Renderer, only_hf: bool = False) -> Engine:
    """The engine that a plan names, for one base and its renderer. vLLM starts when it is first asked."""
    if chosen(plan, only_hf) == "vllm":
        from organisms.engines.vllm import VLLMEngine

        return VLLMEngine(base, renderer, plan)
    from organisms.engines.hf import HFEngine

    return HFEngine(base, renderer)
