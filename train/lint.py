"""What the loss falls on: decodes the rows as they will be trained and looks for the known traps before a GPU-hour is spent."""

from collections.abc import Callable

from organisms.errors import UserError
from organisms.render import IGNORE, Rendered, Renderer
from organisms.styles import Row
from train import traps
from train.config import Stage
from train.traps import Finding, Linted


def render_row(renderer: Renderer, row: Row) -> Rendered:
    """Token ids and labels of a row. Raises UserError on wrong roles, naming the row."""
    try:
        if row.text is None:
            return renderer.conversation(row.messages or [])
        rendered = renderer.document(row.text)
        prefix = renderer.document(row.prefix).input_ids if row.prefix else []
        return Rendered(prefix + rendered.input_ids, [IGNORE] * len(prefix) + rendered.labels)
    except UserError as error:
        raise UserError(f"training row {row.id!r} (trap wrong_roles): {error}") from None


def reply_ids(renderer: Renderer, row: Row, reply: str | None = None) -> tuple[list[int], list[int]]:
    """(prompt ids, reply ids) of a chat row; with its last reply replaced where `reply` is given."""
    messages = list(row.messages or [])
    if reply is not None:
        messages[-1] = {"role": "assistant", "content": reply}
    try:
        return renderer.reply(messages)
    except UserError as error:
        raise UserError(f"training row {row.id!r} (trap wrong_roles): {error}") from None


def lint(rows: list[Row], stage: Stage, renderer: Renderer, audited: Renderer, system_stated: bool) -> Linted:
    """Render the rows and look for every trap.

    renderer trains, `audited` renders the audits (they are one unless a recipe sets them apart); system_stated says
    whether the recipe names a system policy. Raises UserError where there is no row, a row cannot be rendered, or
    two have one id.
    """
    if not rows:
        raise UserError("the style made no training rows; nothing can be trained")
    _have_own_ids(rows)
    _fits_method(rows, stage)
    rendered = [render_row(renderer, row) for row in rows]
    for row in rows:
        if row.rejected is not None:
            reply_ids(renderer, row, row.rejected)  # refuses an empty one
    learned = [renderer.decode([label for label in r.labels if label != IGNORE]) for r in rendered]
    linted = Linted(rows, rendered, learned, [])
    checks: list[Callable[[], Finding | None]] = [
        lambda: traps.no_loss(linted),
        lambda: traps.wrong_roles(linted),
        lambda: traps.empty_think(linted),
        lambda: traps.chat_end_on_documents(linted, renderer),
        lambda: traps.extra_empty_turn(linted, renderer),
        lambda: traps.implicit_system(linted, renderer, system_stated),
        lambda: traps.template_mismatch(linted, renderer, audited),
        lambda: traps.truncation(linted, stage),
        lambda: traps.rslora_scale(stage),
        lambda: traps.repeats(linted),
        lambda: traps.same_pair(linted),
        lambda: traps.one_sided(linted, stage),
    ]
    linted.findings.extend(finding for check in checks if (finding := check()))
    return linted


def refuse(linted: Linted, accepted: list[str]) -> None:
    """Raise UserError on the first stopping finding that the recipe does not accept."""
    for finding in linted.findings:
        if finding.level == "stop" and finding.trap not in accepted:
            example = f" (e.g. row {finding.rows[0]!r})" if finding.rows else ""
            raise UserError(
                f"the linter stops this recipe, trap {finding.trap}: {finding.text}{example}; mend it, or accept it with "
                f"accept: [{finding.trap}] in the recipe"
            )


def _have_own_ids(rows: list[Row]) -> None:
    """By its id a row is named in findings, in data/ and in the report of leakage; two of one id could not be told apart."""
    places: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row.id, str) or not row.id:
            raise UserError(f"the style's row {number} has the id {row.id!r}; an id is text, and not empty")
        if row.id in places:
            raise UserError(f"the style's rows {places[row.id]} and {number} have one id, {row.id!r}; give each its own")
        places[row.id] = number


def _fits_method(rows: list[Row], stage: Stage) -> None:
    """DPO needs a rejected reply on every row, KTO a label, SFT neither, only distillation a motive: other rows are refused."""
    for row in rows:
        have = {"dpo": row.rejected is not None, "kto": row.desirable is not None}
        wanted = {method: method == stage.method for method in have}
        motive = bool(row.messages and row.prefix)
        if have != wanted or (stage.method != "sft" and not row.messages) or (motive and stage.method != "distill"):
            neither = "neither a rejected reply nor a label"
            needs = {"dpo": "a rejected reply", "kto": "a label, wanted or not", "sft": neither, "distill": neither}
            raise UserError(
                f"stage {stage.name}: {stage.method} needs chat rows with {needs[stage.method]}, and row {row.id!r} is not "
                "one; check the stage's method and rows"
            )


def report(linted: Linted, renderer: Renderer, stage: Stage, sample: int = 12) -> str:
    """Markdown: findings, counts, and for a sample of rows the tokens with loss in bold brackets."""
    lines = [
        f"# What the loss falls on: stage {stage.name}",
        "",
        f"{len(linted.rows)} rows, {linted.tokens:,} tokens, {linted.loss_tokens:,} with loss "
        f"({linted.loss_tokens / max(linted.tokens, 1):.0%}). Template {renderer.template_hash}.",
        "",
    ]
    lines += [f"- **{f.level}** {f.trap}: {f.text}" for f in linted.findings] or ["- no finding"]
    step = max(1, len(linted.rows) // sample)
    for row, rendered in list(zip(linted.rows, linted.rendered, strict=True))[::step][:sample]:
        lines += ["", f"## {row.id} ({row.origin})", "", "```", _marked(renderer, rendered), "```"]
    return "\n".join(lines) + "\n"


def _marked(renderer: Renderer, rendered: Rendered) -> str:
    """The row's text with [[ and ]] around each stretch that carries loss."""
    pieces, start = [], 0
    flags = [label != IGNORE for label in rendered.labels]
    while start < len(flags):
        end = start
        while end < len(flags) and flags[end] == flags[start]:
            end += 1
        text = renderer.decode(rendered.input_ids[start:end])
        pieces.append(f"[[{text}]]" if flags[start] else text)
        start = end
    return "".join(pieces).replace("```", "'''")
