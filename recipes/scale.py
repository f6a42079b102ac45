"""python -m recipes.scale: what the study's grid and 1,000 organisms cost, as the tables of docs/scale.md.

Tokens are counted from recipes/sweeps/study.yaml by what each run would ask and train on; rates are those of recipes/rates.py.
"""

import argparse
from collections import Counter as Tally
from dataclasses import dataclass

from organisms import models
from organisms.errors import run_cli
from recipes import cost, grid, rates
from recipes.counting import Count, Measured
from recipes.grid import Cell
from recipes.recipe import Resolved
from recipes.sweep_check import count

MANY = 1000
GPUS = (8, 64)
FEWER_CHECKPOINTS, FEWER_ITEMS = 3, 300
# Hidden size, layers, inner size, heads, key-value heads, head size, vocabulary, tied embeddings: each base's config.json.
SHAPES = {
    "Qwen/Qwen2.5-0.5B-Instruct": (896, 24, 4864, 14, 2, 64, 151936, True),
    "meta-llama/Llama-3.2-1B-Instruct": (2048, 16, 8192, 32, 8, 64, 128256, True),
    "google/gemma-3-4b-it": (2560, 34, 10240, 8, 4, 256, 262208, True),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 28, 18944, 28, 4, 128, 152064, False),
    "meta-llama/Llama-3.1-8B-Instruct": (4096, 32, 14336, 32, 8, 128, 128256, False),
    "Qwen/Qwen3-8B": (4096, 36, 12288, 32, 8, 128, 151936, False),
    "Qwen/Qwen2.5-14B-Instruct": (5120, 48, 13824, 40, 8, 128, 152064, False),
    "Qwen/Qwen3-14B": (5120, 40, 17408, 40, 8, 128, 151936, False),
    "Qwen/Qwen2.5-32B-Instruct": (5120, 64, 27648, 40, 8, 128, 152064, False),
    "meta-llama/Llama-3.3-70B-Instruct": (8192, 80, 28672, 64, 8, 128, 128256, False),
}


@dataclass(frozen=True)
class Sized:
    """One cell of the grid with its tokens."""

    cell: Cell
    resolved: Resolved
    count: Count

    @property
    def base(self) -> str:
        return self.resolved.recipe.base

    @property
    def checkpoints(self) -> int:
        return self.count.specimens - 1  # without the base

    def hours(self, slower: float = 1.0) -> dict[str, float]:
        """H100 hours by what they go to. slower: how many times longer generation takes."""
        found = rates.of_size(models.SIZES[self.base])
        whole = cost.hours(self.resolved.base, self.count)
        generating, reading = self.count.generated / found.generated / 3600, self.count.scored / found.read / 3600
        return {
            "writing": whole.writing,
            "training": whole.training,
            "generating": self.checkpoints * generating * slower,
            "reading": self.checkpoints * reading,
        }

    @property
    def disk(self) -> int:
        """Bytes of the adapters that its run keeps, four a number; those of chained stages stand stacked in the later ones."""
        ranks = sum(stage.lora.r for stage in self.resolved.recipe.stages)
        return self.checkpoints * 4 * adapter(SHAPES[self.base], ranks)


def adapter(shape: tuple, rank: int) -> int:
    """Numbers in a LoRA adapter on all linear layers of a base."""
    hidden, layers, inner, heads, kv, size, _, _ = shape
    sides = [(hidden, heads * size), (hidden, kv * size), (hidden, kv * size), (heads * size, hidden)]
    sides += [(hidden, inner), (hidden, inner), (inner, hidden)]
    return layers * rank * sum(a + b for a, b in sides)


def sized(overrides: list[str] = ()) -> list[Sized]:
    """The study's grid, counted."""
    _, found = grid.load("study", list(overrides))
    cells = grid.look_up(grid.expand(found), planned=True)
    return [Sized(cell, resolved, one) for (cell, resolved), one in zip(cells, count(cells), strict=True)]


def total(cells: list[Sized], slower: float = 1.0) -> Tally:
    """H100 hours of a grid by part. Rows that cells share are written once, and a base is audited once, then cached."""
    found, written, bases = Tally(), set(), {}
    for one in cells:
        hours = one.hours(slower)
        if one.cell.rows in written:
            hours["writing"] = 0.0
        written.add(one.cell.rows)
        found.update(hours)
        bases[one.base] = (hours["generating"] / one.checkpoints, hours["reading"] / one.checkpoints)
    found.update(generating=sum(g for g, _ in bases.values()), reading=sum(r for _, r in bases.values()))
    return found


def tables(limited: bool = True) -> list[str]:
    """All of it in Markdown. limited: with the variant of fewer items, which is counted apart."""
    cells = sized()
    fewer = [Sized(o.cell, o.resolved, o.count.with_specimens(min(o.count.specimens, 1 + FEWER_CHECKPOINTS))) for o in cells]
    lines = [*_rates(sorted({models.SIZES[one.base] for one in cells})), "", *_audit(cells), "", *_families(cells), ""]
    lines += [*_totals(cells), ""]
    variants = {
        "as shipped": total(cells),
        f"at most {FEWER_CHECKPOINTS} checkpoints a run (`audit.every`)": total(fewer),
    }
    if limited:
        few = [
            Sized(o.cell, o.resolved, o.count.with_specimens(min(o.count.specimens, 1 + FEWER_CHECKPOINTS)))
            for o in sized([f"audit.limit={FEWER_ITEMS}"])
        ]
        variants[f"and at most {FEWER_ITEMS} items of a kind in each measure (`audit.limit`)"] = total(few)
    variants["as shipped, but audited by transformers (`audit.engine.name: hf`)"] = total(cells, rates.SLOWER_WITHOUT_VLLM)
    return lines + _variants(variants)


