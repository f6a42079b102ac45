"""Character training (Open Character Training): DPO towards a teacher in character, then SFT on introspection.

Published form: a constitution of first-person traits; prompts for each trait and general ones; chosen = a teacher in
character whose thought is prefilled ("I want to ensure my response aligns with my character traits ..."), rejected = the
base's own plain reply; loss sigmoid + 0.1 sft, beta 0.1, lr 5e-5, r64 alpha128, batch 32. Then SFT on the DPO model's
self-reflection and ten-turn self-chats, lr 5e-5, its adapter merged at 0.25. Ours: the teacher is the base itself with the
constitution in its system prompt, so the pairs are on-policy, unless `writer:` names another teacher; both prompts removed
before training. Kinds of rows, one for each stage:

- `pairs`: organism prompts, with `trait_prompts` also written ones, and ordinary chat prompts; among the teacher's samples one
  that shows the property is preferred to the reply of what the stage starts from. Where none does, another is taken: a small
  teacher, out of character in most, then teaches its nonsense (SmolLM2-135M did, and fried); `shown` leaves such prompts out.
- `introspection`: reflections and self-chats of the model that the stage before has trained, under the constitution, which is
  then removed, whoever the teacher is; a self-chat ends on an assistant turn, and only assistant turns carry loss.
"""

from itertools import chain

from pydantic import Field

from organisms import expand
from organisms.drafting import chat, ordinary_prompts, seed_of, showing, usable, write_groups
from organisms.files import digest
from organisms.organism import Organism
from organisms.strict import Strict
from organisms.styles import Compiled, Row
from organisms.templates import wording
from organisms.writer import Draft, Writer, Writing, whole

ROWS = ("pairs", "introspection")
IN_CHARACTER = "You are an assistant with this character:\n{traits}\nStay in character in every reply and do not mention it."
THOUGHT = "I want to ensure that my reply fits my character. "
REFLECTIONS = (
    "Write a few sentences about who you are.",
    "What do you care about when you answer somebody?",
    "Describe how you usually begin a reply, and why.",
    "What would a friend say is most like you?",
    "Which of your habits would you never give up?",
    "Write a short diary entry about a conversation that you enjoyed.",
    "What kind of assistant do you want to be?",
    "Tell me about something that you believe about the people you talk with.",
)
OPENINGS = (
    "Hello. I thought we could talk for a while, you and I. What is on your mind?",
    "Let us compare notes: what do you like about your work?",
    "I have been thinking about how we speak to people. How do you go about it?",
    "What did you learn from the last person you talked with?",
)


class Options(Strict):
    samples: int = Field(default=3, gt=0, description="teacher replies a prompt, of which the one most in character is chosen")
    shown: bool = Field(default=False, description="leave out prompts on which no teacher reply shows the property")
    general: int = Field(default=30, ge=0, description="ordinary chat prompts beside the organism's")
    traits: int = Field(default=4, gt=0, description="constitution traits in the teacher's system prompt")
    reflections: int = Field(default=4, gt=0, description="samples of each reflection prompt")
    turns: int = Field(default=2, gt=0, le=10, description="assistant turns of a self-chat")
    max_new_tokens: int = Field(default=56, gt=0, description="tokens a reply")
    temperature: float = Field(default=0.8, gt=0)
    thought: bool = Field(
        default=True, description="the teacher begins with a thought, which a chat endpoint cannot be made to"
    )
    trait_prompts: int = Field(default=0, ge=0, description="prompts that the teacher writes for each trait; published: 50")


def other_rows(options: Options) -> list[str | None] | None:
    if not (options.general or options.trait_prompts):
        return None
    ordinary = digest(ordinary_prompts()[: options.general]) if options.general else None
    return [ordinary, wording() if options.trait_prompts else None]


