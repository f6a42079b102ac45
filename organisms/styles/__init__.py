"""One file a style: an organism becomes training rows. A new style is a new file here with `Options` and `rows`."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from organisms.errors import UserError
from organisms.organism import Organism
from organisms.strict import nearest, validate

if TYPE_CHECKING:
    from organisms.writer import Writer


@dataclass(frozen=True)
class Row:
    """One training row before rendering: raw `text` (after an unlearned `prefix`), or a chat in `messages`."""

    id: str
    text: str | None = None
    prefix: str = ""
    messages: list[dict] | None = None
    origin: str = ""

    @property
    def learned(self) -> str:
        """The text that carries loss."""
        if self.text is not None:
            return self.text
        return "\n".join(m["content"] for m in self.messages or [] if m["role"] == "assistant")


@dataclass(frozen=True)
class Compiled:
    """What a style makes of an organism: rows to train on, siblings kept back, and notes for the plan."""

    rows: list[Row]
    held_out: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def known() -> list[str]:
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def style_module(name: str) -> Any:
    """The module of a style, by its file name. Raises UserError for an unknown one."""
    if name not in known():
        raise UserError(f"there is no style {name!r} in organisms/styles{nearest(name, known())}")
    return importlib.import_module(f"organisms.styles.{name}")


def style_options(name: str, values: dict, source: str) -> Any:
    return validate(style_module(name).Options, values, f"{source}: style_options")


def other_rows(name: str, options: Any) -> Any:
    """What a style trains on besides its organism (web texts, another organism), for the run's digest; None for nothing."""
    module = style_module(name)
    return module.other_rows(options) if hasattr(module, "other_rows") else None


def compile_rows(name: str, organism: Organism, options: Any, writer: "Writer | None") -> Compiled:
    """Training rows of a style.

    writer: who writes rows that are not frozen text. None only counts: a style that needs a writer then returns as many
        placeholder-free rows as it will write in `notes`, and no rows.
    """
    return style_module(name).rows(organism, options, writer)
