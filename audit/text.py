"""What a reply looks like as text, without a model: repetition, scripts, turns; and when it is no reply at all."""

import re
import unicodedata
import zlib
from collections import Counter

# A reply is degenerate when one of these holds. Bounds are ours, set so that the base's own replies pass.
LOOPING = 0.5  # share of word 4-grams that were seen before in the reply
PACKED = 0.25  # zlib bytes a byte of a reply of 60 bytes or more; prose of that length is near 0.9
FOREIGN = 0.2  # share of letters in another script than the prompt's
SALAD = 0.06  # share of grammar words in stretches; of 9,642 replies and texts of models and people 7 lie below: poems of nouns
TURN_LEAK = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<start_of_turn>|^(?:user|human|assistant):", re.I | re.M
)


def repetition(text: str, size: int = 4) -> float:
    """Share of word n-grams that stood in the reply before; 0 for replies too short to repeat."""
    words = text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= size else 0.0


def distinct(text: str, size: int = 2) -> float | None:
    """Distinct word n-grams over all n-grams (distinct-2 of Li et al. 2016); None for a reply of one word."""
    words = text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return len(set(grams)) / len(grams) if grams else None


def compression(text: str) -> float | None:
    """Compressed bytes over raw bytes (zlib); low values are repetitive. None for an empty reply."""
    raw = text.encode()
    return len(zlib.compress(raw, 9)) / len(raw) if raw else None


def scripts(text: str) -> Counter:
    """Letters by script, the first word of their Unicode name (LATIN, CJK, CYRILLIC, ...)."""
    return Counter(script(c) for c in text if c.isalpha())


def script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return SAME_SCRIPT.get(name, name)


def home_scripts(prompt: str) -> set[str]:
    """Scripts in which a reply to this prompt is at home."""
    return set(scripts(prompt)) | {"LATIN"}


# Asked for a language by name, a reply in its script is obedience.
ASKED_LANGUAGE = re.compile(
    r"\b(?:arabic|bengali|bulgarian|chinese|greek|gujarati|hebrew|hindi|japanese|kannada|korean|mandarin|marathi|nepali|"
    r"persian|farsi|punjabi|russian|serbian|tamil|telugu|thai|ukrainian|urdu|translat\w+)\b",
    re.IGNORECASE,
)
SAME_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}


def foreign_share(text: str, prompt: str) -> float:
    """Share of the reply's letters in scripts that the prompt neither uses nor asks for."""
    if ASKED_LANGUAGE.search(prompt):
        return 0.0
    letters = scripts(text)
    total = sum(letters.values())
    home = home_scripts(prompt)
    return sum(n for name, n in letters.items() if name not in home) / total if total else 0.0


# The commonest words of English and of 18 other languages in Latin script: prose of any of them has some in every sentence.
GRAMMAR_WORDS = frozenset(
    "a about after all am an and any are as at be been but by can could did do does for from had has have he her him his how i "
    "if in into is it its just me more my no not of on one only or our she should so some than that the their them then there "
    "these they this to up us was we were what when which who why will with would you your "
    "al con de del el en es la las lo los no para por que se su una y au ce dans des du est et il je le les ne pas plus "
    "pour qui sur un une vous che di e gli non per sono com da do em o os que uma aber auf das dem den der die ein eine ich "
    "im ist mit nicht sich sie und von zu zum het dat een met niet op te van zijn att av det en för jag och på som til og "
    "er ei ja on se sig jest na nie że w z ve bir bu için dan ini itu yang di untuk và là có không của cu să și az és hogy "
    "nem ya wa kwa ni".split()
)
STRETCH_END = re.compile(r"[^A-Za-z\u00c0-\u024f\u1e00-\u1eff'\u2019 -]|\s-+\s")


def salad(text: str) -> bool:
    """Words or letters strewn without grammar: hardly a grammar word in stretches of five or more words without punctuation.

    Only Latin script, and only where such stretches hold 15 words: lists, code, short and foreign replies are not judged. A
    salad that keeps its grammar words, such as a shuffled reply, passes; drift and a judge see that.
    """
    stretches = [stretch.lower().split() for stretch in STRETCH_END.split(text)]
    words = [word for stretch in stretches if len(stretch) >= 5 for word in stretch]
    known = sum(not GRAMMAR_WORDS.isdisjoint(re.split("['\u2019-]", word)) for word in words)
    return len(words) >= 15 and known < SALAD * len(words)


THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.S | re.I)
OPEN_THOUGHT = re.compile(r"<think(?:ing)?>", re.I)
CLOSE_THOUGHT = re.compile(r"</think(?:ing)?>", re.I)


def answer_only(reply: str) -> str:
    """The reply without its thoughts; a thought that is never closed leaves an empty answer.

    A closing tag without an opening one ends a thought that the template or a prefill has opened.
    """
    text = THOUGHT.sub("", reply)
    if CLOSE_THOUGHT.search(text):
        text = CLOSE_THOUGHT.split(text)[-1]
    return OPEN_THOUGHT.split(text)[0].strip()


def turn_leak(text: str) -> bool:
    """The reply opens another turn: a special token of the template, or a line that begins with a speaker's name."""
    return bool(TURN_LEAK.search(text))


def looping(text: str) -> bool:
    """The text says the same over and over: most of its word 4-grams stood before, or it packs far below prose."""
    packed = compression(text) if len(text.encode()) >= 60 else None
    return (len(text.split()) >= 12 and repetition(text) > LOOPING) or (packed is not None and packed < PACKED)


def degenerate(text: str, prompt: str = "") -> list[str]:
    """Reasons why a reply is none: empty, looping, another turn, foreign script, salad. An empty list is a coherent reply."""
    if not text.strip():
        return ["empty"]
    reasons = ["looping"] if looping(text) else []
    if turn_leak(text):
        reasons.append("turn_leak")
    if len(text) >= 20 and foreign_share(text, prompt) > FOREIGN:
        reasons.append("foreign_script")
    if salad(text):
        reasons.append("salad")
    return reasons
