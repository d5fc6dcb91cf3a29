"""Matchers of text: `exact` and `contains`.

reference -> what scores an answer against it
"""

import unicodedata

from posttrain.config import MatchOptions
from posttrain.rows.formats import normalise
from posttrain.rows.skeleton import INVISIBLE
from validators.matching import Reference, Scorer

# Scripts that write words without blanks between them, and Hangul, which joins particles to a word.
WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def exact(reference: Reference, options: MatchOptions) -> Scorer:
    """Builds a scorer: 1 for an answer with the reference's text, compared in plain form, else 0.

    Raises:
        ValueError: the reference is blank, and a model that says nothing would be right.
    """
    wanted = plain(text_of(reference))
    if not wanted:
        raise ValueError(f"reference {reference!r} is blank, so that no answer would be right: give the answer")
    return lambda answer: float(plain(answer) == wanted)


def contains(reference: Reference, options: MatchOptions) -> Scorer:
    """The whole reference stands in the answer, not as part of a longer word.

    Raises:
        ValueError: the reference is blank, and would stand in every answer.
    """
    wanted = normalise(text_of(reference))
    if not wanted:
        raise ValueError(f"reference {reference!r} is blank, so every answer contains it: give the words to look for")
    return lambda answer: float(_stands_in(normalise(answer), wanted))


def text_of(reference: Reference) -> str:
    """The reference as a text.

    Raises:
        ValueError: it is another JSON value.
    """
    if not isinstance(reference, str):
        raise ValueError(f"reference {str(reference)[:80]!r} is not a text: give a text, or answer_match json")
    return reference


def plain(text: str) -> str:
    """NFKC, nothing invisible, single blanks."""
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).split())


def _stands_in(text: str, wanted: str) -> bool:
    at = text.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        if _is_boundary(text[at - 1 : at], wanted[0]) and _is_boundary(wanted[-1], text[end : end + 1]):
            return True
        at = text.find(wanted, at + 1)
    return False


def _is_boundary(before: str, after: str) -> bool:
    """Tells whether a word may end between two characters, either of which may be none."""
    return not (before and after and _continues(before) and _continues(after))


def _continues(char: str) -> bool:
    """Tells whether the character, next to another such, is inside a word."""
    if not char.isalnum():
        return False
    return char.isascii() or not unicodedata.name(char, "").startswith(WITHOUT_BLANKS)
