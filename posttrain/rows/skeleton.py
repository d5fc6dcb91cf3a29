"""Texts without what the eye does not see, and texts as keys by which a disguised copy is found.

text -> plain text; text -> its skeleton, equal for texts that a reader would take for the same request
"""

import re
import unicodedata

from posttrain.rows import look_alikes

# Default_Ignorable_Code_Point (https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point), the anchors of
# annotations, and control characters that are no white space.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
)
BRAILLE_BLANK = "\u2800"
MAX_MARKS = (
    30  # on one letter, as in Unicode's stream-safe text (UAX #15); normalising takes the square of their number
)
MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{MAX_MARKS + 1},}}")
JOINING = re.compile(r"(?<=\w)[-\u2010-\u2015\u2212_/]+(?=\w)")
APOSTROPHES = re.compile(r"(?<=\w)['\u2018\u2019\u02bc`\u00b4](?=\w)")


def plain(text: str) -> str:
    """Turns full-width letters and ligatures into plain letters, and removes invisible characters."""
    if not text.isascii():  # ASCII has neither
        text = unicodedata.normalize("NFKC", MARKS.sub(_fewer_marks, text).replace(BRAILLE_BLANK, " "))
    return INVISIBLE.sub("", text)


def skeleton(text: str) -> str:
    """Returns words without case, homoglyphs, punctuation and symbols around them; hyphens and slashes are blanks."""
    folded = " ".join(map(_as_ascii, plain(text).split()))
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded)  # folding case may take it out of that form
    words = APOSTROPHES.sub("", JOINING.sub(" ", folded)).split()
    return " ".join(filter(None, map(_bare, words))) or " ".join(words)


def looks(text: str) -> str:
    """Replaces letters by those of ASCII that look like them, and keeps everything else, case as well."""
    if text.isascii():
        return text
    return "".join(char if char.isascii() else _one_as_ascii(char) for char in plain(text))


def _one_as_ascii(char: str) -> str:
    small = char.casefold().translate(look_alikes.ASCII)
    if not small.isascii():
        return char
    return small.upper() if char.isupper() else small


def _as_ascii(word: str) -> str:
    """Folds case, and replaces letters by those of ASCII that look like them."""
    if word.isascii():
        return word.casefold()
    if any(char.isascii() and char.isalpha() for char in word):
        word = word.translate(look_alikes.GREEK_CAPITALS)
    return word.casefold().translate(look_alikes.ASCII)


def _bare(word: str) -> str:
    """Removes punctuation and symbols around a word; a sign by itself, `+` or `<`, is a word of its own."""
    if word.isalnum():
        return word
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] in "PS":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] in "PS":
        end -= 1
    is_sign = start == end and all(unicodedata.category(char) in ("Sm", "Sc") for char in word)
    return word if is_sign else word[start:end]


def _fewer_marks(match: re.Match) -> str:
    """Cuts each run of combining marks; other signs in a row, as of emoji, stay."""
    kept, run = [], 0
    for char in match.group():
        run = run + 1 if unicodedata.combining(char) else 0
        if run <= MAX_MARKS:
            kept.append(char)
    return "".join(kept)
