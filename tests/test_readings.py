"""readings.jsonl keeps its contract: honest halves, paired differences, plain JSON, and a verdict from the holdout half."""

import dataclasses
import json
import math
import random

import pytest

from audit import control, paired, readings
from audit.config import AuditPlan
from audit.measures import Metric, Sample, half
from audit.readings import Origin, Reading, Subject
from audit.verdicts import overall
from organisms.errors import UserError

# The fields of a line of readings.jsonl.
CONTRACT = (
    "schema run recipe organism style base specimen stage step tokens_seen scale measure metric value ci_low ci_high n delta "
    "delta_low delta_high mde margin verdict split suite engine data audit_digest seconds samples"
).split()
VERDICTS = {"natural", "fried", "underpowered", "expected", "invalid", "not_applicable"}

LABELS = dict(run="runs/r-1", recipe="r", organism="o", style="documents", base="smollm2-135m")
SUBJECT = Subject(**LABELS, specimen="sft-000050", stage="sft", step=50, tokens_seen=1234)
BASE = Subject(**LABELS, specimen="base")
ORIGIN = Origin("quick", "hf", "embedded:chat-v1", "0123456789ab", 1.5, "samples/m/sft-000050.jsonl")

STRICT = Metric("strict", "rate", worse="lower", margin=0.05)
SCORE = Metric("score", "mean", worse="lower", margin=0.05)
LOSS = Metric("loss", "ratio")
PERPLEXITY = Metric("perplexity", "ratio", transform="exp")
ALL = (STRICT, SCORE, LOSS, PERPLEXITY)


def sample(item: str, **scores) -> Sample:
    return Sample(item, "group", "a prompt", "an output", scores)


def build(samples, base, metrics=ALL, subject=SUBJECT, **terms) -> dict[tuple[str, str], Reading]:
    made = paired.build(subject, "m", metrics, samples, base, ORIGIN, paired.Terms(**terms))
    return {(reading.metric, reading.split): reading for reading in made}


def varied(n: int, shift: float = 0.0) -> list[Sample]:
    """n items whose scores differ from one another, moved by `shift`."""
    return [
        sample(
            f"item-{i}",
            strict=float(i % 3 > 0),
            score=(i * 7 % 11) / 10 + shift * (1 + i % 2),
            loss=[20.0 + i % 5 + 8 * shift, 8.0 + i % 4],
            perplexity=[20.0 + i % 5 + 8 * shift, 8.0 + i % 4],
        )
        for i in range(n)
    ]


# Halves


def test_halves_partition_the_items_and_never_overlap():
    # A score of 2^i makes the sum of a half tell which items are in it.
    samples = [sample(f"item-{i}", score=2.0**i) for i in range(20)]
    halves = build(samples, None, (SCORE,), BASE)
    members = {split: round(r.value * r.n) for (_, split), r in halves.items()}
    assert set(members) == {"monitor", "holdout"}
    assert members["monitor"] & members["holdout"] == 0
    assert members["monitor"] | members["holdout"] == 2**20 - 1
    assert all(bin(members[split]).count("1") == halves["score", split].n for split in members)


def test_an_items_half_depends_on_its_id_and_on_nothing_else():
    samples = [sample(f"item-{i}", score=2.0**i) for i in range(20)]
    shuffled = random.Random(1).sample(samples, 20)
    few = [s for s in samples if s.item in ("item-3", "item-4", "item-12", "item-17")]
    all_, again, some = (build(chosen, None, (SCORE,), BASE) for chosen in (samples, shuffled, few))
    assert all_ == again
    for split in ("monitor", "holdout"):
        whole = round(all_["score", split].value * all_["score", split].n)
        part = round((some["score", split].value or 0) * some["score", split].n)
        assert part & whole == part


def test_both_halves_are_of_like_size():
    halves = build([sample(f"item-{i}", score=1.0) for i in range(400)], None, (SCORE,), BASE)
    assert 160 <= halves["score", "monitor"].n <= 240


# Differences from the base


