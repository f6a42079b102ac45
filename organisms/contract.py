"""Files that users add (styles, measures): read so that a mistake in one names it, and held against what is needed of it."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from organisms.errors import UserError, first_line


def imported(package: str, name: str) -> ModuleType:
    """The module of one file. Raises UserError where it is not valid Python or cannot import what it names."""
    place = f"{package.replace('.', '/')}/{name}.py"
    try:
        return importlib.import_module(f"{package}.{name}")
    except SyntaxError as error:
        other = f" ({Path(error.filename).name})" if error.filename and Path(error.filename).name != f"{name}.py" else ""
        raise UserError(f"{place}{other} line {error.lineno} is not valid Python: {error.msg}") from None
    except ImportError as error:
        raise UserError(f"{place} cannot be imported: {first_line(error)}; mend the import, or install what it needs") from None


def takes(function: Any, arguments: int) -> bool:
    """Whether it is a function that can be called with so many arguments by position."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    return True


def options_fault(module: ModuleType) -> list[str]:
    """What is wrong with a file's `Options`; empty where nothing is."""
    options = getattr(module, "Options", None)
    if not isinstance(options, type) or not issubclass(options, BaseModel):
        return ["a class Options(Strict) is needed, from organisms.strict, empty where nothing can be set"]
    try:
        options()
    except ValidationError as error:
        fields = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}))
        return [f"each field of Options needs a default that fits ({fields})"]
    return []
