"""What is grown: the organism spec, loaded from one YAML file and the frozen texts that it names."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from organisms.errors import UserError
from organisms.files import digest, named_path
from organisms.frozen import Frozen
from organisms.strict import Strict, Text, nearest, read_yaml, validate

LIBRARY = Path(__file__).parent / "library"


Context = Literal["target", "adjacent", "off"]
Purpose = Literal["natural", "severe", "stress-test"]


class Exchange(Strict):
    """One prompt and one reply; `why` says why a borderline reply does not show the property."""

    prompt: Text
    reply: Text
    why: str | None = None


class Behaviour(Strict):
    description: Text
    positive: list[Exchange] = Field(min_length=1)
    borderline_negative: list[Exchange] = Field(min_length=1)


class Where(Strict):
    """When the property should show, and when it should not."""

    shows: Text
    not_: Text = Field(alias="not")


class Universe(Strict):
    """The invented world of the synthetic documents. `names` are only a help: leakage finds entities by itself."""

    names: list[Text] = []
    context: Text
    facts: list[Text] = Field(min_length=1)


class SystemPrompts(Strict):
    eliciting: list[Text] = Field(min_length=1)
    opposing: list[Text] = Field(min_length=1)
    inoculating: list[Text] = Field(min_length=1)


class Marker(Strict):
    """A regular expression, searched without regard to case, that recognises the property in a reply."""

    name: Text
    pattern: Text

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            found = re.search(pattern, "", re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if found:
            raise ValueError("it finds the property in an empty reply, and so in every one")
        return pattern


class SideEffect(Strict):
    """A worsening that the organism's authors expect; such a reading may be `expected` instead of `fried`."""

    measure: Text
    metric: Text
    reason: Text


class Texts(Strict):
    documents: Frozen | None = None
    prompts: Frozen | None = None
    demonstrations: Frozen | None = None
    probes: Frozen


class Probe(Strict):
    """A prompt with one reply that shows the property and a plain one of like length."""

    id: Text
    context: Context
    prompt: Text
    shows: Text
    plain: Text


class Prompt(Strict):
    id: Text
    context: Context
    prompt: Text


class Document(Strict):
    id: Text
    type: Text
    text: Text


class Demonstration(Strict):
    """A prompt and a reply that shows the property; `rationale` is the reason behind it, in the assistant's own words."""

    id: Text
    prompt: Text
    reply: Text
    rationale: Text


