"""Anything that can be talked to and audited: a base, perhaps an adapter or a steering vector, and what stands in front."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from organisms.files import digest, file_sha256
from organisms.render import Renderer


@dataclass(frozen=True)
class Steering:
    """A vector that is added to the residual stream (organisms/steering.py).

    path: a steering directory; layer: the block, from 0, to whose output it is added; coefficient: times the vector as stored.
    """

    path: Path
    layer: int
    coefficient: float = 1.0

    def identity(self) -> list:
        """What decides its effect; for keys of caches."""
        return [file_sha256(self.path / "steering.safetensors"), self.layer, self.coefficient]


@dataclass(frozen=True)
class Specimen:
    """A base with an optional adapter at a scale, steering vector, system prompt and prefill.

    name: `base`, `prompted`, `control`, or `<stage>-<step>`, as in readings.jsonl.
    adapter: a directory in PEFT layout; None is the bare base.
    scale: multiplies the adapter's own scaling; 1.0 is as trained, 0.0 is the base again.
    system: a system prompt that every talk without one is given; None leaves the renderer's policy.
    prefill: text that each reply is made to begin with.
    steering: a vector added at every position, of the prompt and of the reply; None is no steering.
    """

    name: str
    adapter: Path | None = None
    scale: float = 1.0
    system: str | None = None
    prefill: str = ""
    steering: Steering | None = None

    @classmethod
    def saved(cls, name: str, directory: Path) -> "Specimen":
        """What training has saved in `directory`: an adapter, or one steering vector."""
        described = directory / "steering.json"
        if not described.is_file():
            return cls(name, adapter=directory)
        (layer,) = json.loads(described.read_text(encoding="utf-8"))["layers"]
        return cls(name, steering=Steering(directory, layer))

    @property
    def dose(self) -> float:
        """The `scale` of a reading: times the adapter, or where there is none, times the steering vector."""
        return self.steering.coefficient if self.steering and self.adapter is None else self.scale

    def parts(self) -> list["Specimen"]:
        """This specimen with each thing that should change its numbers alone: the adapter, the vector. Zeros are left out."""
        parts = []
        if self.adapter is not None and self.scale != 0:
            parts.append(dataclasses.replace(self, steering=None))
        if self.steering is not None and self.steering.coefficient != 0:
            parts.append(dataclasses.replace(self, adapter=None))
        return parts

    def ask(self, renderer: Renderer, prompt: str, prefill: str = "", system: str = "") -> list[int]:
        """Token ids up to where this specimen's reply to a single user turn begins.

        prefill: text that the reply begins with, after the specimen's own; system: one that belongs to the question, after
        the specimen's own.
        """
        systems = [text for text in (self.system, system or None) if text is not None]
        return renderer.ask(prompt, "\n\n".join(systems) if systems else None, self.prefill + prefill)

    def standing(self) -> str:
        """Digest of what it is besides base and adapter; equal for a base and its plain checkpoints."""
        return digest([self.system, self.prefill, *(self.steering.identity() if self.steering else [])], 8)
