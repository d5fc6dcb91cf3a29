"""Marks where an answer differs from what counts as right, word by word.

answer, references -> pieces of the answer, each with whether it differs from the nearest reference
"""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

WORD = re.compile(r"\w+|\s+|[^\w\s]")
MAX_WORDS = 400  # of a text that is compared: the time grows with their product
MIN_SHARED = 0.25  # similarity below which all of an answer differs, and marks would tell nothing

Piece = tuple[str, bool]  # text, whether it differs; an empty text that differs: something is missing here


def pieces(answer: str, references: Iterable[str]) -> list[Piece]:
    """The answer in pieces. It is whole and unmarked where it is long, or like no reference."""
    words = WORD.findall(answer)
    if not words or len(words) > MAX_WORDS:
        return [(answer, False)]
    matchers = [_matcher(words, reference) for reference in references if reference]
    matchers = [matcher for matcher in matchers if len(matcher.a) <= MAX_WORDS]
    nearest = max(matchers, key=lambda matcher: matcher.ratio(), default=None)
    if nearest is None or nearest.ratio() < MIN_SHARED:
        return [(answer, False)]
    marked = [("".join(words[start:end]), tag != "equal") for tag, _, _, start, end in nearest.get_opcodes()]
    return [(text, differs) for text, differs in marked if text or differs]


def _matcher(words: list[str], reference: str) -> SequenceMatcher:
    return SequenceMatcher(None, WORD.findall(reference), words, autojunk=False)
