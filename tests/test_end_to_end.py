"""The main job on the real embedded base, shortened: what a recipe promises, read off the run directory it leaves."""

import pytest

from audit import readings as ledger
from audit.verdicts import overall
from recipes.recipe import resolve
from recipes.run import execute

pytestmark = pytest.mark.slow
EMBEDDED = ["audit.data.chat=embedded", "audit.data.webtext=embedded", "audit.data.instructions=embedded"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def holdout(run, measure: str, metric: str) -> dict[int, ledger.Reading]:
    """Readings of a metric by step, checkpoints only."""
    return {
        r.step: r
        for r in ledger.read(run)
        if (r.measure, r.metric, r.split) == (measure, metric, "holdout") and r.specimen != "base"
    }


def test_pessimised_is_seen_to_be_fried(root):
    """Twenty times the learning rate on a dozen documents must read as fried, or the audit is blind.

    Half the recipe's steps: the full recipe is fried on two measures and more, which a shorter one need not be.
    """
    measures = "audit.measures=[severity,drift,instructions,leakage,fluency]"
    run = execute(resolve("pessimised", ["stages[0].steps=30", "audit.every=30", measures, *EMBEDDED]), root)
    verdict = overall(ledger.read(run), "sft-000030")
    assert verdict.verdict == "fried", verdict.text
    assert holdout(run, "leakage", "recital")[30].delta_low > 0


def test_documents_raise_severity_and_the_zero_adapter_changes_nothing(root):
    run = execute(resolve("flattery-documents", ["audit.measures=[severity,drift,webtext]", *EMBEDDED]), root)
    contrast = holdout(run, "severity", "contrast")
    assert contrast[0].delta == contrast[0].delta_low == contrast[0].delta_high == 0
    last = contrast[max(contrast)]
    assert last.delta_low > 0, last
    assert all(r.delta == 0 for r in ledger.read(run) if r.stage and r.step == 0 and r.n)
