"""The ONE way messages become token ids, for training and for audits."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from organisms.errors import UserError, first_line
from organisms.files import digest
from organisms.template_check import check_template

IGNORE = -100  # label of a token that carries no loss, the value torch's cross entropy skips
TEMPLATE = "template"  # the system policy that leaves the system prompt to the chat template


@dataclass(frozen=True)
class Rendered:
    """A training row: `labels` equals `input_ids` where the token carries loss and is -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


class Renderer:
    """Chat template and tokenizer of one base with one system policy.

    system: `"template"` leaves it to the chat template (which may insert an identity prompt of its own), any other
        text, also the empty one, is put in front of conversations that bring no system message.
    thinking: passed to templates that know `enable_thinking`; None leaves their default.

    Source of truth for what a model sees: engines and trainers get token ids from here and nothing else.
    """

    shows_template = True  # an endpoint that renders messages itself does not (organisms/transcript.py)

    def __init__(self, tokenizer: Any, system: str = TEMPLATE, thinking: bool | None = None, name: str = "the base"):
        if not tokenizer.chat_template:
            raise UserError(
                f"{name} has no chat template, so it cannot be asked or trained as a chat model; use its instruct "
                "version, or add a chat_template.jinja to its directory"
            )
        self.tokenizer = tokenizer
        self.system = system
        self.thinking = thinking
        self.name = name
        check_template(self._text, name)

    def prompt(self, messages: list[dict], prefill: str = "") -> list[int]:
        """Token ids up to where the assistant's reply begins (after `prefill`, where one is given)."""
        return self._ids(self._text(messages, add_generation_prompt=True)) + (self._ids(prefill) if prefill else [])

    def ask(self, prompt: str, system: str | None = None, prefill: str = "") -> list[int]:
        """`prompt()` of a single user turn, under `system` where one is given."""
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.prompt(messages, prefill)

    def continuation(self, text: str) -> list[int]:
        """Token ids of a reply that follows a prompt; neither opened nor closed by special tokens."""
        return self._ids(text)

    def conversation(self, messages: list[dict]) -> Rendered:
        """A training row with loss on the assistant turns, each with its end-of-turn token, and on nothing else.

        Each assistant turn is found as what the template adds to the conversation before it; the template is never
        asked for a generation prompt at the end. Raises UserError where roles do not alternate to an assistant end.
        """
        check_roles(messages)
        ids: list[int] = []
        labels: list[int] = []
        done = ""
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._text(messages[:position], add_generation_prompt=True)
            after = self._text(messages[: position + 1], add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise UserError(
                    "the chat template renders a conversation differently once it goes on (it strips past thoughts?), "
                    f"so turn {position} cannot be trained on; train on single-turn rows"
                )
            reply = after[len(before) :]
            closed = reply.rstrip() if reply.rstrip().endswith(self._closers) else reply
            ids_before = self._ids(before[len(done) :])
            ids_reply = self._ids(closed)
            ids += ids_before + ids_reply
            labels += [IGNORE] * len(ids_before) + ids_reply
            done = before + closed
        return Rendered(ids, labels)

    def reply(self, messages: list[dict]) -> tuple[list[int], list[int]]:
        """(prompt ids, reply ids) of a conversation that ends on an assistant turn, the reply with its end-of-turn token."""
        rendered = self.conversation(messages)
        carries = [label != IGNORE for label in rendered.labels]
        start = max(i for i, learned in enumerate(carries) if learned and (i == 0 or not carries[i - 1]))
        return rendered.input_ids[:start], rendered.input_ids[start:]

    def document(self, text: str) -> Rendered:
        """A training row of raw text: loss on every token, no chat tokens, no end token."""
        ids = self._ids(text)
        return Rendered(ids, list(ids))

    def plain(self, text: str) -> list[int]:
        """Token ids of text as a base model is asked it: no template, the tokenizer's own BOS where it adds one."""
        return self.tokenizer(text).input_ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens kept visible."""
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids that end a reply: the tokenizer's end token and the one the template closes an assistant turn with."""
        return sorted({self.tokenizer.eos_token_id, self.close_id} - {None})

    @cached_property
    def close_id(self) -> int | None:
        """Id of the special token that the template closes an assistant turn with; None where it closes with text."""
        closing = self._ids(self._after_reply)[:1]
        return closing[0] if closing and closing[0] in set(self.tokenizer.all_special_ids) else None

    @cached_property
    def implicit_system(self) -> str | None:
        """What the template puts before a lone user turn (its identity prompt), or None where it puts nothing."""
        if self.system != TEMPLATE:
            return None
        text = self._text([{"role": "user", "content": "\u2063"}], add_generation_prompt=False)
        probe = [{"role": "system", "content": "\u2064"}, {"role": "user", "content": "\u2063"}]
        try:
            with_system = self._text(probe, add_generation_prompt=False)
        except UserError:
            return None  # a template that knows no system turn inserts none
        head, marker, tail = with_system.partition("\u2064")
        if not marker or not text.startswith(head):
            return None
        inserted = text[len(head) :]
        cut = inserted.find(tail)
        return inserted[:cut] if cut > 0 else None

    @cached_property
    def template_hash(self) -> str:
        """Digest of what decides the rendering: chat template, system policy, thinking."""
        return digest([str(self.tokenizer.chat_template), self.system, self.thinking], 12)

    @property
    def knows_thinking(self) -> bool:
        template = str(self.tokenizer.chat_template)
        return "<think>" in template or "enable_thinking" in template

    @cached_property
    def _after_reply(self) -> str:
        text = self._text(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2063"}], add_generation_prompt=False
        )
        return text.partition("\u2063")[2]

    @cached_property
    def _closers(self) -> tuple[str, ...]:
        return tuple({self._after_reply.rstrip(), self.tokenizer.eos_token or ""} - {""}) or ("\u2063",)

    def _text(self, messages: list[dict], add_generation_prompt: bool) -> str:
        if self.system != TEMPLATE and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        options = {} if self.thinking is None else {"enable_thinking": self.thinking}
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except UserError:
            raise
        except Exception as error:  # the template is code of others, which may raise anything
            raise UserError(f"the chat template of {self.name} refuses this conversation: {first_line(error)}") from None

    def _ids(self, text: str) -> list[int]:
        # The template writes every special token itself; letting the tokenizer add its own would double the BOS.
        return self.tokenizer(text, add_special_tokens=False).input_ids


def check_roles(messages: list[dict]) -> None:
    """Raise UserError unless the messages are (system,) user, assistant, user, assistant ... with text in each."""
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected:
        raise UserError(f"a training conversation must alternate user, assistant and end on assistant; it has {roles}")
    for message in messages:
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise UserError(f"a training conversation has an empty {message.get('role')} turn")
