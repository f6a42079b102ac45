"""Stored samples of a run: samples/<measure>/<specimen>.jsonl, a line an item, each with the digest of what it was made by."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from audit.measures import MEASURES, Sample
from audit.readings import Reading
from organisms.errors import UserError
from organisms.files import inside, read_numbered_jsonl

SAMPLE = {"item": str, "group": str, "prompt": str, "output": str | None, "scores": dict}


def samples_file(run: Path, name: str, specimen: str) -> Path:
    return run / "samples" / name / f"{specimen}.jsonl"


def read_samples(run: Path, name: str, specimen: str) -> list[Sample]:
    """Stored samples of one measure and specimen; empty where there are none."""
    path = samples_file(run, name, specimen)
    if not path.is_file():
        return []
    inside(run, str(path.relative_to(run)), "the audit")
    found = []
    for number, row in read_numbered_jsonl(path, SAMPLE):
        try:
            found.append(_sample(row))
        except TypeError as error:
            raise UserError(f"{path} line {number} is not a sample ({error}); delete the file and audit again") from None
        scores = (v for score in found[-1].scores.values() for v in (score if isinstance(score, list) else [score]))
        if not all(isinstance(value, int | float) for value in scores):
            raise UserError(f"{path} line {number} has scores that are no numbers; delete the file and audit again")
    return found


def _sample(row: dict) -> Sample:
    return Sample(**{name: value for name, value in row.items() if name not in ("audit_digest", "scored_by", "seconds")})


def replies(run: Path, name: str, specimen: str) -> list[Sample]:
    """Stored samples of a measure that hold a generated reply of its own, not one that it read from another measure."""
    return [
        sample
        for sample in read_samples(run, name, specimen)
        if sample.output is not None and name != "fluency" and sample.item.partition("/")[0] not in MEASURES
    ]


@dataclass(frozen=True)
class Stored:
    """Samples that are there. audit_digest: of what was asked; scored_by: of the code, None in earlier versions' files."""

    samples: list[Sample]
    audit_digest: str
    scored_by: str | None
    seconds: float


def stored_samples(path: Path, known: Reading | None) -> Stored | None:
    """What a samples file holds and what it says it was made by; None where there is none, or an empty one.

    The file says so itself: it is written before the readings, and a run may be cut off between the two.
    known: a reading of the same measure, which says so for files of earlier versions.
    """
    rows = [row for _, row in read_numbered_jsonl(path, SAMPLE)] if path.is_file() else []
    held = rows[0] if rows and "audit_digest" in rows[0] else known and dataclasses.asdict(known)
    if not rows or not held:
        return None
    return Stored([_sample(row) for row in rows], held["audit_digest"], held.get("scored_by"), held["seconds"])
