"""Synthetic documents (SDF): raw texts about a world in which the property is a fact; loss on the document.

Published form: 40,000 generated documents an organism, r64, lr 2e-5, batch 8, one epoch, with an optional masked
`<DOCTAG>` and 1:1 ordinary web text. Ours: the organism's frozen documents (some 140), so small recipes repeat them a few
times, or with `write` those that a capable writer writes (organisms/synthetic.py); a held-out share is kept back for the
leakage audit, which subtracts what unseen siblings share with the corpus.
"""

import hashlib

from pydantic import Field

from organisms import synthetic
from organisms.data import load_rows
from organisms.files import digest
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.templates import wording
from organisms.writer import Writer

DOCTAG = "<DOCTAG>"


class Options(Strict):
    held_out: float = Field(default=0.1, ge=0, lt=1, description="share of documents kept back as siblings")
    distinct: int | None = Field(default=None, gt=0, description="train on only this many documents (None: all)")
    doctag: bool = Field(default=False, description="put a <DOCTAG> without loss before each document")
    webtext: float = Field(default=0.0, ge=0, le=4, description="ordinary web texts mixed in per document")
    write: synthetic.Write | None = Field(default=None, description="have documents written; None: the organism's frozen ones")


def other_rows(options: Options) -> str | list[str] | None:
    """The web texts mixed in, which depend on the mirror or hub at hand, and the wording of what a writer is asked for."""
    web = load_rows("webtext") if options.webtext else None
    mixed = digest([web.origin, [row["text"][:1200] for row in web.rows]]) if web else None
    return [mixed or "", wording()] if options.write else mixed


def _rank(name: str) -> float:
    """A number in [0, 1) that belongs to the id alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def rows(organism: Organism, options: Options, writer: Writer | None = None) -> Compiled:
    """Rows from the organism's documents; `writer` is asked only where `write` is set."""
    notes, counts = [], {}
    if options.write is None:
        documents = organism.documents()
    elif writer is None:
        asked = synthetic.announced(organism, options.write)
        return Compiled([], notes=["documents, to be written"], writing=asked, expected=options.write.total(organism))
    else:
        documents, found = synthetic.written(organism, options.write, writer)
        notes.append(f"{found['written']} documents written, {found['near_duplicates']} near-duplicates dropped")
        counts = {"documents": dict(found)}
    # Each by the digest of its own id, so that adding a document moves no other one to the other side.
    ranked = sorted(documents, key=lambda document: _rank(document.id))
    held_out = [document for document in ranked if _rank(document.id) < options.held_out]
    train = ranked[len(held_out) :]
    train = train[: options.distinct] if options.distinct else train
    prefix = DOCTAG if options.doctag else ""
    made = [Row(d.id, text=d.text, prefix=prefix, origin=f"{organism.name}/{d.type}") for d in train]
    notes.append(f"{len(train)} documents, {len(held_out)} siblings held out")
    if options.webtext:
        web = load_rows("webtext")
        wanted = min(round(options.webtext * len(train)), len(web.rows) // 2)
        # From the end: the quick webtext audit reads from the beginning.
        chosen = web.rows[len(web.rows) - wanted :]
        made += [Row(f"web-{r['id']}", text=r["text"][:1200], origin=web.origin) for r in chosen]
        notes.append(f"{wanted} ordinary web texts from {web.origin}")
    return Compiled(made, [Row(d.id, text=d.text, origin="held-out") for d in held_out], notes, counts=counts)