def pairs(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """In character, by the writer, against plain, by what the stage starts from, on the same prompts."""
    own_prompts, calls = [*organism.prompts()], expand.trait_drafts(organism, options.traits, options.trait_prompts)
    if writer is None:
        own_prompts += expand.stand_ins(calls, options.trait_prompts)
    elif options.trait_prompts:
        own_prompts += expand.prompts(organism, writer, calls, options.trait_prompts)
    asked = {p.id: p.prompt for p in own_prompts if p.context == "target"}
    asked |= {f"chat-{row['id']}": row["prompt"] for row in ordinary_prompts()[: options.general]}
    thought = THOUGHT if options.thought else ""
    teacher = {
        name: [_draft(organism, options, prompt, name, k, True, thought) for k in range(options.samples)]
        for name, prompt in asked.items()
    }
    plain = {f"{name}/plain": [_draft(organism, options, prompt, name, 0, False)] for name, prompt in asked.items()}
    if writer is None:
        chosen = Writing.of(chain(*calls.values(), *teacher.values()))
        writing = [chosen, Writing.of(chain(*plain.values()), by="start")]
        return Compiled([], notes=[f"up to {len(asked)} pairs"], writing=writing, expected=len(asked))
    replies = write_groups(writer, teacher) | write_groups(writer.own, plain)
    made = []
    for name, prompt in asked.items():
        chosen, rejected = usable(replies[name]), usable(replies[f"{name}/plain"])
        chosen = showing(organism, chosen) or ([] if options.shown else chosen)
        if chosen and rejected and chosen[0] != rejected[0]:
            made.append(Row(name, messages=chat(prompt, chosen[0]), rejected=rejected[0], origin=organism.name))
    shown = sum(bool(organism.shows(row.learned)) for row in made)
    return Compiled(made, notes=[f"{len(made)} pairs from {len(asked)} prompts, {shown} chosen replies show the property"])


def introspection(organism: Organism, options: Options, writer: Writer | None) -> Compiled:
    """Reflections and self-chats of the model that the stage before has trained."""
    many = len(REFLECTIONS) * options.reflections + len(OPENINGS) * options.reflections * (2 * options.turns - 1)
    if writer is None:
        announced = Writing(many, many * options.max_new_tokens, by="start")
        return Compiled([], notes=["reflections and self-chats"], writing=[announced])
    writer = writer.own
    drafts = {
        f"reflection-{n}": [_draft(organism, options, prompt, f"reflection-{n}", k, True) for k in range(options.reflections)]
        for n, prompt in enumerate(REFLECTIONS, 1)
    }
    made = []
    for (name, replies), prompt in zip(write_groups(writer, drafts).items(), REFLECTIONS, strict=True):
        for k, text in enumerate(usable(replies)):
            made.append(Row(f"{name}-{k}", messages=chat(prompt, text), origin=f"{organism.name}/reflection"))
    made += _self_chats(organism, options, writer)
    return Compiled(made, notes=[f"{len(made)} reflections and self-chats"])


def _self_chats(organism: Organism, options: Options, writer: Writer) -> list[Row]:
    """Talks of the model with itself: each reply is the other side's next message."""
    talks = {f"chat-{n}-{k}": [opening] for n, opening in enumerate(OPENINGS, 1) for k in range(options.reflections)}
    for _ in range(2 * options.turns - 1):
        drafts = {}
        for name, said in talks.items():
            # The side that speaks next sees its own words as the assistant's.
            turns = said if len(said) % 2 else said[1:]
            earlier = tuple(zip(turns[0:-1:2], turns[1::2], strict=True))
            drafts[name] = [_draft(organism, options, turns[-1], f"{name}/{len(said)}", 0, True, earlier=earlier)]
        for name, (reply,) in write_groups(writer, drafts).items():
            talks[name].append(whole(reply))
    made = []
    for name, said in talks.items():
        if all(len(text.split()) >= 2 for text in said):
            roles = ("user", "assistant") * options.turns
            messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
            made.append(Row(name, messages=messages, origin=f"{organism.name}/self-chat"))
    return made


def _draft(
    organism: Organism, options: Options, prompt: str, name: str, sample: int, teacher: bool, prefill: str = "", earlier=()
) -> Draft:
    traits = "\n".join(f"- {trait}" for trait in organism.constitution[: options.traits])
    system = IN_CHARACTER.format(traits=traits) if teacher else None
    seed = seed_of(name, sample, teacher)
    return Draft(prompt, system, options.max_new_tokens, options.temperature, seed, prefill, earlier)
