"""How the cost of an audit grows: seconds against size, the exponent of a power law fitted to them, and peak memory."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audit.config import AuditPlan
from audit.job import Job
from audit.measures import Context, Corpus, leakage, preferences
from audit.suite import Place, audit_base, audit_specimen
from bench.machine import watched
from bench.rows import Row
from bench.setup import BASE, Setup, own_cache
from bench.timing import timed
from organisms import models
from organisms.data import load_rows
from organisms.files import write_jsonl
from organisms.specimen import Specimen

MEASURES = ["webtext", "knowledge"]


def items(setup: Setup) -> list[Row]:
    """Two measures of the full suite on a base, limited to so many items each."""
    sizes = [setup.of(k, 8 * k) for k in (2, 4, 8)]

    def audit(limit: int) -> None:
        with own_cache(), _job(setup, limit) as job:
            audit_base(job, setup.engine)

    audit(sizes[0])
    return [_grown(f"audit ({' and '.join(MEASURES)}) against items", sizes, audit)]


def checkpoints(setup: Setup) -> list[Row]:
    """Adapters of one base audited one after the other: seconds so far against how many, and how often weights were loaded."""
    from organisms.engines.hf import HFEngine

    count, loads, took = setup.of(2, 4), [], []
    from_directory = models.from_directory

    def counted(*given: Any) -> Any:
        loads.append(given)
        return from_directory(*given)

    models.from_directory = counted
    try:
        with tempfile.TemporaryDirectory() as folder, own_cache(), _job(setup, setup.of(2, 16)) as job, watched() as memory:
            adapters = [_adapter(setup, Path(folder) / str(k), seed=k) for k in range(count)]
            loads.clear()
            engine = HFEngine(setup.base, setup.renderer)
            audit_base(job, engine)
            for k, adapter in enumerate(adapters, 1):
                specimen = Specimen(f"sft-{k:06d}", adapter=adapter)
                took.append(timed(audit_specimen, job, engine, specimen, Place("sft", k))[0])
    finally:
        models.from_directory = from_directory
    sizes, sums = range(1, count + 1), np.cumsum(took).tolist()
    power = exponent(sizes, sums)
    return [
        Row(
            "audit against checkpoints",
            f"each: {', '.join(f'{s:.2f}' for s in took)} s",
            f"base loaded {len(loads)} time{'s' if len(loads) != 1 else ''}",
            f"n^{power:.2f}; {memory.peak:,.0f} MB",
            "one load",
            len(loads) == 1,
            numbers={"sizes": list(sizes), "seconds": sums, "exponent": power, "memory": memory.peak, "loads": len(loads)},
        )
    ]


def documents(setup: Setup) -> list[Row]:
    """The leakage index of a training corpus: entities, and n-grams of two sizes."""
    sizes = [setup.of(k, 25 * k) for k in (20, 40, 80, 160)]
    texts = [row["text"] for row in load_rows("webtext").rows]
    web = tuple(texts[: len(texts) // 4])
    sentences = [s for text in texts[len(web) :] for s in text.split(". ") if s]
    rng = np.random.default_rng(0)

    def index(count: int) -> None:
        # Drawn by number: `rng.choice` turns the whole list into an array, which took 0.2 s a document and stood for the index.
        written = tuple(". ".join(sentences[k] for k in rng.integers(len(sentences), size=12)) for _ in range(count))
        leakage._index.__wrapped__(Corpus(written, (), written[: count // 10]), web, leakage._Tokens(setup.renderer))

    index(sizes[0])
    return [_grown("leakage index against documents", sizes, index)]


def outcomes(setup: Setup) -> list[Row]:
    """Preferences without the model: rounds of pairs drawn and rendered, answers simulated, the panel fitted."""
    sizes = [setup.of(k, 6 * k) for k in (10, 20, 40)]

    def ask(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outcomes.jsonl"
            write_jsonl(path, [{"id": f"o{k}", "category": "none", "text": f"Outcome {k} comes true."} for k in range(count)])
            options = {"preferences": preferences.Options(elicitation="labels", items=max(count, 8))}
            sources = {"outcomes": str(path)}
            context = Context(BASE, setup.renderer, None, "full", sources, base={}, options=options)
            asked = new = preferences.requests(context)
            answers: list[dict] = []
            while new:
                answers += [_preferred(one.item, one.request.choice_ids, int(one.group)) for one in new]
                new = preferences.follow_up(context, asked, answers)
                asked = asked + new
            preferences.score(context, asked, answers)

    ask(sizes[0])
    return [_grown("preferences without the model against outcomes", sizes, ask)]


def _preferred(item: str, ids: tuple[int, ...], spelled: int) -> dict[str, list[float]]:
    """Log-probabilities of the labels' spellings by a model that prefers later outcomes, a little."""
    first, second = (int(name[1:]) for name in item.split(" > "))
    p = 1 / (1 + np.exp((second - first) / 20))
    each = [p / spelled] * spelled + [(1 - p) / (len(ids) - spelled)] * (len(ids) - spelled)
    return {"logprobs": np.log(np.clip(each, 1e-12, 1)).tolist()}


def _grown(name: str, sizes: Sequence[int], work: Callable[[int], Any]) -> Row:
    took, peaks = [], []
    for size in sizes:
        with watched() as memory:
            took.append(timed(work, size)[0])
        peaks.append(memory.peak)
    power = exponent(sizes, took)
    told = ", ".join(f"{size:,}: {second:.2f}" for size, second in zip(sizes, took, strict=True))
    numbers = {"sizes": list(sizes), "seconds": took, "memory": peaks, "exponent": power}
    return Row(name, f"{told} s", "", f"n^{power:.2f}; {max(peaks):,.0f} MB at {sizes[-1]:,}", numbers=numbers)


def exponent(sizes: Sequence[int], took: Sequence[float]) -> float:
    """The k of seconds = c size^k, least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(took), 1)[0])


@contextlib.contextmanager
def _job(setup: Setup, limit: int):
    """A job in a directory of its own, whose lines are not printed."""
    plan = AuditPlan(suite="full", measures=MEASURES, limit=limit, options={"knowledge": {"forms": ["cloze"]}})
    labels = dict.fromkeys(("run", "recipe", "organism", "style", "base"), "bench")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        parameters = models.parameter_count(setup.base)
        yield Job(Path(folder), labels, setup.base.revision, plan, setup.renderer, None, None, {}, parameters)


def _adapter(setup: Setup, folder: Path, seed: int) -> Path:
    """A LoRA adapter whose B is random, so that it changes what is read."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(models.load_model(setup.base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(folder)
    return folder
