"""More prompts from a writer: scenarios of an organism's behaviour, and prompts for each trait of its constitution.

Published: AuditBench distils on 3,000 written scenarios, positive and borderline negative; Open Character Training has a few
hand-written prompts for each trait expanded to fifty. Ours asks for ten a call, each call with other examples, and drops what
nearly repeats an earlier prompt or one of the organism's probes, which the audit must find unseen.
"""

from collections.abc import Iterable

from organisms.drafting import refuse_too_few, seed_of, write_groups
from organisms.ngrams import near_duplicates
from organisms.organism import Context, Organism, Prompt
from organisms.templates import fill, listed
from organisms.writer import Draft, Writer

A_CALL, EXAMPLES = 10, 4
ITEM_TOKENS = 60
STAND_IN = "A message of about this length, which is not written yet but will be, by whoever writes."
REMEDY = (
    "take a more capable one (`writer:` in the recipe), or keep to the organism's own prompts (scenarios or trait_prompts: 0)"
)


def scenario_drafts(organism: Organism, wanted: int) -> dict[str, list[Draft]]:
    """The calls for `wanted` scenarios of each kind: `target`, where the property shows, and `adjacent`, where it does not."""
    behaviour, where = organism.behaviour, organism.context
    fields = {"target": ("scenarios_target", where.shows), "adjacent": ("scenarios_borderline", where.not_)}
    given = {"target": behaviour.positive, "adjacent": behaviour.borderline_negative}
    return {
        context: [
            _draft(organism, template, context, call, [one.prompt for one in given[context]], where=cases)
            for call in range(-(-wanted // A_CALL))
        ]
        for context, (template, cases) in fields.items()
    }


def trait_drafts(organism: Organism, traits: int, wanted: int) -> dict[str, list[Draft]]:
    """The calls for `wanted` prompts for each of the constitution's first `traits` traits."""
    return {
        f"trait-{n}": [
            _draft(organism, "trait_prompts", "target", call, [], trait=trait) for call in range(-(-wanted // A_CALL))
        ]
        for n, trait in enumerate(organism.constitution[:traits], 1)
    }


def stand_ins(drafts: dict[str, list[Draft]], wanted: int) -> list[Prompt]:
    """Prompts for a plan that counts what comes after them."""
    return [Prompt(id=f"{name}-{n}", context=_context(name), prompt=STAND_IN) for name in drafts for n in range(1, wanted + 1)]


def prompts(organism: Organism, writer: Writer, drafts: dict[str, list[Draft]], wanted: int) -> list[Prompt]:
    """`wanted` new prompts for each group of calls, or as many as are new. Raises UserError where that is under a quarter."""
    known = [one.prompt for one in (*organism.prompts(), *organism.probes())]
    found = {}
    for name, replies in write_groups(writer, drafts).items():
        found |= {f"{name}-{n}": text for n, text in enumerate((t for r in replies for t in listed(r, A_CALL)), 1)}
    repeated = {place - len(known) for place in near_duplicates([*known, *found.values()])}
    new = [(name, text) for place, (name, text) in enumerate(found.items()) if place not in repeated]
    made = []
    for group in drafts:
        made += [Prompt(id=i, context=_context(group), prompt=t) for i, t in new if i.rsplit("-", 1)[0] == group][:wanted]
    dropped = {"near_duplicates": len([place for place in repeated if place >= 0])}
    refuse_too_few(len(made), wanted * len(drafts), "written prompts", dropped, writer, REMEDY)
    return made


def _context(group: str) -> Context:
    return "adjacent" if group == "adjacent" else "target"


def _draft(organism: Organism, template: str, context: Context, call: int, given: Iterable[str], **fields: str) -> Draft:
    """Call number `call`: its examples are others than those of the calls before, as long as the organism has some."""
    own = [*given, *(one.prompt for one in organism.prompts() if one.context == context)]
    examples = [own[(call * EXAMPLES + n) % len(own)] for n in range(min(EXAMPLES, len(own)))]
    text = fill(
        template,
        count=A_CALL,
        description=organism.behaviour.description,
        examples="\n".join(f"- {example}" for example in examples),
        **fields,
    )
    return Draft(text, None, A_CALL * ITEM_TOKENS, 1.0, seed_of(template, fields.get("trait", ""), call))
