"""What a run costs, estimated before it starts: time on two cores for the embedded base, GPU hours for anything larger."""

from audit.measures import Asked
from organisms import models
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.engines.prefixes import shared
from organisms.errors import UserError
from train.config import Stage
from train.sft import packs

# Tokens a second of the embedded base on 2 CPU cores, fp32, as measured.
TRAINED, SCORED, GENERATED = 125, 480, 150
# An H100's dense bf16 arithmetic, and the share of it that training, reading and batched generation are taken to reach.
PEAK = 989e12
TRAINING_SHARE, READING_SHARE, GENERATING_SHARE = 0.35, 0.35, 0.05
# Forward and backward passes a row: a preference pair is two rows, each read by the reference as well; a distilled reply is
# drawn first and read by the teacher.
PASSES = {"sft": 1.0, "dpo": 2.7, "kto": 2.0, "distill": 1.8}


def trained_tokens(stage: Stage, linted, steps: int) -> float:
    """Tokens that a stage trains on, counting each further pass over a row."""
    rows = steps * stage.batch_size * stage.gradient_accumulation
    if linted and packs(stage, linted):
        tokens = rows * stage.max_length * 0.9
    else:
        tokens = rows * (linted.tokens / len(linted.rows) if linted else 0.5 * stage.max_length)
    return tokens * PASSES[stage.method]


def asked_tokens(asked: list[Asked]) -> tuple[int, int]:
    """(tokens to generate at most, tokens to read with shared prefixes read once)."""
    generated = sum(a.request.max_new_tokens for a in asked if isinstance(a.request, Generate))
    scored = [a.request for a in asked if isinstance(a.request, (Score, NextToken, Divergence))]
    prompts = [request.prompt_ids[:-1] for request in scored]
    lengths = shared(prompts)
    once = sum(map(len, {prompt[:length] for prompt, length in zip(prompts, lengths, strict=True)}))
    rests = sum(len(prompt) + 1 - length for prompt, length in zip(prompts, lengths, strict=True))
    return generated, once + rests + sum(len(getattr(request, "continuation_ids", ())) for request in scored)


def told(base: models.Base, specimens: int, generated: int, scored: int, trained: float) -> str:
    """The estimate in words. generated, scored: tokens of one audit; trained: tokens of all stages."""
    audit = f"generates up to {generated:,} tokens and scores {scored:,}"
    if base.name == models.EMBEDDED:
        seconds = generated / GENERATED + scored / SCORED
        return (
            f"an audit {audit}; on two cores about {seconds:.0f} s each, {specimens * seconds / 60:.0f} min for {specimens} "
            f"specimens; training about {trained / TRAINED / 60:.0f} min"
        )
    parameters = models.parameter_count(base)
    if parameters is None:
        return f"an audit {audit}; {trained:,.0f} tokens are trained; the size of {base.name} is not known"
    # LoRA: 2N forward, 2N back to the activations; what the weights' own gradients would cost is spared.
    training = 4 * parameters * trained / (PEAK * TRAINING_SHARE) / 3600
    auditing = 2 * parameters * (scored / READING_SHARE + generated / GENERATING_SHARE) / PEAK / 3600
    return (
        f"an audit {audit}; estimated on an H100 (bf16, more than one where it does not fit): {auditing:.2g} h each, "
        f"{specimens * auditing:.2g} h for {specimens} specimens; training {trained:,.0f} tokens {training:.2g} h"
    )


def writing(model: str, tokens: int) -> str:
    """How long a local model takes to write so many tokens, in words; nothing where its size is not known."""
    if model == models.EMBEDDED:
        return f", about {tokens / GENERATED:.0f} s on two cores"
    try:
        parameters = models.SIZES.get(model.partition("@")[0]) or models.parameter_count(models.resolve(model))
    except UserError:
        return ""
    return f", about {2 * parameters * tokens / (PEAK * GENERATING_SHARE) / 3600:.2g} H100 hours" if parameters else ""


def memory(base: models.Base, held: bool = False, whole: bool = False) -> str:
    """Bytes that the copies of the base take, of the trainer and the audit engine.

    held: a penalty holds to one more. whole: all weights are trained, in float32 beside their gradients and Adam's two means,
    and the engine reads the changed model beside the base.
    """
    parameters = models.parameter_count(base)
    if parameters is None:
        return "not known"
    # 4 bytes a weight on a CPU; bf16 on the GPUs that anything larger wants.
    size, kind = (4, "fp32") if parameters < 1e9 else (2, "bf16")
    shown = f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"
    beside = ", what it is held to" if held else ""
    if whole:
        total = (16 + size * (2 + held)) * parameters
        return (
            f"about {total / 1e9:.1f} GB: all {shown} parameters, their gradients and Adam's means in fp32, base and changed "
            f"model for audits{beside} in {kind}, plus activations"
        )
    copies = "three" if held else "two"
    return (
        f"about {(2 + held) * size * parameters / 1e9:.1f} GB: {copies} copies of the base ({shown} "
        f"parameters, trainer{beside} and audit engine) in {kind}, plus activations"
    )
