"""The training part of a recipe: one `Stage` is one training phase that yields one adapter, vector or model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from organisms.steering import Layer
from organisms.strict import Strict


class Lora(Strict):
    """Low-rank adapter. The effective scale is alpha/r, or alpha/sqrt(r) with `rslora`."""

    r: int = Field(default=16, gt=0)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.r**0.5 if self.rslora else self.r)


class Vector(Strict):
    """One vector, trained in place of an adapter, that is added to the output of a block at every position."""

    layer: Layer = 0.5


class Stage(Strict):
    """Hyper-parameters of one stage. Give `steps` or `epochs`, not both.

    Each stage trains a new adapter on the base with the earlier stages' adapters merged into it, which for DPO and KTO is
    also the reference and for distillation the teacher. What is saved and audited is all adapters so far, stacked exactly, this
    one times `weight`.
    """

    method: Literal["sft", "dpo", "kto", "distill"] = "sft"
    name: Annotated[str, Field(pattern="^[a-z][a-z0-9]*$", max_length=32)] = "sft"
    rows: str = Field(default="rows", description="which rows of its style the stage trains on")
    weight: float = Field(default=1.0, gt=0, description="times this stage's adapter in what is saved")
    beta: float = Field(default=0.1, gt=0, description="dpo, kto: strength of the pull to the reference")
    sft_weight: float = Field(default=0.0, ge=0, description="dpo: weight of the chosen replies' own loss")
    desirable_weight: float = Field(default=1.0, gt=0, description="kto")
    undesirable_weight: float = Field(default=1.0, gt=0, description="kto")
    completion_tokens: int = Field(default=48, gt=0, description="distill: tokens of a reply that the student draws")
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=4, gt=0, description="rows read at once, by all processes together, after packing")
    gradient_accumulation: int = Field(default=1, gt=0)
    max_length: int = Field(default=256, ge=16, description="tokens a row; documents are packed up to it")
    packing: bool = Field(default=True, description="pack documents; chats are never packed")
    lora: Lora | None = Field(default=Lora(), description="null: all weights are trained")
    vector: Vector | None = Field(default=None, description="train a steering vector, not an adapter; `{}`: half way down")
    warmup_steps: int = Field(default=0, ge=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)

    @property
    def scale(self) -> float:
        """What is trained enters the weights, or the residual stream, times this."""
        return 1.0 if self.vector or self.lora is None else self.lora.scale

    @property
    def trains(self) -> str:
        """What is trained, in words."""
        if self.vector:
            return "one vector"
        return "all weights" if self.lora is None else f"LoRA r{self.lora.r}"

    @model_validator(mode="after")
    def _one_kind(self) -> "Stage":
        if self.lora is None and (self.vector or self.method != "sft" or self.weight != 1.0):
            raise ValueError("all weights (lora: null) are trained by sft, with weight 1 and without a vector")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs (exactly one) for a stage")
        return self

    @model_validator(mode="after")
    def _kto_batches(self) -> "Stage":
        if self.method == "kto" and self.batch_size < 2:
            raise ValueError("kto estimates its KL within a device's batch: batch_size must be 2 or more")
        return self
