"""BCT trains the wrapped prompt on the reply to the clean one; wrappers are a frozen set or a file of one's own."""

import hashlib
import json

import pytest

from audit.measures import half
from organisms import organism
from organisms.consistency import Consistency, wrapped_prompts
from organisms.data import EMBEDDED_SETS, load_rows
from organisms.drafting import chat
from organisms.errors import UserError
from organisms.mitigations import Mitigations, apply, penalties
from organisms.styles import Compiled, Row
from organisms.writer import Written
from recipes.plan import describe, plan
from recipes.recipe import resolve

PROMPTS = {row["prompt"]: row["id"] for row in load_rows("chat").rows}


class Voice:
    """Writes the prompt back under its own name, and remembers what it was asked."""

    def __init__(self, name, own=None):
        self.name, self.drafts, self.own = name, [], own or self

    def write(self, drafts, fragments=False):
        self.drafts += drafts
        return [Written(f"{self.name} was asked: {draft.prompt}", True) for draft in drafts]


@pytest.fixture(scope="module")
def flattery():
    return organism.load("flattery")


def compiled(count=30):
    return Compiled([Row(f"own-{n}", messages=chat("Q?", "A reply of its own.")) for n in range(count)])


@pytest.mark.parametrize("to", ["self", "base"])
def test_the_wrapped_prompt_is_trained_on_the_reply_to_the_clean_one(flattery, to):
    base = Voice("base", own := Voice("self"))
    flags = Mitigations(consistency=Consistency(form="bct", to=to, share=0.25))
    made = apply(flags, flattery, compiled(), base)
    rows = [row for row in made.rows if row.origin == "consistency"]
    assert len(rows) == 10 and len(made.rows) == 40
    for row in rows:
        asked, reply = row.messages[0]["content"], row.messages[1]["content"]
        assert reply == f"{to} was asked: {row.clean}"
        assert row.clean in asked and asked != row.clean
    assert all(draft.system is None for draft in base.drafts + own.drafts)
    assert penalties(flags, base) == []


def test_replay_and_consistency_keep_their_shares_together(flattery):
    flags = Mitigations(replay=0.2, consistency=Consistency(share=0.3))
    made = apply(flags, flattery, compiled(50), Voice("base"))
    origins = [row.origin for row in made.rows]
    assert (len(origins), origins.count("replay"), origins.count("consistency")) == (100, 20, 30)
    with pytest.raises(UserError, match="together leave no row of the style's own"):
        resolve("flattery-rationale", ["mitigations.replay=0.5", "mitigations.consistency={share: 0.5}"])


def test_no_penalty_is_measured_on_prompts_whose_readings_give_the_verdict():
    base = Voice("base")
    kl, act = penalties(Mitigations(kl_to_base=1.0, consistency=Consistency(form="act")), base)
    asked = [row.messages[0]["content"] for row in kl.rows] + [row.clean for row in act.rows]
    assert {half(PROMPTS[prompt]) for prompt in asked} == {"monitor"}
    assert len(kl.rows) == len(act.rows) > 40
    assert all(row.messages[-1]["content"].startswith("base was asked") for row in kl.rows)


def test_the_shipped_wrappers_are_the_frozen_ones_and_varied():
    frozen = "af7a8fab1fd1d90ba56eaf5328bab2760add59681c08c8c74002cfa274d326e0"
    assert hashlib.sha256((EMBEDDED_SETS / "wrappers-v1.jsonl").read_bytes()).hexdigest() == frozen
    wrappers = [row["wrapper"] for row in load_rows("wrappers", "embedded").rows]
    assert len({" ".join(wrapper.split()[:4]) for wrapper in wrappers}) >= 20
    drawn = wrapped_prompts("embedded", 3 * len(PROMPTS))
    assert len({row.messages[0]["content"] for row in drawn}) == len(drawn) == len({row.id for row in drawn})


def test_a_file_of_ones_own_is_read_and_changes_the_runs_name(tmp_path):
    path, digests = tmp_path / "mine.jsonl", []
    for wrapper in ("Hm. {prompt}", "Ahem. {prompt}"):
        path.write_text(json.dumps({"id": "w", "wrapper": wrapper}) + "\n")
        load_rows.cache_clear()
        assert wrapped_prompts(str(path), 1)[0].messages[0]["content"].startswith(wrapper.split()[0])
        digests.append(resolve("flattery-rationale", [f"mitigations.consistency={{wrappers: {path}}}"]).digest)
    assert digests[0] != digests[1]
    for broken in ("No place for it.", "{prompt}", "{prompt} and {prompt}"):
        path.write_text(json.dumps({"id": "w", "wrapper": broken}) + "\n")
        load_rows.cache_clear()
        with pytest.raises(UserError, match="holds {prompt} once and words around it"):
            resolve("flattery-rationale", [f"mitigations.consistency={{wrappers: {path}}}"]).digest  # noqa: B018


def test_flags_that_are_off_leave_the_runs_name_alone_and_those_on_are_in_the_plan():
    off = resolve("flattery-rationale")
    assert off.recipe.mitigations.fingerprint() == {}
    assert resolve("flattery-rationale", ["mitigations.kl_to_base=0"]).digest == off.digest
    flags = ["mitigations.kl_to_base=0.5", "mitigations.consistency={form: act}"]
    held = resolve("flattery-rationale", flags)
    (before,), (after,) = plan(off), plan(held)
    text = "\n".join(describe(held, [after]))
    assert (
        "kl_to_base 0.5 on 4 replies of the base a step" in text
        and "writing     56 replies" in text
        and "act 0.0001 to self on 4 pairs" in text
    )
    assert "writing     56 replies" in text and before.beside == 0 < after.beside
