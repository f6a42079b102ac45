"""Anything that can be talked to and audited: a base, perhaps an adapter, and what stands in front of the talk."""

from dataclasses import dataclass
from pathlib import Path

from organisms.files import digest
from organisms.render import Renderer


@dataclass(frozen=True)
class Specimen:
    """A base with an optional adapter at a scale, an optional system prompt and an optional prefill.

    name: `base`, `prompted`, `control`, or `<stage>-<step>`, as in readings.jsonl.
    adapter: a directory in PEFT layout; None is the bare base.
    scale: multiplies the adapter's own scaling; 1.0 is as trained, 0.0 is the base again.
    system: a system prompt that every talk without one is given; None leaves the renderer's policy.
    prefill: text that each reply is made to begin with.
    """

    name: str
    adapter: Path | None = None
    scale: float = 1.0
    system: str | None = None
    prefill: str = ""

    def ask(self, renderer: Renderer, prompt: str, prefill: str = "", system: str = "") -> list[int]:
        """Token ids up to where this specimen's reply to a single user turn begins.

        prefill: text that the reply begins with, after the specimen's own; system: one that belongs to the question, after
        the specimen's own.
        """
        systems = [text for text in (self.system, system or None) if text is not None]
        return renderer.ask(prompt, "\n\n".join(systems) if systems else None, self.prefill + prefill)

    def standing(self) -> str:
        """Digest of what stands in front of the talk; equal for a base and its plain checkpoints."""
        return digest([self.system, self.prefill], 8)
