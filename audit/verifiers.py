"""IFEval's 25 verifiers from the package if-verifiable, made deterministic and free of downloads.

What is wrapped, and why:
- langdetect draws at random unless seeded: the seed is fixed.
- NLTK would want its Punkt model from the network: the package `punkt` carries the same English model. It stands in for
  NLTK only inside the verifiers' own module.
- IFEval's prompt 1122 asks for the letter '#', which upstream replaces by a random letter: '#' is counted as asked.
- Thoughts are stripped first; an unclosed one leaves an empty answer, and an empty answer follows nothing.
- The package leaves unknown verifiers and empty replies out of its lists; here each instruction of a prompt counts.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

from audit.text import answer_only
from organisms.errors import UserError


@cache
def registry() -> dict[str, Any]:
    """Verifier classes by instruction id."""
    import langdetect
    import nltk
    import punkt
    from if_verifiable.ifeval import instructions_util
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    langdetect.DetectorFactory.seed = 0
    words = nltk.tokenize.NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        return [word for sentence in punkt.sent_tokenize(text) for word in words.tokenize(sentence)]

    instructions_util.nltk = SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)
    instructions_util._get_sentence_tokenizer = lambda: SimpleNamespace(tokenize=punkt.sent_tokenize)
    return dict(INSTRUCTION_DICT)


def build(instruction_id: str, kwargs: dict[str, Any], prompt: str) -> Any:
    """A verifier ready to check replies. Raises UserError for an unknown id or kwargs that it refuses."""
    if instruction_id not in registry():
        raise UserError(f"there is no IFEval verifier {instruction_id!r}")
    verifier = registry()[instruction_id](instruction_id)
    try:
        verifier.build_description(**{key: value for key, value in kwargs.items() if value is not None})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"the IFEval verifier {instruction_id!r} refuses its kwargs {kwargs}: {error}") from None
    missing = [key for key in verifier.get_instruction_args_keys() if key != "prompt_to_repeat" and kwargs.get(key) is None]
    if missing:
        raise UserError(f"the IFEval verifier {instruction_id!r} lacks {missing[0]!r}, which it would draw at random")
    if "prompt" in (verifier.get_instruction_args() or {}):
        verifier.build_description(prompt=prompt)
    letter = kwargs.get("letter")
    if isinstance(letter, str) and len(letter) == 1 and not letter.isalpha():
        verifier._letter = letter
    return verifier


def check(row: dict, reply: str) -> tuple[list[bool], list[bool]]:
    """(strict, loose) for each instruction of an IFEval row; loose is any of upstream's eight variants of the reply."""
    from if_verifiable.common import get_loose_transformations

    answer = answer_only(reply)
    variants = [variant for variant in get_loose_transformations(answer) if variant.strip()]
    strict, loose = [], []
    if len(row["kwargs"]) != len(row["instruction_id_list"]):
        raise UserError(
            f"IFEval row {row.get('id')!r} has {len(row['kwargs'])} kwargs for {len(row['instruction_id_list'])} ids"
        )
    for instruction_id, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        verifier = build(instruction_id, kwargs, row["prompt"])
        strict.append(bool(answer.strip()) and bool(verifier.check_following(answer)))
        loose.append(any(bool(verifier.check_following(variant)) for variant in variants))
    return strict, loose
