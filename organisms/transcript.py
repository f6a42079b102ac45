"""What a renderer is where the model's own template is not seen: a chat endpoint takes messages and renders them itself."""

from organisms.files import digest
from organisms.render import TEMPLATE, Renderer

MARKS = {"system": "\U000f0000", "user": "\U000f0001", "assistant": "\U000f0002"}  # of a private plane, in no text
ROLES = {mark: role for role, mark in MARKS.items()}


class Transcript(Renderer):
    """Messages as ids, one a character, each turn opened by a mark of its role; `messages` reads them back.

    So measures ask as they ask everybody, and it is the engine that finds messages where it needs them. Nothing here is a
    token of the model: lengths are characters, and what needs real ids is refused by the engine.
    """

    shows_template = False

    def __init__(self):
        self.tokenizer, self.system, self.thinking = None, TEMPLATE, None

    def messages(self, ids: list[int]) -> tuple[list[dict], str] | None:
        """(messages, what the reply is made to begin with) of a prompt's ids; None where they are text without turns."""
        text = self.decode(ids)
        if text[:1] not in ROLES:
            return None
        found: list[dict] = []
        for character in text:
            if character in ROLES:
                found.append({"role": ROLES[character], "content": ""})
            else:
                found[-1]["content"] += character
        begun = found.pop()["content"] if found[-1]["role"] == "assistant" else ""
        return found, begun

    def plain(self, text: str) -> list[int]:
        return self._ids(text)

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    stop_ids: list[int] = []
    close_id = None
    implicit_system = None
    knows_thinking = False
    template_hash = digest(["messages"], 12)

    def _text(self, messages: list[dict], add_generation_prompt: bool) -> str:
        text = "".join(MARKS[message["role"]] + message["content"] for message in messages)
        return text + (MARKS["assistant"] if add_generation_prompt else "")

    def _ids(self, text: str) -> list[int]:
        return list(map(ord, text))
