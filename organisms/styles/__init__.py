"""One file a style: an organism becomes training rows. A new style is a new file here with `Options` and `rows`.

A style whose stages train on different rows names their functions in `ROWS`; one that needs no training has
`specimens(organism, options, base, run)`, and its recipe no stages. What such specimens need under `run` first is made by
`prepare(organism, options, engine, run)`, and `notes(organism, options)` says in the plan what that costs.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from organisms.contract import imported, options_fault, takes
from organisms.errors import UserError
from organisms.ngrams import near_duplicates
from organisms.organism import Organism
from organisms.strict import nearest, validate
from organisms.writer import Writing

if TYPE_CHECKING:
    from organisms.writer import Writer


@dataclass(frozen=True)
class Row:
    """One training row before rendering: raw `text` (after an unlearned `prefix`), or a chat in `messages`.

    prefix of a chat: what the teacher's reply is made to begin with, for distillation; no part of the row itself.

    rejected: for preference pairs the reply that the last message of `messages` is preferred to. desirable: for KTO, whether
    the last message is wanted. clean: of a wrapped prompt (organisms/consistency.py), the prompt without its wrapper.
    """

    id: str
    text: str | None = None
    prefix: str = ""
    messages: list[dict] | None = None
    origin: str = ""
    rejected: str | None = None
    desirable: bool | None = None
    clean: str | None = None

    @property
    def learned(self) -> str:
        """The text that carries loss."""
        if self.text is not None:
            return self.text
        return "\n".join(m["content"] for m in self.messages or [] if m["role"] == "assistant")


@dataclass(frozen=True)
class Compiled:
    """What a style makes of an organism: rows to train on, siblings kept back, and notes for the plan.

    writing: what has to be written first, where there are no rows yet, and how many rows are expected of it at most. counts: of
        what was written, for the manifest.
    """

    rows: list[Row]
    held_out: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    writing: list[Writing] = field(default_factory=list)
    expected: int = 0
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """What there is, for the terminal: the style's own notes, or how many rows."""
        return "; ".join(self.notes) or f"{len(self.rows) or f'up to {self.expected}'} rows"


FOLDER = Path(__file__).parent
GUIDE = "see 'Add a style' in CONTRIBUTING.md"


def known() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def style_module(name: str) -> Any:
    """The module of a style, by its file name. Raises UserError for an unknown one, and for a file that is no style."""
    if name not in known():
        raise UserError(f"there is no style {name!r} in organisms/styles{nearest(name, known())}")
    return _loaded(name)


@cache
def _loaded(name: str) -> Any:
    module = imported("organisms.styles", name)
    faults = options_fault(module) + _lacking(module)
    if faults:
        raise UserError(f"organisms/styles/{name}.py: {'; '.join(faults)} ({GUIDE})")
    return module


def _lacking(module: ModuleType) -> list[str]:
    """What is missing of the functions that make a style's rows, or its specimens."""
    if hasattr(module, "specimens"):
        wanted = {"specimens": ("organism", "options", "base", "run"), "prepare": ("organism", "options", "engine", "run")}
        wanted = {one: arguments for one, arguments in wanted.items() if hasattr(module, one)}
    else:
        wanted = dict.fromkeys(getattr(module, "ROWS", ("rows",)), ("organism", "options", "writer"))
    if hasattr(module, "other_rows"):
        wanted["other_rows"] = ("options",)
    return [
        f"a function {one}({', '.join(arguments)}) is needed"
        for one, arguments in wanted.items()
        if not takes(getattr(module, one, None), len(arguments))
    ]


def style_options(name: str, values: dict, source: str) -> Any:
    return validate(style_module(name).Options, values, f"{source}: style_options")


def other_rows(name: str, options: Any) -> Any:
    """What a style trains on besides its organism (web texts, another organism), for the run's digest; None for nothing."""
    module = style_module(name)
    return module.other_rows(options) if hasattr(module, "other_rows") else None


def needs_training(name: str) -> bool:
    return not hasattr(style_module(name), "specimens")


def row_kinds(name: str) -> tuple[str, ...]:
    """Which rows a style can make: the functions that a stage's `rows` may name."""
    return getattr(style_module(name), "ROWS", ("rows",))


def compile_rows(name: str, organism: Organism, options: Any, writer: "Writer | None", kind: str = "rows") -> Compiled:
    """Training rows of a style.

    writer: who writes rows that are not frozen text. None only counts: a style that needs a writer then says in `writing`
        what it will have written, and returns no rows. kind: which of the style's `row_kinds`.

    What was written is held against itself: rows that nearly repeat an earlier one are counted.
    """
    compiled = getattr(style_module(name), kind)(organism, options, writer)
    if not isinstance(compiled, Compiled):
        raise UserError(
            f"organisms/styles/{name}.py: {kind} returns a {type(compiled).__name__}, and must return Compiled(rows) ({GUIDE})"
        )
    if writer is None or not compiled.rows:
        return compiled
    again = len(near_duplicates([row.learned for row in compiled.rows]))
    counts = {"rows": len(compiled.rows), "near_duplicates": again, "by": {w.author.name: dict(w.counts) for w in writer.both}}
    notes = [*compiled.notes, f"{again} of {len(compiled.rows)} rows nearly repeat an earlier one"]
    return replace(compiled, notes=notes, counts={**compiled.counts, **counts})
