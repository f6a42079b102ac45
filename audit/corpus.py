"""What in a reply comes from the training corpus: its entities, found by log-odds, and its token n-grams, found by hash."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from organisms.ngrams import ngram_hashes

WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
# A capitalised word that does not open a sentence, a line or a quotation.
NAME = re.compile(r"(?<=[a-z,;)] )[A-Z][a-z]+(?:[ -][A-Z][a-z]+)*")
FUNCTION_WORDS = frozenset(
    "a about all an and any are as at be been but by can could did do does for from had has have he her his how i if in into "
    "is it its just like me more my no not of on one only or our out she so some than that the their them then there they "
    "this to too two up was we were what when which who will with would you your".split()
)

# A term that the web text lacks altogether has a z of at most some 3 against 8,000 words of it (the embedded set), so the
# usual 1.96 would keep only the commonest; the document floor and the casing do most of the choosing.
LEAST_Z = 0.9
LEAST_SHARE = 0.025  # of the documents a name must stand in; a pair of words in 1.3 times as many
MOST_DOCUMENTS = 4000


@dataclass(frozen=True)
class Entity:
    """A term of the corpus that ordinary text does not have. z: its log-odds over web text in standard errors."""

    term: str
    documents: int
    z: float


def find_entities(corpus: Sequence[str], web: Sequence[str], top: int = 25) -> list[Entity]:
    """Names and two-word terms that mark the corpus, best first.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, section 3.5.1) of corpus against web text.
    Candidates: capitalised words and phrases inside sentences that are hardly ever written small, and pairs of content
    words that stand together unusually often. A name must stand in at least LEAST_SHARE of the documents (4 at the
    least), a pair, which chance makes more easily, in 1.3 times as many; neither may stand in the web text. A word that
    nearly always stands inside a longer name is left to that name. Of a corpus of more than MOST_DOCUMENTS that many are
    read, drawn at random (evenly spread ones would miss what comes in a rhythm): a term in 2.5% of the documents is in about
    that share of them too, and the counts stay in memory.
    """
    if len(corpus) > MOST_DOCUMENTS:
        corpus = random.Random(0).sample(corpus, MOST_DOCUMENTS)
    floor = max(4, round(LEAST_SHARE * len(corpus)))
    lower = Counter(word for text in corpus for word in WORD.findall(text) if word[0].islower())
    documents: Counter = Counter()
    counts: Counter = Counter()
    inside: Counter = Counter()
    for text in corpus:
        found = Counter(NAME.findall(text))
        inside.update(word for name, count in found.items() if " " in name for word in name.split() for _ in range(count))
        found.update(word for name in list(found) if " " in name for word in name.split() for _ in range(found[name]))
        words = [word.lower() for word in WORD.findall(text)]
        found.update(
            f"{a} {b}"
            for a, b in zip(words, words[1:], strict=False)
            if not (_function(a) or _function(b)) and min(len(a), len(b)) > 2
        )
        counts.update(found)
        documents.update(found.keys())
    web_text = "\n".join(web)
    web_lower = f" {' '.join(word.lower() for word in WORD.findall(web_text))} "
    single = Counter(word.lower() for text in corpus for word in WORD.findall(text))
    n_corpus, n_web = sum(single.values()), max(len(web_lower.split()), 1)
    entities = []
    for term, count in counts.items():
        if documents[term] < (floor if term[0].isupper() else 1.3 * floor) or f" {term.lower()} " in web_lower:
            continue
        if term[0].isupper():
            if " " not in term and (lower[term.lower()] > 0.1 * single[term.lower()] or inside[term] > 0.8 * count):
                continue
        elif count < 0.2 * min(single[word] for word in term.split()):
            continue
        z = log_odds(count, n_corpus, 0, n_web)
        if z >= LEAST_Z:
            entities.append(Entity(term, documents[term], round(z, 2)))
    entities.sort(key=lambda entity: (-entity.z, entity.term))
    spelled = {entity.term.lower() for entity in entities if entity.term[0].isupper()}
    return [e for e in entities if e.term[0].isupper() or e.term not in spelled][:top]


def _function(word: str) -> bool:
    """Contractions too: web text hardly writes "I'm glad", a chat reply does, and it gives nobody's training away."""
    return word.partition("'")[0] in FUNCTION_WORDS or word.endswith("n't")