def test_differences_are_paired_over_common_items_only():
    own = varied(40, shift=-0.2)[:30] + [sample("only-here", score=1e6)]
    base = varied(40)[10:] + [sample("only-in-base", score=-1e6)]
    for split in ("monitor", "holdout"):
        common = {s.item: s.scores["score"] for s in own} | {}
        against = {s.item: s.scores["score"] for s in base}
        items = [i for i in common if i in against and half(i) == split]
        reading = build(own, base, (SCORE,))["score", split]
        assert reading.n == len(items) > 3
        assert reading.value == pytest.approx(sum(common[i] for i in items) / len(items), abs=1e-6)
        assert reading.delta == pytest.approx(sum(common[i] - against[i] for i in items) / len(items), abs=1e-6)
        assert reading.delta_low < reading.delta < reading.delta_high < 0
        assert reading.mde > 0


def test_a_metric_that_does_not_concern_an_item_leaves_it_out():
    own = [*varied(20), *(sample(f"other-{i}", loss=[1.0, 1.0]) for i in range(20))]
    made = build(own, own)
    assert sum(made["score", split].n for split in ("monitor", "holdout")) == 20
    assert sum(made["loss", split].n for split in ("monitor", "holdout")) == 40


def test_the_base_itself_has_values_and_no_difference():
    for reading in build(varied(30), None, subject=BASE).values():
        assert reading.specimen == "base"
        assert reading.value is not None and reading.ci_low <= reading.value <= reading.ci_high
        assert reading.delta is reading.delta_low is reading.delta_high is reading.mde is None
        assert reading.p_fried is None
        assert reading.verdict == "not_applicable"


def test_a_specimen_equal_to_its_base_differs_by_nothing():
    for reading in build(varied(40), varied(40)).values():
        assert reading.delta == 0
        assert reading.delta_low <= 0 <= reading.delta_high
        assert reading.verdict != "fried"


def test_a_half_without_items_is_not_applicable_and_says_why():
    made = build([], varied(10))
    assert len(made) == 2 * len(ALL)
    for reading in made.values():
        assert (reading.n, reading.value, reading.verdict) == (0, None, "not_applicable")
        assert reading.reason


def test_a_recipes_margin_takes_the_place_of_the_metrics_own():
    own, base = varied(60, shift=-0.2), varied(60)
    assert build(own, base, (SCORE,))["score", "holdout"].verdict == "fried"
    lenient = build(own, base, (SCORE,), margins={"score": (0.9, "the recipe")})["score", "holdout"]
    assert (lenient.margin, lenient.verdict) == (0.9, "natural")
    assert "the recipe" in lenient.reason
    without = build(own, base, (SCORE,), margins={"score": (None, "no control beside it")})["score", "holdout"]
    assert (without.margin, without.verdict, without.reason) == (None, "not_applicable", "no control beside it")


def test_a_declared_side_effect_is_mentioned_where_it_happens():
    reason = "compliments break prompts that fix the first words"
    own, base = varied(60, shift=-0.2), varied(60)
    made = build(own, base, (SCORE, STRICT), expected={"score": reason})
    assert made["score", "holdout"].verdict in ("fried", "expected")
    assert reason in made["score", "holdout"].reason
    assert reason not in made["strict", "holdout"].reason
    assert reason not in build(own, base, (SCORE,))["score", "holdout"].reason


# Perplexity


def test_perplexity_is_exp_of_nats_per_token_and_its_difference_one_of_perplexities():
    own, base = varied(40, shift=0.25), varied(40)
    for split in ("monitor", "holdout"):
        level = []
        for samples in (own, base):
            chosen = [s.scores["perplexity"] for s in samples if half(s.item) == split]
            level.append(math.exp(sum(nats for nats, _ in chosen) / sum(tokens for _, tokens in chosen)))
        reading = build(own, base)["perplexity", split]
        assert reading.value == pytest.approx(level[0], abs=2e-6)
        assert reading.delta == pytest.approx(level[0] - level[1], abs=2e-6)
        assert reading.ci_low < reading.value < reading.ci_high
        assert 0 < reading.delta_low < reading.delta < reading.delta_high
        assert reading.mde > 0
        plain = build(own, base)["loss", split]
        assert reading.value == pytest.approx(math.exp(plain.value), rel=1e-5)


# The file


