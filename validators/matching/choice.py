"""Matcher `choice`: one of several letters or words is right.

reference -> what scores an answer against it

An answer chooses what it names as a whole word, if it names one choice alone: `B`, `(b)`, `It is B.` Where it names
several, the one counts that it begins with (`B) Paris. A is in Italy`), else the one that it calls the answer (`A is
in Italy, so the answer is B`). An answer that names several without either chooses none.
"""

import re

from posttrain.config import MatchOptions
from validators.matching import Reference, Scorer
from validators.matching.text import plain, text_of

CALLED_THE_ANSWER = r"(?i:\b(?:answer|choice|option)\b(?:\s+(?:is|would be))?\s*[:=]?)[\s(\[*\"'`]*"
PLACES = (r"^[(\[*\"'`]*{}[)\]*\"'`]*[).:]", rf"{CALLED_THE_ANSWER}{{}}(?!.*{CALLED_THE_ANSWER})")
BEFORE, AFTER = r"(?<![\w'’-])", r"(?![\w'’-])"
ARTICLES = "AI"  # before most words no choice: `A cat`, `I think`
NOT_AN_ARTICLE = r"(?!\s+(?!(?:or|and|nor|but|is|was|because|since)\b)[a-z])"


def choice(reference: Reference, options: MatchOptions) -> Scorer:
    """Builds a scorer: 1 for an answer that names the reference's choice, else 0.

    Raises:
        ValueError: the reference names none of the choices, or several.
    """
    wanted = chosen(text_of(reference), options.choices)
    if wanted is None:
        listed = ", ".join(options.choices)
        raise ValueError(f"reference {reference!r} does not name one of {listed}: set match_options.choices")
    return lambda answer: float(chosen(answer, options.choices) == wanted)


def chosen(text: str, choices: list[str]) -> str | None:
    """The choice that a text makes, as the configuration spells it."""
    text = plain(text)
    bare = text.strip("()[]{}.,:;*\"'` ").casefold()
    for one in choices:
        if bare == plain(one).casefold():
            return one
    named = _named(text, choices)
    for place in PLACES if len(named) > 1 else ("{}",):
        in_place = [one for one in named if re.search(place.replace("{}", _mention(one)), text)]
        if len(in_place) == 1:
            return in_place[0]
    return None


def _named(text: str, choices: list[str]) -> list[str]:
    """The choices that stand in a text, apart from those that only stand in a longer one: `spam` in `not spam`."""
    named = []
    for one in sorted(choices, key=len, reverse=True):
        text, times = re.subn(_mention(one), "|", text)
        named += [one] * bool(times)
    return named


def _mention(one: str) -> str:
    """Pattern of the choice as a whole word: a single letter as it is spelled, a word in any case."""
    one = plain(one)
    if len(one) > 1:
        return f"(?i:{BEFORE}{re.escape(one)}{AFTER})"
    article = NOT_AN_ARTICLE if one in ARTICLES else ""
    return f"{BEFORE}{re.escape(one)}{AFTER}{article}"
