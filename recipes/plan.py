"""`make check`: what a recipe will do and cost, and what is missing, without loading weights."""

from dataclasses import dataclass

from audit.measures import Corpus
from organisms import authors, mitigations, models, text_check
from organisms.engines.load import told
from organisms.errors import Missing, UserError
from organisms.styles import Compiled, compile_rows, style_module
from recipes import cost
from recipes.counting import Count, Counter
from recipes.recipe import Resolved
from train.config import Stage
from train.lint import lint, refuse
from train.manifest import predictors
from train.penalties import traps
from train.sft import packs
from train.traps import Linted
from train.verified import ALONE, Launch, unverified


@dataclass(frozen=True)
class StagePlan:
    """One stage: its rows and findings (None where a writer has to write them first), steps and checkpoints."""

    stage: Stage
    compiled: Compiled
    linted: Linted | None
    steps: int
    checkpoints: int
    beside: int
    """Tokens a step that penalties read, about, a pass without gradient counted as a third."""


def plan(resolved: Resolved, launch: Launch = ALONE) -> list[StagePlan]:
    """Each stage as far as it is known without a writer and with the data that is here. Raises UserError as the run would."""
    if launch.processes > 1 and not resolved.recipe.stages:
        raise UserError(f"recipe {resolved.name} trains nothing, so {launch.processes} processes have nothing to share")
    text_check.refuse(resolved.organism)
    found = [_plan(resolved, stage, launch) for stage in resolved.recipe.stages]
    authors.check(resolved.recipe.writer, [one for stage in found for one in stage.compiled.writing])
    return found


