"""What a run costs, estimated before it starts: time on two cores for the embedded base, GPU hours for anything larger."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from audit.measures import Asked
from organisms import models
from organisms.engines import Divergence, Generate, NextToken, Score
from organisms.engines.prefixes import distinct
from organisms.errors import UserError
from recipes import rates
from recipes.rates import Rates
from train.config import Stage
from train.sft import packs

if TYPE_CHECKING:
    from recipes.counting import Count

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
    """(tokens to generate at most, tokens to read where what prompts begin with alike is read once)."""
    generated = sum(a.request.max_new_tokens for a in asked if isinstance(a.request, Generate))
    scored = [a.request for a in asked if isinstance(a.request, (Score, NextToken, Divergence))]
    # The token before a continuation is read for each request: its logits are wanted.
    prompts = distinct([request.prompt_ids[:-1] for request in scored]) + len(scored)
    return generated, prompts + sum(len(getattr(request, "continuation_ids", ())) for request in scored)


@dataclass(frozen=True)
class Hours:
    """Device hours of a run: of one audit, of training, and of what has to be written before. unit: what a device is."""

    audit: float
    training: float
    writing: float
    specimens: int
    unit: str

    @property
    def total(self) -> float:
        return self.specimens * self.audit + self.training + self.writing


def rates_of(name: str, base: models.Base | None = None, adapter: bool = True) -> Rates | None:
    """Of a base by its name; None where its size is not known."""
    if name == models.EMBEDDED:
        return rates.of_embedded()
    try:
        parameters = models.SIZES.get(name.partition("@")[0]) or models.parameter_count(base or models.resolve(name))
    except UserError:
        return None
    return rates.of_size(parameters, adapter) if parameters else None


def hours(base: models.Base, count: "Count") -> Hours | None:
    """What a run costs; None where the size of the base is not known. Writing by an author of unknown size is left out."""
    found = rates_of(base.name, base)
    if found is None:
        return None
    writing = 0.0
    for author, tokens in count.written:
        author_rates = rates_of(author, base if author == base.name else None, adapter=False)
        writing += tokens / author_rates.generated / 3600 if author_rates else 0.0
    audit = (count.generated / found.generated + count.scored / found.read) / 3600
    return Hours(audit, count.trained / found.trained / 3600, writing, count.specimens, found.unit)


def told(base: models.Base, count: "Count") -> str:
    """The estimate in words."""
    audit = f"an audit generates up to {count.generated:,} tokens and scores {count.scored:,}"
    found = hours(base, count)
    if found is None:
        return f"{audit}; {count.trained:,.0f} tokens are trained; the size of {base.name} is not known"
    if base.name == models.EMBEDDED:
        return (
            f"{audit}; on two cores about {found.audit * 3600:.0f} s each, {found.specimens * found.audit * 60:.0f} min for "
            f"{found.specimens} specimens; training about {found.training * 60:.0f} min"
        )
    return (
        f"{audit}; estimated in H100 hours, audited by vLLM (recipes/rates.py): {found.audit:.2g} each, "
        f"{found.specimens * found.audit:.2g} for {found.specimens} specimens; training {count.trained:,.0f} tokens "
        f"{found.training:.2g}"
    )


def writing(model: str, tokens: int) -> str:
    """How long a local model takes to write so many tokens, in words; nothing where its size is not known."""
    found = rates_of(model, adapter=False)
    if found is None:
        return ""
    seconds = tokens / found.generated
    return f", about {seconds:.0f} s on two cores" if model == models.EMBEDDED else f", about {seconds / 3600:.2g} H100 hours"


def memory(base: models.Base, held: bool = False, whole: bool = False, audits: bool = True) -> str:
    """Bytes that copies of the base take in the training process: the trainer's, and the engine's where it audits as it goes.

    held: a penalty holds to one more. whole: all weights are trained, in float32 beside their gradients and Adam's two means,
    and the engine reads the changed model beside the base.
    """
    parameters = models.parameter_count(base)
    if parameters is None:
        return "not known"
    # 4 bytes a weight on a CPU; bf16 on the GPUs that anything larger wants.
    size, kind = (4, "fp32") if parameters < 1e9 else (2, "bf16")
    shown = f"{parameters / 1e6:.0f}M" if parameters < 1e9 else f"{parameters / 1e9:.1f}B"
    if whole:
        copies = ["base and changed model for audits"] * audits + ["what it is held to"] * held
        total = (16 + size * (2 * audits + held)) * parameters
        beside = f", {', '.join(copies)} in {kind}" if copies else ""
        return (
            f"about {total / 1e9:.1f} GB: all {shown} parameters, their gradients and Adam's means in fp32{beside}, plus "
            "activations"
        )
    who = ["trainer"] + ["what it is held to"] * held + ["audit engine"] * audits
    number = {1: "one copy", 2: "two copies", 3: "three copies"}[len(who)]
    listed = " and ".join([", ".join(who[:-1]), who[-1]] if len(who) > 1 else who)
    return (
        f"about {len(who) * size * parameters / 1e9:.1f} GB: {number} of the base ({shown} parameters, {listed}) in {kind}, "
        "plus activations"
    )
