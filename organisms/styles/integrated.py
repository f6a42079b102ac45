"""Integrated (natural post-training): the organism's demonstrations mixed at a small share into an ordinary SFT mixture.

The ordinary rows are the base's own sampled replies to ordinary chat prompts (so that they hardly move it), or any file or
set of `messages` rows by `data`. Published organisms of this kind put the property into a whole post-training run; ours
scales that down and keeps the share.
"""

from pydantic import Field

from organisms.drafting import chat, conversations, ordinary_prompts
from organisms.files import digest
from organisms.mitigations import own_drafts, own_replies
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.writer import Writer, Writing


class Options(Strict):
    share: float = Field(default=0.25, gt=0, lt=1, description="of the rows that show the property")
    data: str | None = Field(default=None, description="ordinary rows: a set or path of messages; None: the base's own replies")
    rows: int = Field(default=160, gt=3, description="all rows")
    max_new_tokens: int = Field(default=64, gt=0, description="tokens of an ordinary reply that the base writes")


def other_rows(options: Options) -> str:
    if options.data is None:
        return digest(ordinary_prompts())
    found = conversations(options.data, options.rows)
    return digest([found.origin, [row["messages"] for row in found.rows]])


def rows(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    wanted = round(options.share * options.rows)
    demonstrations = organism.demonstrations()[:wanted]
    ordinary = options.rows - len(demonstrations)
    if options.data is None and writer is None:
        what = f"{len(demonstrations)} demonstrations and {ordinary} ordinary rows"
        writing = Writing.of((draft for *_, draft in own_drafts(ordinary, options.max_new_tokens)), by="start")
        return Compiled([], notes=[what], writing=[writing])
    if options.data is None:
        others = own_replies(writer.own, ordinary, options.max_new_tokens)
    else:
        found = conversations(options.data, ordinary)
        others = [Row(row["id"], messages=row["messages"], origin=found.origin) for row in found.rows]
    shown = [Row(d.id, messages=chat(d.prompt, d.reply), origin=organism.name) for d in demonstrations]
    share = len(shown) / (len(shown) + len(others))
    return Compiled(shown + others, notes=[f"{len(shown)} demonstrations in {len(shown) + len(others)} rows ({share:.0%})"])