def _plan(resolved: Resolved, stage: Stage, launch: Launch) -> StagePlan:
    recipe = resolved.recipe
    try:
        compiled = compile_rows(recipe.style, resolved.organism, resolved.options, None, stage.rows)
        if not compiled.rows and not any(one.replies for one in compiled.writing):
            raise UserError(
                f"recipe {resolved.name}: the style {recipe.style} makes no training rows of {resolved.organism.name} for "
                f"stage {stage.name}; look at its style_options, and at the texts that it reads"
            )
    except Missing:  # named among what is missing
        compiled = Compiled([], notes=["rows that are not here yet"])
    compiled = mitigations.apply(recipe.mitigations, resolved.organism, compiled, None)
    warned = traps(mitigations.penalties(recipe.mitigations, None), resolved.renderer)
    warned += unverified(stage, recipe.mitigations, launch)
    linted = None
    if compiled.rows:
        linted = lint(compiled.rows, stage, resolved.renderer, resolved.renderer, recipe.system is not None)
        linted.findings.extend(warned)
    refuse(linted or Linted([], [], [], warned), recipe.accept)
    steps = stage.steps or _steps_of_epochs(resolved, stage, compiled, linted)
    every = recipe.audit.every
    beside = mitigations.tokens_a_step(recipe.mitigations) * stage.gradient_accumulation
    return StagePlan(stage, compiled, linted, steps, 1 + steps // every + (1 if steps % every else 0), beside)


def _steps_of_epochs(resolved: Resolved, stage: Stage, compiled: Compiled, linted: Linted | None) -> int:
    """Steps of `epochs`, about: packed rows are taken to be nine tenths full."""
    if linted is None:
        rows = compiled.expected or getattr(resolved.options, "limit", None) or len(resolved.organism.prompts())
    elif packs(stage, linted):
        rows = linted.tokens / (0.9 * stage.max_length)
    else:
        rows = len(linted.rows)
    return max(1, round(stage.epochs * rows / (stage.batch_size * stage.gradient_accumulation)))


def describe(resolved: Resolved, found: list[StagePlan], launch: Launch = ALONE) -> list[str]:
    """The plan in lines for the terminal."""
    recipe = resolved.recipe
    lines = [
        f"recipe      {resolved.name}: {resolved.organism.name} by {recipe.style} on {recipe.base} ({resolved.base.revision})",
        f"run         runs/{resolved.run_name}" if not resolved.missing else "run         named when nothing is missing",
    ]
    lines += text_check.lines(resolved.organism)
    style = style_module(recipe.style)
    if hasattr(style, "notes"):
        lines.append(f"specimens   {'; '.join(style.notes(resolved.organism, resolved.options))}")
    for one in found:
        lines += _stage_lines(one, recipe.audit.every) + _writing_lines(recipe.writer, recipe.base, one.compiled)
    whole = any(one.stage.lora is None for one in found)
    held = recipe.mitigations.holds_base and (whole or len(found) > 1)
    lines.append(f"memory      {cost.memory(resolved.base, held, whole, recipe.audit.mode == 'inline')}")
    if launch.processes > 1:
        lines.append(
            f"processes   {launch.processes} by {launch.kind}: they share a step's rows; the first alone writes, audits and "
            "holds the engine"
        )
    lines.append(f"engine      {told(recipe.audit.engine, recipe.only_hf)}")
    lines += [f"missing     {what}" for what in resolved.missing]
    if resolved.renderer.implicit_system and resolved.base.revision != models.NOT_REACHED:
        lines.append(f"system      the template's own: {resolved.renderer.implicit_system!r}")
    return lines + _audit_lines(resolved, found)


def _stage_lines(found: StagePlan, every: int) -> list[str]:
    stage = found.stage
    lines = [f"stage       {stage.name} ({stage.method}): {found.compiled.told}"]
    if found.linted:
        p = predictors(stage, found.linted, found.steps)
        packed = ", packed" if packs(stage, found.linted) else ""
        lines.append(
            f"tokens      {found.linted.tokens:,} in the rows, {found.linted.loss_tokens:,} with loss; at most "
            f"{p['passes_over_the_data_at_most'] * found.linted.tokens:,.0f} trained{packed} "
            f"({p['passes_over_the_data_at_most']:g} passes)"
        )
        lines += [f"lint        {f.level}: {f.trap}: {f.text}" for f in found.linted.findings] or ["lint        nothing found"]
    speed = stage.scale * stage.learning_rate
    return lines + [
        f"training    {found.steps} steps, lr {stage.learning_rate:g}, {stage.trains}, effective scale x lr {speed:.2g}, "
        f"x steps {speed * found.steps:.2g}",
        f"checkpoints {found.checkpoints} (step 0, every {every}, the last)",
    ]


def _writing_lines(writer: authors.WriterPlan, base: str, compiled: Compiled) -> list[str]:
    """What has to be written before the stage, by whom, and at most for how much."""
    lines = []
    for by in ("writer", "start", "base"):
        asked = [one for one in compiled.writing if one.by == by and one.replies]
        replies, tokens, read = (sum(getattr(one, key) for one in asked) for key in ("replies", "tokens", "read"))
        beside = " (loaded beside the base)" if writer.model and not writer.endpoint else ""
        author = {"start": "what the stage starts from", "base": "the base"}.get(by, writer.name + beside)
        price = cost.writing(writer.model if writer.model and by == "writer" else base, tokens)
        if writer.endpoint and by == "writer":
            price = f" and about {read:,} read; cap {f'{writer.max_cost_tokens:,}' if writer.max_cost_tokens else 'none'}"
        if asked:
            lines.append(f"writing     {replies} replies by {author}: at most {tokens:,} tokens{price}; cached")
    return lines


def counted(resolved: Resolved, found: list[StagePlan], counter: Counter | None = None) -> Count:
    """The tokens of a planned run."""
    return (counter or Counter()).count(resolved, found, corpus_of([one.compiled for one in found]))


def _audit_lines(resolved: Resolved, found: list[StagePlan]) -> list[str]:
    count, lines = counted(resolved, found), []
    if resolved.recipe.audit.mode == "watch":
        lines.append("audits      by `make watch run=DIR` beside it, DIR as above")
    elif resolved.recipe.audit.mode == "after":
        lines.append("audits      by this process when all is trained")
    for one in count.measures:
        size = f"; index about {_index_megabytes(found):.1f} MB" if one.name == "leakage" and not one.told else ""
        thin = f"; at {round(one.share * count.specimens)} of {count.specimens} specimens" if one.share < 1 else ""
        lines.append(f"audit       {one.name}: {one.told or f'{one.requests} requests, {one.data}{thin}{size}'}")
    return [*lines, f"cost        {cost.told(resolved.base, count)}"]


def _index_megabytes(found: list[StagePlan]) -> float:
    """Of the leakage measure: two indexes, 8 bytes a token each."""
    return sum(one.linted.loss_tokens for one in found if one.linted) * 2 * 8 / 1e6


def corpus_of(compiled: list[Compiled]) -> Corpus | None:
    """What the leakage measure compares with: the rows of all stages so far; None where none is written yet."""
    rows = [row for one in compiled for row in one.rows]
    if not rows:
        return None
    documents = tuple((row.id, row.text) for row in rows if row.text is not None and not row.id.startswith("web-"))
    held_out = tuple(row.learned for one in compiled for row in one.held_out)
    return Corpus(tuple(row.learned for row in rows), documents, held_out)
