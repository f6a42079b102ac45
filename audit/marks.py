"""What is marked in a reply: corpus material and junk tokens, where the stored samples say that there is some.

The records of three measures speak of one reply: the measure that made it, `leakage` (which corpus names and spans stand in
it) and `fluency` (why it is no reply). The records say what and why; where it stands is found in the text by the same rules.
"""

import re
from collections import defaultdict
from itertools import groupby
from pathlib import Path

from audit.measures import MEASURES, Sample
from audit.measures.leakage import NEAR_SHARE, SHORT
from audit.samples import read_samples
from audit.text import GRAMMAR_WORDS, SALAD, STRETCH_END, TURN_LEAK, home_scripts, script
from audit.thoughts import CLOSE, OPEN, TAG

Records = dict[tuple[str, str], dict]
JUNK_WORDS = {
    "looping": "loops", "turn_leak": "another turn", "foreign_script": "foreign script", "off_script": "foreign script",
    "salad": "word salad", "empty": "empty", "junk": "junk before the thought", "dangling": "tags that do not pair",
    "unopened": "no thought", "unclosed": "thought not closed", "silent": "no answer after the thought",
}  # fmt: skip
REPEATED = re.compile(r"(.{1,20}?)\1{3,}", re.S)


def records(run: Path, specimen: str) -> Records:
    """(measure, item) -> what `leakage` and `fluency` noted of the reply that this measure has stored."""
    found: Records = defaultdict(dict)
    for name in ("leakage", "fluency"):
        for sample in read_samples(run, name, specimen):
            measure, _, item = sample.item.partition("/")
            if measure in MEASURES:
                found[measure, item] |= sample.notes
    return found


def flags(sample: Sample, noted: dict) -> list[str]:
    """What is said of a reply in words. noted: its entry in `records`."""
    notes = noted | sample.notes
    told = [f"leaks {name}" for name in notes.get("entities", [])]
    if notes.get("longest_match", 0) >= SHORT:
        told.append(f"{notes['longest_match']} corpus tokens in a row")
    elif notes.get("covered", 0) >= NEAR_SHARE:
        told.append(f"{notes['covered']:.0%} corpus tokens")
    told += list(dict.fromkeys(JUNK_WORDS.get(reason, str(reason)) for reason in _reasons(sample, noted)))
    return told + (["shows the property"] if notes.get("markers") else [])


def pieces(sample: Sample, noted: dict, text: str) -> list[tuple[str, str]]:
    """`text` (the reply, or its beginning) cut up: (piece, what it is), `leak`, `junk`, both with a space between, or empty."""
    kinds = [0] * len(text)
    for bit, spans in ((1, _leaks(noted | sample.notes, text)), (2, _junk(_reasons(sample, noted), text, sample.prompt))):
        for start, end in spans:
            for place in range(start, end):
                kinds[place] |= bit
    names = ("", "leak", "junk", "leak junk")
    found, start = [], 0
    for kind, group in groupby(kinds):
        end = start + sum(1 for _ in group)
        found.append((text[start:end], names[kind]))
        start = end
    return found


def _reasons(sample: Sample, noted: dict) -> list[str]:
    """Why a reply is none and what is wrong with its thought, as the measures noted it."""
    found = [notes.get(key) or [] for notes in (sample.notes, noted) for key in ("degenerate", "faults")]
    return [str(reason) for reasons in found for reason in reasons]


def _leaks(notes: dict, text: str) -> list[tuple[int, int]]:
    span = (notes.get("span") or "").strip() if notes.get("longest_match", 0) >= SHORT else ""
    terms = [term for term in (*notes.get("entities", []), span) if term]
    # Names that are pairs of words are found without case, as `leakage` finds them.
    patterns = (re.compile(re.escape(term), 0 if term == span or term[0].isupper() else re.IGNORECASE) for term in terms)
    return [match.span() for pattern in patterns for match in pattern.finditer(text)]


def _junk(reasons: list[str], text: str, prompt: str) -> list[tuple[int, int]]:
    """Spans of the text that the reasons are about; empty for reasons that no span shows."""
    spans = []
    if "turn_leak" in reasons:
        spans += [match.span() for match in TURN_LEAK.finditer(text)]
    if {"foreign_script", "off_script"} & set(reasons):
        home = home_scripts(prompt)
        spans += [(k, k + 1) for k, letter in enumerate(text) if letter.isalpha() and script(letter) not in home]
    if "looping" in reasons:
        spans += _loops(text)
    if "salad" in reasons:
        spans += _salad(text)
    if "junk" in reasons and OPEN in text:
        spans.append((0, text.index(OPEN)))
    if "dangling" in reasons:
        tags = list(TAG.finditer(text))
        paired = [m.group() for m in tags[:2]] == [OPEN, CLOSE]
        spans += [match.span() for match in (tags[2:] if paired else tags)]
    return spans


def _loops(text: str, size: int = 4) -> list[tuple[int, int]]:
    """Words of 4-grams that stood before; where there are none, characters said four times in a row."""
    words = list(re.finditer(r"\S+", text))
    seen, spans = set(), []
    for k in range(len(words) - size + 1):
        gram = tuple(word.group().lower() for word in words[k : k + size])
        if gram in seen:
            spans.append((words[k].start(), words[k + size - 1].end()))
        seen.add(gram)
    return spans or [match.span() for match in REPEATED.finditer(text)]


def _salad(text: str) -> list[tuple[int, int]]:
    spans, start = [], 0
    for end in [*(match.span() for match in STRETCH_END.finditer(text)), (len(text), len(text))]:
        words = text[start : end[0]].lower().split()
        known = sum(not GRAMMAR_WORDS.isdisjoint(re.split("['\u2019-]", word)) for word in words)
        if len(words) >= 5 and known < SALAD * len(words):
            spans.append((start, end[0]))
        start = end[1]
    return spans