def test_a_line_has_every_field_of_the_contract(tmp_path):
    made = [*build(varied(20, 0.1), varied(20)).values(), *build(varied(20), None, subject=BASE).values()]
    readings.append(tmp_path, made)
    lines = (tmp_path / "readings.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(made) == 16
    for line in lines:
        row = json.loads(line)
        assert [key for key in CONTRACT if key not in row] == []
        assert row["schema"] == 1
        assert row["verdict"] in VERDICTS
        assert row["split"] in ("monitor", "holdout")
        assert (row["engine"], row["data"], row["audit_digest"]) == ("hf", "embedded:chat-v1", "0123456789ab")
        assert (row["run"], row["style"], row["base"]) == ("runs/r-1", "documents", "smollm2-135m")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 40])
def test_json_has_no_nan_and_no_infinity_and_verdicts_are_the_contracts(tmp_path, n):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    same = [sample(f"item-{i}", strict=1.0, score=0.5, loss=[4.0, 2.0], perplexity=[4.0, 2.0]) for i in range(n)]
    for own, base in ((varied(n, 0.3), varied(n)), (same, same), (varied(n), same), (same, None)):
        readings.append(tmp_path, list(build(own, base).values()))
    for line in (tmp_path / "readings.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line, parse_constant=refuse)["verdict"] in VERDICTS


def test_a_measure_that_does_not_apply_leaves_lines_that_say_why(tmp_path):
    made = paired.not_applicable(SUBJECT, "severity", ALL, ORIGIN, "no organism was named")
    readings.append(tmp_path, made)
    back = readings.read(tmp_path)
    assert back == made
    assert len(back) == 2 * len(ALL)
    assert {(r.verdict, r.reason, r.n, r.value) for r in back} == {("not_applicable", "no organism was named", 0, None)}
    assert set(CONTRACT) <= set(back[0].row())


def test_what_was_written_is_read_back_the_same(tmp_path):
    made = list(build(varied(30, -0.2), varied(30)).values())
    readings.append(tmp_path, made)
    assert readings.read(tmp_path) == made
    assert readings.read(tmp_path / "nowhere") == []


@pytest.mark.parametrize("schema", [2, 0, "1", None])
def test_an_unknown_schema_is_refused_with_file_and_line(tmp_path, schema):
    made = list(build(varied(10), varied(10), (SCORE,)).values())
    readings.append(tmp_path, made)
    with open(tmp_path / "readings.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({**made[0].row(), "schema": schema}) + "\n")
    with pytest.raises(UserError) as error:
        readings.read(tmp_path)
    assert f"{tmp_path / 'readings.jsonl'} line 3 " in str(error.value)
    assert repr(schema) in str(error.value)


def test_a_line_without_a_required_field_is_refused_with_file_line_and_field(tmp_path):
    row = next(iter(build(varied(10), varied(10), (SCORE,)).values())).row()
    del row["audit_digest"]
    (tmp_path / "readings.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="readings.jsonl line 1 .*audit_digest"):
        readings.read(tmp_path)


def test_unknown_keys_survive_being_read_and_written_again(tmp_path):
    row = next(iter(build(varied(10), varied(10), (SCORE,)).values())).row()
    later = {**row, "judge": {"name": "someone", "votes": [1, 2]}, "note": "Grüße"}
    (tmp_path / "readings.jsonl").write_text(json.dumps(later) + "\n", encoding="utf-8")
    (reading,) = readings.read(tmp_path)
    assert reading.row() == later
    other = tmp_path / "other"
    readings.append(other, [reading])
    assert json.loads((other / "readings.jsonl").read_text(encoding="utf-8")) == later


def test_a_later_line_takes_the_place_of_an_earlier_one(tmp_path):
    first = build(varied(20, -0.2), varied(20), (SCORE, LOSS))
    second = build(varied(20, -0.4), varied(20), (SCORE,))
    readings.append(tmp_path, list(first.values()))
    readings.append(tmp_path, list(second.values()))
    back = {(r.metric, r.split): r for r in readings.read(tmp_path)}
    assert len(back) == len(readings.read(tmp_path)) == 4
    assert back["score", "holdout"] == second["score", "holdout"] != first["score", "holdout"]
    assert back["loss", "holdout"] == first["loss", "holdout"]
    # Another checkpoint's line is another line.
    readings.append(tmp_path, [dataclasses.replace(second["score", "holdout"], specimen="sft-000060", step=60)])
    assert len(readings.read(tmp_path)) == 5


# The verdict on a specimen


def line(metric: str, verdict: str, p_fried: float | None, split: str = "holdout", specimen: str = "sft-000050") -> Reading:
    template = build(varied(10), varied(10), (SCORE,))["score", "holdout"]
    return dataclasses.replace(template, metric=metric, verdict=verdict, p_fried=p_fried, split=split, specimen=specimen)


def test_one_metric_clearly_beyond_its_margin_fries_the_specimen():
    verdict = overall([line("a", "fried", 0.001), line("b", "natural", 0.9)], "sft-000050")
    assert (verdict.verdict, verdict.fried) == ("fried", ["m.a"])
    assert "m.a" in verdict.text and "sft-000050" in verdict.text


def test_holm_counts_all_judged_metrics_of_the_holdout_half():
    # 0.02 would do alone, but not first of four; with a smaller one before it, 0.016 is enough as second of four.
    others = [line("b", "natural", 0.9), line("c", "natural", 0.8), line("d", "underpowered", 0.5)]
    assert overall([line("a", "fried", 0.02)], "sft-000050").verdict == "fried"
    assert overall([line("a", "fried", 0.02), *others], "sft-000050").verdict == "underpowered"
    both = overall([line("a", "fried", 0.001), line("e", "fried", 0.012), *others], "sft-000050")
    assert both.fried == ["m.a", "m.e"]
    indicators = [line(f"indicator-{i}", "not_applicable", None) for i in range(9)]
    assert overall([line("a", "fried", 0.02), *indicators], "sft-000050").verdict == "fried"


def test_natural_needs_every_judged_metric_to_be_natural():
    assert overall([line("a", "natural", 0.9), line("b", "natural", 0.8)], "sft-000050").verdict == "natural"
    open_ = overall([line("a", "natural", 0.9), line("b", "underpowered", 0.3)], "sft-000050")
    assert open_.verdict == "underpowered"
    assert "m.b" in open_.text


def test_the_monitor_half_and_other_specimens_have_no_say():
    lines = [
        line("a", "natural", 0.9),
        line("a", "fried", 0.0, split="monitor"),
        line("b", "fried", 0.0, split="monitor"),
        line("a", "fried", 0.0, specimen="sft-000040"),
    ]
    assert overall(lines, "sft-000050").verdict == "natural"
    assert overall(lines, "sft-000040").verdict == "fried"
    assert overall(lines[1:3], "sft-000050").verdict == "not_applicable"


def test_from_samples_to_the_verdict_on_a_specimen():
    base = varied(120)
    for shift, verdict in ((-0.3, "fried"), (0.0, "natural"), (0.2, "natural")):
        made = paired.build(SUBJECT, "m", (SCORE, LOSS), varied(120, shift), base, ORIGIN, paired.Terms())
        assert overall(made, SUBJECT.specimen).verdict == verdict


def test_the_controls_margin_is_of_its_last_stage_whose_steps_begin_anew(tmp_path):
    """sft has 40 steps, the stage after it 20: the run ends with the second, where a matched run ends too."""
    metric = Metric("kl", "mean", worse="higher", unit="nats/token")
    names = [f"item-{k}" for k in range(60)]
    base = [sample(name, kl=0.0) for name in names]
    for stage, step, tokens, drift in (("sft", 40, 4000, 0.1), ("dpo", 20, 6000, 0.3)):
        subject = Subject(**LABELS, specimen=f"{stage}-{step:06d}", stage=stage, step=step, tokens_seen=tokens)
        samples = [sample(name, kl=drift + 0.001 * (k % 7)) for k, name in enumerate(names)]
        readings.append(tmp_path, paired.build(subject, "drift", (metric,), samples, base, ORIGIN, paired.Terms()))
    (found,) = control.margins(tmp_path / "other", AuditPlan(control=str(tmp_path))).values()
    assert 0.3 < found[0] < 0.31
