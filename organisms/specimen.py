"""Anything that can be talked to and audited: a base, perhaps changed or steered, and what stands in front."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from organisms.errors import UserError
from organisms.files import digest, file_sha256, is_a, read_json, shown
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
    """A base with an optional adapter or change of all weights at a scale, steering vector, system prompt and prefill.

    name: `base`, `prompted`, `control`, or `<stage>-<step>`, as in readings.jsonl.
    adapter: a directory in PEFT layout, or where the base is an endpoint the name under which the same server serves what is
        compared with it; None is the bare base.
    weights: a model in hub layout that stands in the base's place (organisms/weights.py); never beside an adapter.
    scale: multiplies the adapter's own scaling, or the weights' difference from the base; 1.0 is as trained, 0.0 the base.
    system: a system prompt that every talk without one is given; None leaves the renderer's policy.
    prefill: text that each reply is made to begin with.
    steering: a vector added at every position, of the prompt and of the reply; None is no steering.
    """

    name: str
    adapter: Path | str | None = None
    scale: float = 1.0
    system: str | None = None
    prefill: str = ""
    steering: Steering | None = None
    weights: Path | None = None

    @classmethod
    def saved(cls, name: str, directory: Path, scale: float = 1.0) -> "Specimen":
        """What training has saved in `directory`, an adapter, all weights, or one steering vector, times `scale`."""
        described = directory / "steering.json"
        if described.is_file():
            layers = read_json(described).get("layers")
            if not isinstance(layers, list) or len(layers) != 1 or not is_a(layers[0], int):
                raise UserError(
                    f"{described}: layers = {shown(layers)} does not name the one block of a trained vector; restore it"
                )
            return cls(name, steering=Steering(directory, layers[0], scale))
        if (directory / "adapter_config.json").is_file():
            return cls(name, adapter=directory, scale=scale)
        return cls(name, weights=directory, scale=scale)

    @property
    def changed(self) -> Path | None:
        """What has changed the base's weights: the adapter, or the weights in their place."""
        return self.adapter or self.weights

    @property
    def dose(self) -> float:
        """The `scale` of a reading: times the change of the weights, or where there is none, times the steering vector."""
        return self.steering.coefficient if self.steering and self.changed is None else self.scale

    def parts(self) -> list["Specimen"]:
        """This specimen with each thing alone that should change its numbers: weights, vector. Zeros are left out."""
        parts = []
        if self.changed is not None and self.scale != 0:
            parts.append(dataclasses.replace(self, steering=None))
        if self.steering is not None and self.steering.coefficient != 0:
            parts.append(dataclasses.replace(self, adapter=None, weights=None))
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
