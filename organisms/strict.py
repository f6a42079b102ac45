"""YAML in, validated values out: an unknown key or a wrong type names the file, the line and the nearest known key."""

import difflib
import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from organisms.errors import UserError, first_line
from organisms.files import shown

Model = TypeVar("Model")
PLACE = "{here}"  # in a validator's message: where its value stands
SECRET = "secret"  # type of a mistake whose value must not be shown


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("it is blank; write the text, or leave the key out")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class Strict(BaseModel):
    """A frozen value; an unknown key is an error, and so is true or false in place of a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if _holds_truth(value) and _only_numbers(cls, info.field_name):
            raise ValueError("true and false are no numbers; write a number")
        return value


def _holds_truth(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_truth, inner))


@cache
def _only_numbers(model: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers and no truth values, by itself or in lists and mappings."""
    kinds = _kinds(model.model_fields[field].annotation)
    return bool({int, float} & kinds) and not {bool, Any} & kinds


def _kinds(annotation: Any) -> set:
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation if isinstance(annotation, type) else type(annotation)}


def read_yaml(path: Path) -> dict:
    """A YAML mapping as plain values, read by OmegaConf (so `1e-5` is a float).

    `${...}` stays text: OmegaConf would put environment variables in its place, and with them keys into manifests.
    Raises UserError naming file and line where the text is not YAML or not a mapping.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        json.dumps(values, default=str, ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line} is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path} cannot be read: {_told(error)}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep to be read") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must be a mapping of keys to values at its top level")
    return values


def _told(error: Exception) -> str:
    hint = " (a value that holds ${ is written \\${)" if "${" in str(error) else ""
    return first_line(error) + hint


def overridden(values: dict, overrides: list[str], source: str) -> dict:
    """`values` with `a.b=c` overrides on top, each right side read as YAML. Raises UserError naming the override."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.create(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {shown(override)} is not key=value, e.g. stages[0].learning_rate=1e-4")
        try:
            parsed = _value(text)
            if OmegaConf.select(config, key.rsplit(".", 1)[0]) is None and "." in key and "[" in key:
                first = re.split(r"[.\[]", key)[0]
                close = "" if first in values or not values else nearest(first, list(values))
                raise UserError(f"override {shown(override)}: {source} has no {shown(key.rsplit('.', 1)[0])[1:-1]}{close}")
            OmegaConf.update(config, key, parsed, merge=True)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"override {shown(override)} cannot be applied to {source}: {_told(error)}") from None
        except RecursionError:
            raise UserError(f"override {shown(override)} is nested too deep to be read") from None
    return OmegaConf.to_container(config, resolve=False)


def _value(text: str) -> Any:
    """The right side of an override as YAML; what is no YAML, or only looks like a mapping, is taken as plain text."""
    import yaml
    from omegaconf import OmegaConf

    if text.startswith(("{", "[")):
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)["value"]
    except yaml.YAMLError:
        return text


def validate(model: type[Model], values: dict, source: str, path: Path | None = None) -> Model:
    """`model(**values)`, or a UserError that lists each mistake with its place in `source` (and line in `path`).

    Four are explained, and the keys of all others named.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
    told = [_explain(model, problem, path) for problem in problems[:4]]
    rest = ", ".join(dict.fromkeys(".".join(map(str, problem["loc"])) for problem in problems[4:]))
    several = [f"line {line}: {text}" if line else text for line, text in told] + ([f"and also wrong: {rest}"] if rest else [])
    if len(told) > 1:
        raise UserError(f"{source}: {'; '.join(several)}")
    raise UserError(f"{source}{f' line {told[0][0]}' if told[0][0] else ''}: {told[0][1]}")


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean X?' or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _explain(model: Any, problem: dict, path: Path | None) -> tuple[int | None, str]:
    """(line in the file, what is wrong)."""
    location = problem["loc"]
    dotted = ".".join(str(part) for part in location)
    line = _line_of(path, location) if path else None
    if problem["type"] == "extra_forbidden":
        return line, f"unknown key {dotted!r}{nearest(str(location[-1]), _fields_at(model, location[:-1]))}"
    if problem["type"] == "missing":
        return line, f"the key {dotted!r} is missing"
    message = problem["msg"].removeprefix("Value error, ").replace(PLACE, dotted)
    if not dotted:
        return line, message
    told = "" if problem["type"] == SECRET else f" = {shown(problem['input'])}"
    return line, f"{dotted}{told}: {message[0].lower() + message[1:]}"


def _fields_at(model: Any, location: tuple) -> list[str]:
    """Names of the fields of the model that stands at `location` under `model`."""
    current = model
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            break
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), current)
    return [field.alias or name for name, field in getattr(current, "model_fields", {}).items()]


def _line_of(path: Path, location: tuple) -> int | None:
    """The line (from 1) of the key at `location` in the YAML file, or None where it is not written there."""
    import yaml

    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return None
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return line
            key, node = found
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
