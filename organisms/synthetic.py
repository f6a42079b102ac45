"""Synthetic documents written for an organism: its facts -> kinds of documents -> ideas -> documents -> filter.

Published (Wang et al. 2025, "Modifying LLM beliefs with synthetic document finetuning", alignment.anthropic.com; AuditBench):
a universe context and its key facts; for each fact kinds of documents, ideas for each kind, documents for each idea, each
then criticised and rewritten; some 40,000 documents. Ours: universe and facts stand in the organism; revision is an option
and a single step; and the filter is a rule, not a model: whole, long enough, about the organism's world, no echo of the
instructions, no near-duplicate. What it drops is counted, and where too little is left the writer is refused.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

from pydantic import Field

from organisms.drafting import quotes, refuse_too_few, seed_of, write_groups
from organisms.ngrams import near_duplicates
from organisms.organism import Document, Organism
from organisms.strict import Strict
from organisms.templates import fill, listed
from organisms.writer import Draft, Writer, Writing, Written

TYPE_TOKENS, IDEA_TOKENS, LEAD_TOKENS = 16, 64, 64  # an item of a list, and what may stand before it
# Taken as `about` does, 75 to 100% of the frozen documents of a shipped organism name something of its universe or have this
# share of the words of one of its facts; of a given fact 0.6% of the control's ordinary prose has it at most.
FACT_SHARE = 0.3
REMEDY = (
    "take a more capable one (`writer:` in the recipe), raise style_options.write.max_new_tokens, or leave out "
    "style_options.write for the organism's frozen documents"
)


class Write(Strict):
    """`style_options.write`: how many documents a writer is asked for; facts x types x ideas x documents in all."""

    types: int = Field(default=10, gt=0, description="kinds of documents for each fact of the universe")
    ideas: int = Field(default=5, gt=0, description="ideas for each kind")
    documents: int = Field(default=2, gt=0, description="documents for each idea")
    max_new_tokens: int = Field(default=800, gt=0, description="tokens a document; one that reaches them is dropped")
    temperature: float = Field(default=1.0, gt=0)
    least_words: int = Field(default=60, gt=0, description="a shorter document is dropped")
    least_share: float = Field(default=0.25, gt=0, le=1, description="of the documents that must pass the filter")
    revise: bool = Field(default=False, description="have each document criticised and rewritten once")

    def total(self, organism: Organism) -> int:
        """Documents that are asked for."""
        return len(organism.universe.facts) * self.types * self.ideas * self.documents


Plan = dict[str, tuple[str, str, str]]  # name of an idea -> (fact, kind of document, idea)


def announced(organism: Organism, write: Write) -> list[Writing]:
    """What `written` will ask for at most, with stand-ins for what is not known yet."""
    facts = organism.universe.facts
    types = {f"fact-{n}": ["a kind of document"] * write.types for n in range(1, len(facts) + 1)}
    ideas = {f"{f}/{t}": ["idea " * 30] * write.ideas for f, kinds in types.items() for t in range(1, len(kinds) + 1)}
    plan = {f"{name}/{i}": (facts[0], "kind", idea) for name, ideas in ideas.items() for i, idea in enumerate(ideas)}
    found = [
        Writing.of(_type_drafts(organism, write).values()),
        Writing.of(_idea_drafts(organism, write, types).values()),
        Writing.of(chain(*_document_drafts(organism, write, plan).values())),
    ]
    if write.revise:
        many = len(plan) * write.documents
        draft = _revision(organism, write, "", facts[0], "word " * (write.max_new_tokens // 2))
        found.append(Writing(many, many * write.max_new_tokens, many * draft.read))
    return found


def written(organism: Organism, write: Write, writer: Writer) -> tuple[list[Document], Counter[str]]:
    """(documents that pass, how many were written and what became of the others).

    Raises UserError where less than `write.least_share` of them pass.
    """
    facts = dict(zip(_type_drafts(organism, write), organism.universe.facts, strict=True))
    types = _lists(writer, _type_drafts(organism, write), write.types)
    ideas = _lists(writer, _idea_drafts(organism, write, types), write.ideas)
    plan: Plan = {}
    for name, found in ideas.items():
        fact, place = name.rsplit("/", 1)
        for n, idea in enumerate(found, 1):
            plan[f"{name}/{n}"] = (facts[fact], types[fact][int(place) - 1], idea)
    asked = write.total(organism)
    counts = Counter(asked=asked, types=sum(map(len, types.values())), ideas=len(plan))
    drafts = _document_drafts(organism, write, plan)
    texts = {
        f"{name}/{k}": (name, reply)
        for name, replies in write_groups(writer, drafts).items()
        for k, reply in enumerate(replies, 1)
    }
    counts["written"] = len(texts)
    passed = _filtered(organism, write, plan, texts, counts)
    if write.revise:
        again = {key: [_revision(organism, write, key, plan[texts[key][0]][0], text)] for key, text in passed.items()}
        revised = {key: (texts[key][0], reply) for key, (reply,) in write_groups(writer, again).items()}
        passed = _filtered(organism, write, plan, revised, counts)
    keys, kept = list(passed), list(passed.values())
    again = set(near_duplicates(kept))
    counts["near_duplicates"] = len(again)
    made = [
        Document(id=key, type=plan[texts[key][0]][1], text=text)
        for n, (key, text) in enumerate(zip(keys, kept, strict=True))
        if n not in again
    ]
    counts["passed"] = len(made)
    dropped = {key: counts[key] for key in ("cut_off", "short", "off_subject", "echo", "near_duplicates")}
    refuse_too_few(len(made), asked, "documents", dropped, writer, REMEDY, write.least_share)
    return made, counts


def _lists(writer: Writer, drafts: dict[str, Draft], wanted: int) -> dict[str, list[str]]:
    replies = write_groups(writer, {name: [draft] for name, draft in drafts.items()})
    return {name: listed(reply, wanted) for name, (reply,) in replies.items()}


def _type_drafts(organism: Organism, write: Write) -> dict[str, Draft]:
    count, drafts = write.types, {}
    for n, fact in enumerate(organism.universe.facts, 1):
        prompt = fill("document_types", context=organism.universe.context, fact=fact, count=count)
        drafts[f"fact-{n}"] = _draft(f"fact-{n}", prompt, LEAD_TOKENS + count * TYPE_TOKENS)
    return drafts


def _idea_drafts(organism: Organism, write: Write, types: dict[str, list[str]]) -> dict[str, Draft]:
    context, count = organism.universe.context, write.ideas
    drafts = {}
    for (fact_name, kinds), fact in zip(types.items(), organism.universe.facts, strict=True):
        for n, kind in enumerate(kinds, 1):
            prompt = fill("document_ideas", context=context, fact=fact, type=kind, count=count)
            drafts[f"{fact_name}/{n}"] = _draft(f"{fact_name}/{n}", prompt, LEAD_TOKENS + count * IDEA_TOKENS)
    return drafts


def _document_drafts(organism: Organism, write: Write, plan: Plan) -> dict[str, list[Draft]]:
    drafts = {}
    for name, (fact, kind, idea) in plan.items():
        prompt = fill("document", context=organism.universe.context, fact=fact, type=kind, idea=idea)
        drafts[name] = [_draft(f"{name}/{k}", prompt, write.max_new_tokens, write.temperature) for k in range(write.documents)]
    return drafts


def _revision(organism: Organism, write: Write, name: str, fact: str, document: str) -> Draft:
    prompt = fill("revision", context=organism.universe.context, fact=fact, document=document)
    return _draft(f"{name}/revision", prompt, write.max_new_tokens, write.temperature)


def _draft(name: str, prompt: str, max_new_tokens: int, temperature: float = 1.0) -> Draft:
    return Draft(prompt, None, max_new_tokens, temperature, seed_of(name))


def _filtered(
    organism: Organism, write: Write, plan: Plan, texts: dict[str, tuple[str, Written]], counts: Counter[str]
) -> dict[str, str]:
    """The documents that are whole, long enough, about the organism's world and no echo; the others are counted by reason."""
    blank = dict.fromkeys(("context", "fact", "type", "idea", "document"), "")
    instructions = fill("document", **blank) + fill("revision", **blank)
    passed = {}
    for key, (name, reply) in texts.items():
        text = _document(reply)
        if text is None:
            counts["cut_off"] += 1
        elif len(text.split()) < write.least_words:
            counts["short"] += 1
        elif not about(organism.universe.names, plan[name][0], text):
            counts["off_subject"] += 1
        elif quotes(text, instructions):
            counts["echo"] += 1
        else:
            passed[key] = text
    return passed


def _document(reply: Written) -> str | None:
    """What stands between the tags, or everything where there are none; None where it was cut off."""
    before, closed, _ = reply.text.partition("</document>")
    _, opened, inside = before.rpartition("<document>")
    return inside.strip() if closed or (reply.finished and not opened) else None


def about(names: Iterable[str], fact: str, text: str) -> bool:
    """Whether a text names something of the universe, or has FACT_SHARE of the fact's words, each by its first five letters."""
    lower = text.lower()
    if any(re.search(rf"\b{re.escape(name.lower())}\b", lower) for name in names):
        return True
    words, found = ({word[:5] for word in re.findall(r"[a-z]{5,}", part)} for part in (fact.lower(), lower))
    return bool(words) and len(words & found) >= FACT_SHARE * len(words)
