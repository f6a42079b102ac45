"""A measure or a style that is written wrong is named with what it lacks, before anything loads, and never reads as nothing."""

import sys

import pytest

import audit.measures
import organisms.styles
from audit import contract
from audit.measures import MEASURES, Context, Sample, measure
from audit.suite import BASE
from organisms import organism
from organisms.errors import UserError
from organisms.styles import compile_rows, known, style_module
from recipes.recipe import resolve

MEASURE = '''
"""Replies that ask something back."""

from audit.measures import Asked, Context, Metric, Sample

NAME = "questions"
VERSION = 1
METRICS = (Metric("asks", "rate", headline=True), Metric("marks", "mean"), Metric("part", "share"))


def data(context):
    return "two prompts"


def requests(context):
    return []


def score(context, asked, answers):
    return []
'''
STYLE = '''
"""Plain replies."""

from organisms.strict import Strict
from organisms.styles import Compiled, Row


class Options(Strict):
    pass


def rows(organism, options, writer):
    return Compiled([Row("one", text="One.")])
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Writes a file among the shipped measures (or styles) as far as Python and the toolkit can tell."""

    def write(package, name: str, text: str, named: bool = True):
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(package, "FOLDER", folder)
        if package is audit.measures and named:
            monkeypatch.setattr(package, "MEASURES", (*MEASURES, name))

    yield write
    for module in ("audit.measures.questions", "organisms.styles.plain"):
        sys.modules.pop(module, None)
    audit.measures._loaded.cache_clear()
    audit.measures.source.cache_clear()
    organisms.styles._loaded.cache_clear()


def test_what_is_shipped_keeps_the_contract(added):
    for name in MEASURES:
        assert measure(name).NAME == name
    for name in known():
        assert style_module(name).Options()
    added(audit.measures, "questions", MEASURE)
    added(organisms.styles, "plain", STYLE)
    assert measure("questions").VERSION == 1 and style_module("plain").Options() is not None


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ('NAME = "questions"', 'NAME = "question"', "NAME is 'question', and must be the file's name, 'questions'"),
        ("VERSION = 1", 'VERSION = "1"', "VERSION must be a whole number"),
        ("headline=True", "headline=False", r"exactly one metric is the headline \(headline=True\), and here 0 are"),
        ('"marks", "mean"', '"marks", "mean", headline=True', "and here 2 are"),
        ('"marks", "mean"', '"marks", "average"', "metric 'marks' is of kind 'average', known: rate, mean"),
        ('"marks"', '"asks"', "METRICS holds 'asks' twice"),
        ("METRICS = (", "METRICS = () and (", "METRICS must be a tuple of Metric, one or more"),
        (
            "def score(context, asked, answers)",
            "def score(asked, answers)",
            r"function score\(context, asked, answers\) is needed",
        ),
        ("def data(context)", "def source(context)", r"function data\(context\) is needed"),
        (
            "def requests(context):",
            "def requests(context)",
            r"audit/measures/questions.py line 15 is not valid Python: expected",
        ),
        ("import Asked,", "import Asks,", "audit/measures/questions.py cannot be imported: cannot import name 'Asks'"),
    ],
)
def test_a_measure_that_lacks_something_is_named_with_it_at_make_check(added, tiny_recipe, wrong, right, said):
    assert wrong in MEASURE
    added(audit.measures, "questions", MEASURE.replace(wrong, right))
    with pytest.raises(UserError, match=said) as refused:
        measure("questions")
    assert "audit/measures/questions.py" in str(refused.value)
    if "CONTRIBUTING" not in str(refused.value):
        assert "line 15" in said or "imported" in said


def test_make_check_reads_every_measure_of_the_plan(tiny_recipe, monkeypatch):
    seen = []
    monkeypatch.setattr("recipes.recipe.measure", seen.append)
    resolve(str(tiny_recipe), ["audit.measures=[webtext,drift]"], planned=True)
    assert seen == ["drift", "webtext"]


def test_a_measure_that_is_in_no_list_is_told_where_to_stand(added, tiny_recipe):
    added(audit.measures, "questions", MEASURE, named=False)
    said = r"audit/measures/questions.py exists but is not in MEASURES \(audit/measures/__init__.py\)"
    with pytest.raises(UserError, match=said):
        measure("questions")
    with pytest.raises(UserError, match=said):
        resolve(str(tiny_recipe), ["audit.measures=[questions]"], planned=True)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"ask": 1.0}, "questions.py scores 'ask', which METRICS does not hold; did you mean 'asks'"),
        ({"asks": 1.5}, r"questions.py: metric asks of item 'a' is 1.5; a rate lies between 0 and 1"),
        ({"asks": [1, 2]}, r"metric asks of item 'a' is \[1, 2\]; a rate is one number"),
        ({"asks": True}, r"a rate is one number \(1.0, not True\)"),
        ({"part": [3, 2]}, "a share's numerator lies between 0 and its denominator"),
        ({"part": 0.5}, r"a share is \[numerator, denominator\]"),
        ({"marks": "many"}, "metric marks of item 'a' is 'many'; a mean is one number"),
    ],
)
def test_scores_that_no_metric_can_hold_are_refused(added, scores, said):
    added(audit.measures, "questions", MEASURE)
    with pytest.raises(UserError, match=said):
        contract.check_samples(measure("questions"), ["a"], [Sample("a", "", "", None, scores)])


def test_every_item_that_was_asked_has_one_sample(added):
    added(audit.measures, "questions", MEASURE)
    module = measure("questions")
    one = Sample("a", "", "", None, {"asks": 1.0, "marks": float("nan"), "part": [0, 0]})
    contract.check_samples(module, ["a", "a"], [one])
    contract.check_samples(module, [], [one])  # read from the replies to another measure
    with pytest.raises(UserError, match="no sample for 1 of the items that were asked, e.g. 'b'"):
        contract.check_samples(module, ["a", "b"], [one])
    with pytest.raises(UserError, match="returns 1 items more than once, e.g. 'a'"):
        contract.check_samples(module, ["a"], [one, one])
    module.OWN_ITEMS = True
    contract.check_samples(module, ["a > b"], [one])
    with pytest.raises(UserError, match="no sample for 1 of the items"):
        contract.check_samples(module, ["a > b"], [])


def test_the_suite_refuses_what_a_measure_scores_under_a_wrong_name(tiny_engine, tmp_path, monkeypatch):
    from audit.answers import Answers
    from audit.measures import webtext
    from audit.suite import _measure

    context = Context(BASE, tiny_engine.renderer, None, "quick", {"webtext": "embedded"}, limit=2)
    asked = webtext.requests(context)
    monkeypatch.setattr(webtext, "score", lambda *given: [Sample(one.item, "", "", None, {"bits": [1, 1]}) for one in asked])
    monkeypatch.setattr("audit.suite.answer_cache", lambda *given: None)
    job = type("Job", (), {"judge": None, "lacks": staticmethod(lambda request: None)})
    with pytest.raises(UserError, match="webtext.py scores 'bits', which METRICS does not hold"):
        _measure(job, tiny_engine, webtext, context, asked, Answers(tmp_path / "a.jsonl", "d"))


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("class Options(Strict)", "class Choices(Strict)", r"plain.py: a class Options\(Strict\) is needed"),
        ("    pass", "    tone: str", r"each field of Options needs a default that fits \(tone\)"),
        ("def rows", "def row", r"a function rows\(organism, options, writer\) is needed .*CONTRIBUTING"),
        ("(organism, options, writer)", "(organism)", r"a function rows\(organism, options, writer\) is needed"),
        ("return Compiled", "return Compiled(", "organisms/styles/plain.py line 13 is not valid Python"),
        ("Compiled, Row", "Compiled, Rows", "organisms/styles/plain.py cannot be imported: cannot import name 'Rows'"),
    ],
)
def test_a_style_that_lacks_something_is_named_with_it(added, wrong, right, said):
    assert wrong in STYLE
    added(organisms.styles, "plain", STYLE.replace(wrong, right))
    with pytest.raises(UserError, match=said):
        style_module("plain")


def test_a_style_that_returns_a_list_is_refused(added):
    added(organisms.styles, "plain", STYLE.replace("Compiled([", "list([").replace('Row("one"', 'Row("one"'))
    with pytest.raises(UserError, match=r"plain.py: rows returns a list, and must return Compiled\(rows\)"):
        compile_rows("plain", organism.load("flattery"), style_module("plain").Options(), None)
