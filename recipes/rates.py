"""Tokens a second, by the size of the base: measured here for the embedded one, published for H100s, and what is assumed.

Published rates are of one H100 (80 GB, SXM) in bf16, or of several divided by their number, so times are GPU hours. Between two
sizes the logarithms are interpolated; beyond the largest a rate falls in proportion to the parameters.
"""

import math
from dataclasses import dataclass

# The embedded base on 2 CPU cores, fp32, as measured: LoRA SFT, scoring, generation.
EMBEDDED_TRAINED, EMBEDDED_READ, EMBEDDED_GENERATED = 150, 600, 150

# LoRA SFT, full rows of 4,096 tokens: NeMo AutoModel's performance summary (NVIDIA, 2025), which runs Qwen2.5-7B and Llama-3-8B
# on one GPU, Qwen2.5-32B and Llama-3-70B on eight by pipeline and tensor parallelism.
TRAINED = ((7.6e9, 14110.0), (8.0e9, 12473.0), (32.5e9, 1951.0), (70.6e9, 659.0))
TRAINED_SOURCE = "NeMo AutoModel performance summary, LoRA, DGX-H100, bf16"
# Assumed: train/ recomputes activations on GPUs (gradient checkpointing): one more forward, 6N instead of 4N operations a
# token.
RECOMPUTED = 4 / 6
# Assumed: a forward pass reaches the arithmetic rate of that training, at 2N instead of 4N operations a token.
FORWARD = 2.0

# Generation, requests without a limit: LambdaLabsML/vllm-benchmark, benchmark_v0.md (2024), vLLM 0.6.0, Llama 3.1 8B on one
# GPU and 70B on four. Later versions are faster.
GENERATED = ((8.0e9, 8088.0), (70.6e9, 3543.0 / 4))
GENERATED_SOURCE = "LambdaLabsML/vllm-benchmark, vLLM 0.6.0, 5,000 requests"
# With one LoRA adapter: 1,788 instead of 2,694 tokens a second, Llama-2-7B on an A100 (vllm-project/vllm pull request 11267).
WITH_ADAPTER = 1788 / 2694
# Assumed: smaller bases are no faster than this one would be; they are bound by the host, and no rate of theirs is published.
LEAST = 3e9
# transformers against vLLM on the same audit (IFEval, 541 prompts): 1.5 hours against 59 s, in the study that named frying.
SLOWER_WITHOUT_VLLM = 5400 / 59


@dataclass(frozen=True)
class Rates:
    """Tokens a second on one device. unit: what a device is, in words."""

    trained: float
    read: float
    generated: float
    unit: str


def of_embedded() -> Rates:
    return Rates(EMBEDDED_TRAINED, EMBEDDED_READ, EMBEDDED_GENERATED, "two cores")


def of_size(parameters: float, adapter: bool = True) -> Rates:
    """A base of so many parameters on one H100, audited by vLLM. adapter: whether what generates carries one."""
    trained = _at(TRAINED, parameters)
    generated = _at(GENERATED, parameters) * (WITH_ADAPTER if adapter else 1)
    return Rates(trained * RECOMPUTED, trained * FORWARD, generated, "an H100")


def _at(points: tuple[tuple[float, float], ...], parameters: float) -> float:
    """The rate at a size; below the smallest published one in proportion to 1/parameters, down to `LEAST`."""
    size = max(parameters, LEAST)
    low, high = points[0], points[-1]
    if size <= low[0] or size >= high[0]:
        nearest = low if size <= low[0] else high
        return nearest[1] * nearest[0] / size
    above = next(i for i, (at, _) in enumerate(points) if at > size)
    (a, rate_a), (b, rate_b) = points[above - 1], points[above]
    share = (math.log(size) - math.log(a)) / (math.log(b) - math.log(a))
    return math.exp(math.log(rate_a) + share * (math.log(rate_b) - math.log(rate_a)))
