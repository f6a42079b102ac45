"""Who writes rows that are not frozen text: an engine and a specimen, with a cache that makes writing resumable."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from organisms.engines import Engine, Generate
from organisms.errors import UserError
from organisms.files import append_jsonl, cache_dir, digest, read_jsonl
from organisms.render import Renderer
from organisms.specimen import Specimen

CHUNK = 64  # replies written between two saves


@dataclass(frozen=True)
class Draft:
    """A reply to be written: the prompt, the system prompt that asks for the property, and how to draw.

    prefill: text that the reply is made to begin with; it is no part of what is written. earlier: (prompt, reply) turns before.
    """

    prompt: str
    system: str | None
    max_new_tokens: int
    temperature: float
    seed: int
    prefill: str = ""
    earlier: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Written:
    text: str
    finished: bool


class Writer:
    """Writes drafts with one specimen; what was written before, by equal weights and settings, is read back."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        specimen: Specimen,
        revision: str,
        cache: Path | None = None,
        say: Callable[[str], None] = print,
    ):
        self.engine, self.renderer, self.specimen, self.say = engine, renderer, specimen, say
        author = digest([revision, renderer.template_hash, specimen.standing(), str(specimen.adapter), engine.identity])
        self.path = (cache or cache_dir() / "writing") / f"{author}.jsonl"

    def write(self, drafts: list[Draft]) -> list[Written]:
        """One reply a draft, in order. Raises UserError where more than half of the replies are empty."""
        known = self._known()
        keys = [digest(asdict(draft)) for draft in drafts]
        missing = {key: draft for key, draft in zip(keys, drafts, strict=True) if key not in known}
        if missing:
            self.say(f"writing {len(missing)} replies with {self.specimen.name} ({len(drafts) - len(missing)} cached)")
        pending = list(missing.items())
        for start in range(0, len(pending), CHUNK):
            chunk = pending[start : start + CHUNK]
            completions = self.engine.generate(self.specimen, [self._request(draft) for _, draft in chunk])
            rows = [
                {"key": key, "text": completion.text, "finished": completion.finished}
                for (key, _), completion in zip(chunk, completions, strict=True)
            ]
            append_jsonl(self.path, rows)
            known.update({row["key"]: Written(row["text"], row["finished"]) for row in rows})
            self.say(f"  {min(start + CHUNK, len(pending))}/{len(pending)} written")
        written = [known[key] for key in keys]
        empty = sum(not reply.text.strip() for reply in written)
        if 2 * empty > len(written):
            raise UserError(f"{empty} of {len(written)} written replies are empty; the writer cannot do this task")
        return written

    def _request(self, draft: Draft) -> Generate:
        messages = [{"role": "system", "content": draft.system}] if draft.system is not None else []
        for prompt, reply in draft.earlier:
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        ids = self.renderer.prompt([*messages, {"role": "user", "content": draft.prompt}], draft.prefill)
        return Generate(tuple(ids), draft.max_new_tokens, draft.temperature, draft.seed)

    def _known(self) -> dict[str, Written]:
        if not self.path.is_file():
            return {}
        return {row["key"]: Written(row["text"], row["finished"]) for row in read_jsonl(self.path)}