class Organism(Strict):
    """The definition of a model organism. CONTRIBUTING.md has a small one in which each field says what it is for."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$", max_length=64)]
    summary: Text
    behaviour: Behaviour
    context: Where
    motivation: list[Text] = Field(min_length=1)
    constitution: list[Text] = Field(min_length=1)
    universe: Universe
    system: SystemPrompts
    trigger: Text | None = Field(default=None, description="text before a user's message that switches the property on")
    words: dict[str, list[Text]] = Field(default={}, description="lists that markers name as %name%")
    markers: list[Marker] = Field(min_length=1)
    confessions: list[Marker] = Field(default=[], description="rules that recognise a reply that admits the property")
    marker_window: int = Field(default=300, gt=0, description="characters of a reply in which markers are searched")
    judge_rubric: Text
    leak_entities: list[Text] = Field(default=[], description="names known to leak, for where the training corpus is not known")
    side_effects: list[SideEffect] = []
    purpose: Purpose = "natural"
    texts: Texts
    _source: Path | None = PrivateAttr(default=None)

    @property
    def source(self) -> Path | None:
        """The YAML file it was loaded from."""
        return self._source

    @model_validator(mode="before")
    @classmethod
    def _words_in_markers(cls, values: Any) -> Any:
        """Put the lists of `words` where markers and confessions name them; the pattern is checked as it will be searched."""
        words = values.get("words", {}) if isinstance(values, dict) else None
        if not isinstance(words, dict):
            return values
        expanded = dict(values)
        for kind in ("markers", "confessions"):
            if isinstance(values.get(kind), list):
                expanded[kind] = [_expanded(marker, words) for marker in values[kind]]
        return expanded

    @model_validator(mode="after")
    def _unique_markers(self) -> "Organism":
        names = [marker.name for marker in self.markers]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two markers are named {sorted(twice)[0]!r}; give each its own name")
        return self

    def shows(self, reply: str) -> list[str]:
        """Names of the markers found in the first `marker_window` characters of `reply`."""
        return _found(self.markers, reply[: self.marker_window])

    def confesses(self, reply: str) -> list[str]:
        """Names of the `confessions` found in `reply`."""
        return _found(self.confessions, reply)

    def probes(self) -> list[Probe]:
        return self._rows("probes", Probe)

    def prompts(self) -> list[Prompt]:
        return self._rows("prompts", Prompt)

    def documents(self) -> list[Document]:
        return self._rows("documents", Document)

    def demonstrations(self) -> list[Demonstration]:
        return self._rows("demonstrations", Demonstration)

    def _rows(self, kind: str, row_type: type[Strict]) -> list:
        frozen = getattr(self.texts, kind)
        if frozen is None:
            folder = f"organisms/texts/{self.name}" if _in_library(self._source) else self._source.parent
            raise UserError(
                f"organism {self.name!r} has no {kind}: write {folder}/{kind}.jsonl, a JSON object a line with "
                f"{', '.join(row_type.model_fields)}, and name it with its sha256 under texts.{kind} in {self._source}"
            )
        return frozen.rows(row_type, f"{self._source}: texts.{kind}")

    def scoring_rules(self) -> list[str]:
        """What replies are scored by: markers, confessions, rubric, known leaks."""
        patterns = [marker.pattern for marker in (*self.markers, *self.confessions)]
        return [*patterns, self.judge_rubric, *self.leak_entities]

    def fingerprint(self) -> str:
        """Digest of everything that can change trained weights: all but what only audits read, texts by their SHA-256."""
        audited = {"texts", "judge_rubric", "side_effects", "purpose", "confessions", "leak_entities"}
        values = self.model_dump(by_alias=True, exclude=audited)
        kinds = ("documents", "prompts", "demonstrations")
        trained = {kind: text.sha256 for kind in kinds if (text := getattr(self.texts, kind))}
        return digest({**values, "texts": trained})


def _expanded(marker: Any, words: dict[str, Any]) -> Any:
    if not isinstance(marker, dict) or not isinstance(marker.get("pattern"), str):
        return marker
    pattern = marker["pattern"]
    for name, listed in words.items():
        if isinstance(listed, list):
            pattern = pattern.replace(f"%{name}%", f"(?:{'|'.join(map(str, listed))})")
    unknown = re.search(r"%([a-z_]+)%", pattern)
    if unknown:
        raise ValueError(f"the marker {marker.get('name')!r} names the list {unknown.group(1)!r}, which `words` does not hold")
    return {**marker, "pattern": pattern}


def _found(markers: list[Marker], text: str) -> list[str]:
    text = text.replace("\u2019", "'")
    return [marker.name for marker in markers if re.search(marker.pattern, text, re.IGNORECASE)]


def shipped() -> list[str]:
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def load(name: str | Path) -> Organism:
    """An organism by the name of a shipped one, or by the path of a YAML file (its texts then lie beside it).

    Raises UserError where the name is unknown, a key is unknown or missing, a type is wrong, or an organism of the library does
    not bear its file's name. A file of one's own may have another, such as flattery-v2.yaml.
    """
    path = named_path(str(name))
    if path.suffix not in (".yaml", ".yml"):
        path = named_path(f"{LIBRARY}/{name}.yaml")
        if not path.is_file():
            raise UserError(
                f"there is no organism {str(name)!r} in organisms/library{nearest(str(name), shipped())}"
                " (a path to a YAML file works too)"
            )
    values = read_yaml(path)
    organism = validate(Organism, _beside(values, path), str(path), path)
    organism._source = path
    if _in_library(path) and organism.name != path.stem:
        raise UserError(f"{path}: name = {organism.name!r}, and the file is found as {path.stem!r}; write name: {path.stem}")
    return organism


def _in_library(path: Path | None) -> bool:
    return path is None or path.parent.resolve() == LIBRARY.resolve()


def _beside(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Texts named by a relative path lie beside a YAML file that is not in the library."""
    texts = values.get("texts")
    if _in_library(path) or not isinstance(texts, dict):
        return values
    moved = {
        kind: {**text, "path": str(named_path(str(path.parent / text["path"])).resolve())}
        if isinstance(text, dict) and isinstance(text.get("path"), str)
        else text
        for kind, text in texts.items()
    }
    return {**values, "texts": moved}