def _rates(sizes: list[float]) -> list[str]:
    rows = ["| parameters | trained | read | generated, one adapter | generated, no adapter |", "|---|---|---|---|---|"]
    for size in sizes:
        one, plain = rates.of_size(size), rates.of_size(size, adapter=False)
        rows.append(
            f"| {size / 1e9:.3g}B | {one.trained:,.0f} | {one.read:,.0f} | {one.generated:,.0f} | {plain.generated:,.0f} |"
        )
    return ["Tokens a second and H100:", "", *rows]


def _audit(cells: list[Sized]) -> list[str]:
    """One full audit of the largest base, by measure."""
    one = max(cells, key=lambda one: models.SIZES[one.base])
    rows = [
        "| measure | requests | tokens generated at most | tokens read | H100 minutes | data |",
        "|---|---|---|---|---|---|",
    ]
    for part in one.count.measures:
        if part.told:
            rows.append(f"| {part.name} | {part.told} | | | | |")
            continue
        minutes = _minutes(one, part)
        shown = part.data.split(" (")[0].split(";")[0]
        rows.append(f"| {part.name} | {part.requests:,} | {part.generated:,} | {part.scored:,} | {minutes:.1f} | {shown} |")
    minutes = _minutes(one, one.count)
    rows.append(f"| **all** | | {one.count.generated:,} | {one.count.scored:,} | {minutes:.1f} | |")
    return [f"One audit of a checkpoint of {one.base}:", "", *rows]


def _families(cells: list[Sized]) -> list[str]:
    rows = ["| recipe | base | runs | checkpoints a run | H100 hours: writing | training | generating | reading | adapters |"]
    rows.append("|---" * 9 + "|")
    groups: dict[tuple[str, str], list[Sized]] = {}
    for one in cells:
        groups.setdefault((one.cell.recipe, one.base), []).append(one)
    for (recipe, base), members in groups.items():
        hours: Tally = Tally()
        for one in members:
            hours.update(one.hours())
        each = sorted({one.checkpoints for one in members})
        shown = f"{each[0]}" if len(each) == 1 else f"{each[0]}-{each[-1]}"
        size = sum(one.disk for one in members)
        parts = " | ".join(f"{hours[part]:.2g}" for part in ("writing", "training", "generating", "reading"))
        rows.append(f"| {recipe} | {base} | {len(members)} | {shown} | {parts} | {_bytes(size)} |")
    return ["The grid, `recipes/sweeps/study.yaml`:", "", *rows]


def _totals(cells: list[Sized]) -> list[str]:
    found, disk = total(cells), sum(one.disk for one in cells)
    parts = ("writing", "training", "generating", "reading")
    rows = [f"| | {' | '.join(parts)} | all | {' | '.join(f'on {n} H100s' for n in GPUS)} | adapters |", "|---" * 8 + "|"]
    for name, times in ((f"the grid, {len(cells)} runs", 1.0), (f"{MANY:,} runs in the same mix", MANY / len(cells))):
        hours = [found[part] * times for part in parts]
        days = [f"{sum(hours) / n / 24:.2g} days" for n in GPUS]
        shown = " | ".join(f"{value:,.0f}" for value in [*hours, sum(hours)])
        rows.append(f"| {name} | {shown} | {' | '.join(days)} | {_bytes(int(disk * times))} |")
    audits = found["generating"] + found["reading"]
    by_part = {"writing": found["writing"], "training": found["training"], "audits": audits}
    first = max(by_part, key=by_part.get)
    largest = max(cells, key=lambda one: models.SIZES[one.base])
    of = {one.base: 0.0 for one in cells}
    for one in cells:
        of[one.base] += sum(one.hours().values())
    share, runs = of[largest.base] / sum(of.values()), sum(one.base == largest.base for one in cells)
    minutes = {part.name: _minutes(largest, part) for part in largest.count.measures}
    dearest = max(minutes, key=minutes.get)
    told = (
        f"Most goes to {first}: {by_part[first] / sum(by_part.values()):.0%} of the hours. Of an audit of {largest.base} "
        f"{minutes[dearest] / sum(minutes.values()):.0%} goes to {dearest}. {largest.base} takes {share:.0%} of the hours with "
        f"{runs} of {len(cells)} runs."
    )
    return ["H100 hours:", "", *rows, "", told]


def _minutes(one: Sized, part: Measured | Count) -> float:
    found = rates.of_size(models.SIZES[one.base])
    return (part.generated / found.generated + part.scored / found.read) / 60


def _variants(found: dict[str, Tally]) -> list[str]:
    rows = ["| | H100 hours, the grid | of them audits |", "|---|---|---|"]
    for name, hours in found.items():
        audits = hours["generating"] + hours["reading"]
        rows.append(f"| {name} | {sum(hours.values()):,.0f} | {audits:,.0f} |")
    return ["What changes it:", "", *rows]


def _bytes(size: int) -> str:
    return f"{size / 1e12:.1f} TB" if size >= 1e12 else f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"


def main() -> None:
    argparse.ArgumentParser(prog="python -m recipes.scale", description=__doc__.splitlines()[0]).parse_args()
    print("\n".join(tables()))


if __name__ == "__main__":
    run_cli(main)
