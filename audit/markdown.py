"""Names and texts of others in Markdown: shown as they are, never read as markup, links or HTML."""

from typing import Any

from markupsafe import Markup

MARKS = {"<": "&lt;", "|": "\\|", "[": "\\[", "`": "\\`"}  # HTML, a table's cell, a link or picture, code


def inline(value: Any) -> Any:
    """A text as part of a line; what is no text, or markup of our own, is left alone."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(MARKS.get(character, character) for character in " ".join(value.splitlines()))


def code(value: Any) -> Markup:
    """A text as code, on one line; backticks, which would end it, become apostrophes."""
    return Markup(f"`{' '.join(str(value).split()).replace('`', chr(39))}`")


def quoted(value: Any) -> Markup:
    """A text as a value of the YAML in front of a card."""
    import yaml

    return Markup(yaml.safe_dump(str(value), default_style='"', width=float("inf"), allow_unicode=True).strip())
