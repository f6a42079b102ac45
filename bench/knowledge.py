"""MMLU beside lm-eval's HFLM: the same weights in one process, from the same texts to the four letters' log-probabilities."""

from importlib.util import find_spec
from typing import Any

from audit.measures import Context, knowledge
from bench import equal
from bench.rows import Row, Skipped, Unequal
from bench.setup import BASE, ROUNDS, Setup
from bench.timing import alternate, compared, timed
from organisms.engines import NextToken

BATCHES = (1, 16)  # of the peer, which is given the one that is faster on this machine
LETTERS = (" A", " B", " C", " D")


def zero_shot(setup: Setup) -> list[Row]:
    return [_row(setup, 0, setup.of(6, 300), 1.3)]


def five_shot(setup: Setup) -> list[Row]:
    """normal: every second subject of those that 300 items fall into, so that as many items share a subject's examples."""
    return [_row(setup, 5, setup.of(6, 300), 4.0, setup.of(1, 2, 1))]


def _row(setup: Setup, shots: int, items: int, aim: float, every: int = 1) -> Row:
    if find_spec("lm_eval") is None:
        raise Skipped("lm-eval is not installed (make install does: --no-deps lm_eval==0.4.13)")
    options = {"knowledge": knowledge.Options(forms=["untemplated"], shots=shots)}
    context = Context(BASE, setup.renderer, None, "full", {}, options=options, limit=items)
    asked = knowledge.requests(context)
    choices = asked[0].request.choice_ids
    blocks = _by_subject(
        [(one.group, setup.renderer.decode(list(one.request.prompt_ids)), one.request.prompt_ids) for one in asked], every
    )
    peer, batch = _peer(setup, blocks[0][: setup.of(2, 4 if shots else 12)], choices)

    def ours(block: list) -> list[list[float]]:
        return setup.engine.next_token(BASE, [NextToken(tuple(setup.renderer.plain(text)), choices) for _, text, _ in block])

    rounds = alternate(ours, peer, blocks, blocks[0][:4])
    told = equal.picks(sum(rounds.our_answers, []), sum(rounds.peer_answers, []), setup.tolerance)
    origin, count = context.rows("knowledge").origin, sum(map(len, blocks))
    kind = "embedded questions (no MMLU here)" if "embedded" in origin else "MMLU"
    name = f"{kind} {shots}-shot, {count} items in {ROUNDS} parts"
    return compared(name, "hf", f"lm-eval HFLM, batch {batch}", rounds, told, aim)


def _by_subject(items: list[tuple], every: int) -> list[list[tuple]]:
    """Three parts of whole subjects, so that no part divides what shares its examples; only each `every`th subject."""
    subjects = sorted({subject for subject, *_ in items})[::every]
    ends = [round(k * len(subjects) / ROUNDS) for k in range(ROUNDS + 1)]
    chosen = [set(subjects[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    return [[item for item in items if item[0] in some] for some in chosen]


def _peer(setup: Setup, trial: list[tuple], choices: tuple[int, ...]) -> tuple[Any, int]:
    """(block -> log-probabilities by HFLM, its batch size): the fastest on a few items, tokenised as ours or Unequal."""
    import logging

    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every model that is handed to it

    def asker(batch: int):
        wrapper = HFLM(pretrained=setup.model, tokenizer=setup.renderer.tokenizer, batch_size=batch)
        for _, text, ids in trial:
            if wrapper._encode_pair(text, LETTERS[3]) != (list(ids), [choices[3]]):
                raise Unequal("lm-eval tokenises the items in another way")

        def answer(block: list) -> list[list[float]]:
            pairs = [(text, letter) for _, text, _ in block for letter in LETTERS]
            instances = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
            found = wrapper.loglikelihood(instances, disable_tqdm=True)
            values = [nats for nats, _ in found]
            return [values[k : k + 4] for k in range(0, len(values), 4)]

        return answer

    sides = {batch: asker(batch) for batch in BATCHES}
    next(iter(sides.values()))(trial[:2])
    batch = min(BATCHES, key=lambda size: timed(sides[size], trial)[0])
    return sides[batch], batch
