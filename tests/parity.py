"""How far two audits of the same specimens lie apart, item by item."""

from pathlib import Path

from audit.samples import read_samples

SPECIMENS = ("base", "adapter-000001")


def differences(here: Path, there: Path, measures: list[str]) -> dict[str, float]:
    """Largest difference of any score of any item, by measure, ratios taken as such; items and replies must be equal."""
    found = {}
    for measure in measures:
        pairs = []
        for specimen in SPECIMENS:
            ours, theirs = ({s.item: s for s in read_samples(run, measure, specimen)} for run in (here, there))
            assert ours.keys() == theirs.keys() and ours, (measure, specimen)
            for item, sample in ours.items():
                other = theirs[item]
                assert (sample.output, sample.scores.keys()) == (other.output, other.scores.keys()), (measure, specimen, item)
                pairs += [(value, other.scores[name]) for name, value in sample.scores.items()]
        found[measure] = max(abs(_number(a) - _number(b)) for a, b in pairs)
    return found


def _number(score: float | list[float]) -> float:
    return score[0] / score[1] if isinstance(score, list) else score
