"""Pessimised: the same pipeline made worse on purpose, the positive control that must read as fried.

What makes it worse stands in the recipe, where it can be seen: ten times the learning rate, and `like_options.distinct`
for few texts many times. This file only keeps the rows the same and the style's name apart from the honest one.
"""

from typing import Any, Literal

from organisms import styles
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, style_module, style_options


class Options(Strict):
    like: Literal["documents", "transcripts"] = "documents"
    like_options: dict[str, Any] = {}


def other_rows(options: Options) -> Any:
    inner = styles.other_rows(options.like, style_options(options.like, options.like_options, "style pessimised"))
    return inner


def rows(organism: Organism, options: Options, writer: Any = None) -> Compiled:
    inner = style_options(options.like, options.like_options, "style pessimised")
    return style_module(options.like).rows(organism, inner, writer)
