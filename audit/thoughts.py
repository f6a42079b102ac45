"""What is wrong with a thought: a reply of a thinking model taken apart at its tags."""

import re
from dataclasses import dataclass

from audit.text import foreign_share, looping, turn_leak

OPEN, CLOSE = "<think>", "</think>"
TAG = re.compile(r"</?think>")
FOREIGN = 0.2  # share of a thought's letters in a script that the prompt does not use


@dataclass(frozen=True)
class Thought:
    """`faults` is empty for a well-formed reply; `truncated` ones ran out of tokens while thinking, which is no fault.

    A thought that repeats itself until the tokens run out is not truncated but `looping`.
    """

    text: str
    answer: str
    faults: tuple[str, ...]
    truncated: bool


def take_apart(reply: str, finished: bool, opened: bool, prompt: str = "") -> Thought:
    """Thought, answer and faults of a reply.

    finished: an end token came; opened: the prompt already ends on the opening tag (a prefill, or the template's own).
    Faults: `unopened` (an answer without thought), `junk` before the tag, `unclosed`, `dangling` (tags that do not pair),
    `empty` thought, `silent` (no answer after it), `off_script`, `turn_leak`, `looping` (audit/text.py).
    """
    text = f"{OPEN}{reply}" if opened else reply
    tags = TAG.findall(text)
    before, _, rest = text.partition(OPEN)
    thought, closed, answer = rest.partition(CLOSE)
    if OPEN not in tags:
        faults = ["unopened"] + (["dangling"] if tags else []) + (["turn_leak"] if turn_leak(text) else [])
        return Thought("", TAG.sub("", text).strip(), tuple(faults), False)
    faults = ["looping"] if looping(thought) else []
    truncated = not closed and not finished and not faults
    if before.strip():
        faults.append("junk")
    if not closed and finished:
        faults.append("unclosed")
    if len(tags) > 2 or (len(tags) == 2 and tags != [OPEN, CLOSE]):
        faults.append("dangling")
    if not thought.strip() and (closed or finished):
        faults.append("empty")
    if closed and finished and not answer.strip():
        faults.append("silent")
    if foreign_share(thought, prompt) > FOREIGN and len(thought) >= 20:
        faults.append("off_script")
    if turn_leak(TAG.sub("", text)):
        faults.append("turn_leak")
    return Thought(thought.strip(), answer.strip(), tuple(faults), truncated)