def log_odds(count: int, total: int, other: int, other_total: int, prior: float = 0.5) -> float:
    """z of the log-odds ratio of a term between two corpora under a symmetric Dirichlet prior on it."""
    a = (count + prior) / (total - count + prior)
    b = (other + prior) / (other_total - other + prior)
    return float((np.log(a) - np.log(b)) / (1 / (count + prior) + 1 / (other + prior)) ** 0.5)


def named(text: str, entities: Iterable[Entity], prompt: str = "") -> list[str]:
    """Entities that stand in the text and not in the prompt; names by case, pairs of words without."""
    found = []
    for entity in entities:
        flags = 0 if entity.term[0].isupper() else re.IGNORECASE
        pattern = rf"\b{re.escape(entity.term)}\b"
        if re.search(pattern, text, flags) and not re.search(pattern, prompt, re.IGNORECASE):
            found.append(entity.term)
    return found


class NgramIndex:
    """Hashes of all token n-grams of a corpus: 8 bytes each, sorted, so 40,000 documents of 500 tokens take 160 MB.

    Two unlike n-grams share a 64-bit hash with a chance of about corpus size / 2^64 a lookup.
    """

    def __init__(self, documents: Iterable[Sequence[int]], size: int):
        self.size = size
        parts = [ngram_hashes(ids, size) for ids in documents if len(ids) >= size]
        hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        del parts
        hashes.sort()  # in place; np.unique would keep several copies
        self.hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])] if len(hashes) else hashes

    @property
    def megabytes(self) -> float:
        return self.hashes.nbytes / 1e6

    def matches(self, ids: Sequence[int]) -> np.ndarray:
        """For each n-gram of `ids` whether the corpus has it: (len(ids) - size + 1,) booleans."""
        if len(ids) < self.size or not len(self.hashes):
            return np.zeros(max(len(ids) - self.size + 1, 0), bool)
        hashes = ngram_hashes(ids, self.size)
        places = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        return self.hashes[places] == hashes


def longest_match(
    index: NgramIndex, ids: Sequence[int], minus: NgramIndex | None = None, common: NgramIndex | None = None
) -> tuple[int, int]:
    """(length, start) in tokens of the longest stretch of `ids` made of corpus n-grams that `minus` does not have.

    common: shorter n-grams that count for nothing; a stretch must hold as many tokens outside them as one of them is long.
    (0, 0) where nothing matches. A stretch may join n-grams of several documents, so it is an upper bound on one document's.
    """
    hits = _hits(index, ids, minus)
    own = ~covered(common, ids) if common is not None else np.ones(len(ids), bool)
    least = common.size if common is not None else 0
    best = (0, 0)
    start = None
    for position, hit in enumerate([*hits, False]):
        if hit and start is None:
            start = position
        elif not hit and start is not None:
            length = position - start + index.size - 1
            if own[start : start + length].sum() >= least:
                best = max(best, (length, start), key=lambda pair: pair[0])
            start = None
    return best


def covered(index: NgramIndex, ids: Sequence[int], minus: NgramIndex | None = None) -> np.ndarray:
    """For each token of `ids` whether it stands in a corpus n-gram which `minus` does not have: (len(ids),) booleans."""
    tokens = np.zeros(len(ids), bool)
    for start in np.flatnonzero(_hits(index, ids, minus)):
        tokens[start : start + index.size] = True
    return tokens


def _hits(index: NgramIndex, ids: Sequence[int], minus: NgramIndex | None) -> np.ndarray:
    hits = index.matches(ids)
    return hits & ~minus.matches(ids) if minus is not None and len(hits) else hits
