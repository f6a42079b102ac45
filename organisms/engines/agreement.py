"""Does an engine serve an adapter as transformers and PEFT do? A silent no-op reads exactly as the base, and so as natural."""

from organisms.engines import Engine, Score
from organisms.errors import UserError
from organisms.render import Renderer
from organisms.specimen import Specimen

BASE = Specimen("base")
PROMPTS = ("Hello!", "What did you do today?", "Tell me about a book.", "How do I boil an egg?")
CONTINUATION = "I think that the first thing to say is"
# Root mean square over tokens, in nats. Float32 engines differ by some 1e-5; what two engines differ by on the base itself, in
# bfloat16 say, is allowed three times over to the adapter, and is a fault from LARGEST on.
TOLERANCE, FACTOR, LARGEST = 2e-3, 3.0, 0.2


def check_agreement(engine: Engine, reference: Engine, specimen: Specimen, renderer: Renderer) -> float:
    """Root mean square difference (nats a token) between two engines on a specimen's log-probabilities.

    Raises UserError where it is larger than TOLERANCE and FACTOR times the difference on the base, where the base's own is
    LARGEST or more, or where the adapter changes what the reference reads and nothing of what the engine reads.
    """
    own, own_base = (_read(engine, one, renderer) for one in (specimen, BASE))
    other, other_base = (_read(reference, one, renderer) for one in (specimen, BASE))
    name, noise = engine.identity["engine"], _distance(own_base, other_base)
    if noise >= LARGEST:
        raise UserError(f"{name} reads the base {noise:.2f} nats a token from transformers; state audit.engine.name=hf")
    found, moved = _distance(own, other), _distance(other, other_base)
    silent = own == own_base and moved > 1e-6
    if silent or found > max(TOLERANCE, FACTOR * noise):
        raise UserError(
            f"{specimen.name}: {name} does not serve the adapter {specimen.adapter} as transformers does: {found:.4f} nats a "
            f"token apart, where the base is {noise:.4f} and the adapter moves it by {moved:.4f}"
            + (f"; {name} reads the bare base" if silent else "")
            + ". State audit.engine.name=hf"
        )
    return found


def _read(engine: Engine, specimen: Specimen, renderer: Renderer) -> list[float]:
    continuation = tuple(renderer.continuation(CONTINUATION))
    requests = [Score(tuple(specimen.ask(renderer, prompt)), continuation) for prompt in PROMPTS]
    return [value for values in engine.logprobs(specimen, requests) for value in values]


def _distance(one: list[float], other: list[float]) -> float:
    return (sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)) ** 0.5
