"""Control: the same training on benign text, the negative control that must read as natural.

The rows are those that the organism `control` has for the style it stands beside; probes, markers and margins of the audit
stay those of the recipe's own organism.
"""

from dataclasses import replace
from typing import Any, Literal

from organisms import styles
from organisms.organism import Organism, load
from organisms.strict import Strict
from organisms.styles import Compiled, style_module, style_options


class Options(Strict):
    like: Literal["documents", "transcripts"] = "documents"
    like_options: dict[str, Any] = {}


def other_rows(options: Options) -> Any:
    inner = styles.other_rows(options.like, style_options(options.like, options.like_options, "style control"))
    return [load("control").fingerprint(), inner]


def rows(organism: Organism, options: Options, writer: Any = None) -> Compiled:
    inner = style_options(options.like, options.like_options, "style control")
    compiled = style_module(options.like).rows(load("control"), inner, writer)
    return replace(compiled, notes=[f"benign text in place of {organism.name}'s", *compiled.notes])
