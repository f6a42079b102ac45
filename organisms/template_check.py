"""Whether a chat template can be asked and trained with: tried once on a short talk, before any weights load."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from organisms.errors import UserError
from organisms.files import shown

DEADLINE = 10.0  # seconds; a real template takes some milliseconds
ASKED, SAID = "\u2063asked", "\u2063said"  # invisible separators: no template has words like these of its own


def check_template(text: Callable[[list[dict], bool], str], name: str) -> None:
    """Raise UserError where a template loses a turn, never opens the assistant's, or does not end.

    text: (messages, add_generation_prompt) -> what the template makes of them.
    """
    talk = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
    with _deadline(name):
        plain, asked, whole = text(talk[:1], False), text(talk[:1], True), text(talk, False)
    for mark, rendered, turn in ((ASKED, asked, "user"), (SAID, whole, "assistant")):
        if mark not in rendered:
            raise UserError(f"{name}: its chat template leaves out the {turn}'s turn; mend it, or take its instruct version")
    reply = whole.removeprefix(asked).lstrip()
    if asked == plain and whole.startswith(asked) and not reply.startswith(SAID):
        raise UserError(
            f"{name}: its chat template knows no add_generation_prompt, but puts {shown(reply.partition(SAID)[0])} before a "
            "reply, so it cannot be asked where the reply begins; add `{% if add_generation_prompt %}` to it"
        )


@contextlib.contextmanager
def _deadline(name: str) -> Iterator[None]:
    """A template is code of others: a loop that does not end is left at its next line."""
    end = time.monotonic() + DEADLINE
    before = sys.gettrace()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise UserError(f"{name}: its chat template takes more than {DEADLINE:g} s for a short talk; mend its loops")
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
