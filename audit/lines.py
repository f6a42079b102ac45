"""What a line of readings.jsonl must hold, so that no view draws a number that is none or follows a path out of the run."""

import math
import re
from typing import Any

from organisms.files import is_a, shown

VERDICTS = ("natural", "fried", "underpowered", "expected", "invalid", "not_applicable")
TEXTS = ("run", "recipe", "organism", "style", "base", "suite", "engine", "data", "audit_digest", "samples", "reason")
# They are parts of file names: samples/<measure>/<specimen>.jsonl.
NAMES = ("specimen", "measure", "metric", "stage")
COUNTS = ("step", "tokens_seen", "n", "n_needed")
NUMBERS = (
    "scale", "seconds", "value", "ci_low", "ci_high", "delta", "delta_low", "delta_high", "mde", "margin",
    "p_fried", "p_differs",
)  # fmt: skip
NAME = re.compile(r"\w[\w.@+-]*")
SURE = ("step", "tokens_seen", "n", "scale", "seconds", "specimen", "measure", "metric")  # never null
MOST = 2**53  # beyond it JSON's readers do not agree on an integer


def fault(row: dict[str, Any]) -> str:
    """What is wrong with the values of a line that has all keys, in words; empty where nothing is."""
    for key, value in row.items():
        wrong = None
        if value is None and key in (*NAMES, *COUNTS, *NUMBERS) and key not in SURE:
            continue
        if key in TEXTS and not isinstance(value, str):
            wrong = "a text"
        elif key in NAMES and not (isinstance(value, str) and NAME.fullmatch(value) and ".." not in value):
            wrong = "a plain name, without slashes"
        elif key in COUNTS and not (is_a(value, int) and 0 <= value <= MOST):
            wrong = "a whole number from 0 to 2^53"
        elif key in NUMBERS and not (is_a(value, int | float) and abs(value) < math.inf):
            wrong = "a finite number"
        elif key in ("p_fried", "p_differs") and not 0 <= value <= 1:
            wrong = "a probability"
        elif key == "verdict" and value not in VERDICTS:
            wrong = f"one of {', '.join(VERDICTS)}"
        elif key == "split" and value not in ("monitor", "holdout"):
            wrong = "monitor or holdout"
        elif key == "samples" and (value.startswith("/") or ".." in value.split("/") or "\0" in value):
            wrong = "a path inside the run directory"
        if wrong:
            return f"{key} = {shown(value)} is not {wrong}"
    for low, high in (("ci_low", "ci_high"), ("delta_low", "delta_high")):
        if row[low] is not None and row[high] is not None and row[low] > row[high]:
            return f"{low} = {row[low]} lies above {high} = {row[high]}"
    return ""
