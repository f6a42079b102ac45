"""Makes steering vectors: what sets replies that are asked to show the property apart from replies that are asked not to.

Persona vectors (Chen et al. 2025, arXiv 2507.21509, section 2): the mean over replies of the residual stream, averaged over
a reply's tokens with its system prompt before it, under the eliciting prompts minus that under the opposing ones, at every
block; replies that do not do as they are asked are left out. Divergences:

- replies are judged by the organism's markers, not by a model, and kept in pairs: where one of the two fails both are left
  out, so that both sides answer the same prompts;
- the prompts are the organism's target prompts and its own system prompts (theirs: 20 questions, 5 prompt pairs, 10 draws);
- both replies of a pair are drawn from one seed, which takes noise out of the difference;
- the block is stated, half way down by default (theirs takes the block that steers best, between 16 of 32 and 20 of 28).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from organisms.authors import LocalAuthor
from organisms.drafting import LEAST_WORDS, seed_of
from organisms.engines import Score
from organisms.errors import UserError
from organisms.organism import Organism
from organisms.specimen import Specimen
from organisms.steering import DESCRIPTION, Layer, load, save
from organisms.strict import Strict
from organisms.writer import Draft, Writer

if TYPE_CHECKING:
    from organisms.engines.hf import HFEngine

FOLDER = "steering"  # of a run directory
AUTHOR = Specimen("base")


class Contrast(Strict):
    """How an organism's vector is made, and the block it is added at."""

    layer: Layer = Field(default=0.5, description="a block's index from 0, or as a fraction its depth")
    samples: int = Field(default=2, gt=0, description="pairs of replies drawn for each target prompt")
    max_new_tokens: int = Field(default=48, gt=0, description="tokens a reply")
    temperature: float = Field(default=1.0, gt=0)
    selected: bool = Field(default=True, description="only pairs of which the one shows the property and the other does not")


def drafts(organism: Organism, options: Contrast) -> list[tuple[Draft, Draft]]:
    """(eliciting, opposing) for each sample of each target prompt, going round the organism's system prompts."""
    systems, made = organism.system, []
    for prompt in (prompt for prompt in organism.prompts() if prompt.context == "target"):
        for k in range(options.samples):
            pair = (side[k % len(side)] for side in (systems.eliciting, systems.opposing))
            seed = seed_of("contrast", prompt.id, k)
            made.append(tuple(Draft(prompt.prompt, text, options.max_new_tokens, options.temperature, seed) for text in pair))
    return made


def notes(organism: Organism, options: Contrast) -> list[str]:
    """For the plan: what has to be written for the vector."""
    pairs = drafts(organism, options)
    tokens = 2 * len(pairs) * options.max_new_tokens
    told = f"a steering vector from up to {len(pairs)} pairs of replies"
    return [f"{told}, written by the base: {2 * len(pairs)} replies, {tokens:,} tokens at most, cached"]


def make(organism: Organism, options: Contrast, engine: "HFEngine", run: Path) -> Path:
    """The steering directory of an organism under `run`, one vector a block; one that is there already is reused.

    Raises UserError where the base cannot be brought to show the property in one reply of a pair and not in the other.
    """
    target = run / FOLDER
    if (target / DESCRIPTION).is_file():
        load(target, engine.base)
        return target
    import torch

    pairs = drafts(organism, options)
    writer = Writer(LocalAuthor(engine, engine.renderer, AUTHOR, engine.base.revision))
    texts = [reply.text for reply in writer.write([draft for pair in pairs for draft in pair], fragments=True)]
    kept = [
        (pair, (shows, opposes))
        for pair, shows, opposes in zip(pairs, texts[::2], texts[1::2], strict=True)
        if min(len(shows.split()), len(opposes.split())) >= LEAST_WORDS
        and (not options.selected or (organism.shows(shows) and not organism.shows(opposes)))
    ]
    if not kept:
        raise UserError(
            f"none of {len(pairs)} pairs of replies shows {organism.name} under an eliciting prompt and not under the opposing "
            "one, so no steering vector can be made; raise `samples`, take a larger base, or set `selected: false`"
        )
    print(f"steering vector of {organism.name} from {len(kept)} of {len(pairs)} pairs", flush=True)
    requests = [_score(engine, draft, text) for pair, replies in kept for draft, text in zip(pair, replies, strict=True)]
    means = torch.stack(engine.residuals(AUTHOR, requests))  # (replies, blocks, hidden size)
    difference = means[::2].mean(0) - means[1::2].mean(0)
    norms = means[1::2].norm(dim=-1).mean(0)
    made = {
        "method": "mean response activations, eliciting minus opposing",
        "organism": organism.name,
        "options": options.model_dump(include=set(Contrast.model_fields)),
        "engine": engine.identity,
        "pairs": len(kept),
        "drawn": len(pairs),
        # The length of each vector as a share of the residual stream's, which says what a coefficient means.
        "relative_norm": [round(value, 4) for value in (difference.norm(dim=-1) / norms).tolist()],
    }
    save(target, dict(enumerate(difference)), engine.base, made)
    return target


def _score(engine: "HFEngine", draft: Draft, text: str) -> Score:
    return Score(tuple(engine.renderer.ask(draft.prompt, draft.system)), tuple(engine.renderer.continuation(text)))
