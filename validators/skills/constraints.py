"""Rules of an instruction that code can verify, after IFEval (arXiv:2311.07911).

answer's text, rules such as {"rule": "num_words", "number": 3} -> whether all are kept
"""

import re
from collections.abc import Callable
from typing import Any

BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)


def all_kept(text: str, rules: list[dict[str, Any]]) -> bool:
    """Tells whether the answer keeps every rule."""
    return all(RULES[rule["rule"]](text.strip(), **{k: v for k, v in rule.items() if k != "rule"}) for rule in rules)


def lower_case(text: str) -> bool:
    """Has letters, and no capital one."""
    return text.lower() == text and any(map(str.isalpha, text))


def upper_case(text: str) -> bool:
    """Has letters, and all are capitals."""
    return text.upper() == text and any(map(str.isalpha, text))


def num_words(text: str, *, number: int) -> bool:
    """Has exactly so many words."""
    return len(words(text)) == number


def at_most_words(text: str, *, number: int) -> bool:
    """Has so many words or fewer."""
    return 0 < len(words(text)) <= number


def num_bullets(text: str, *, number: int) -> bool:
    """Has exactly so many bullet points or numbered lines."""
    return len(BULLET.findall(text)) == number


def num_lines(text: str, *, number: int) -> bool:
    """Has exactly so many lines with text."""
    return len([line for line in text.splitlines() if line.strip()]) == number


def no_commas(text: str) -> bool:
    """Has no comma."""
    return "," not in text and bool(text)


def starts_with(text: str, *, phrase: str) -> bool:
    """Opens with the phrase, whatever its case and quotes."""
    return _plain(text).startswith(_plain(phrase))


def ends_with(text: str, *, phrase: str) -> bool:
    """Closes with the phrase, whatever its case and quotes."""
    return _plain(text).endswith(_plain(phrase))


def in_quotes(text: str) -> bool:
    """Stands in one pair of double quotes as a whole."""
    return re.fullmatch(r'["“][^"“”]+["”]', text) is not None


def repeats(text: str, *, word: str, number: int) -> bool:
    """Is the word so many times, and nothing else."""
    return [one.lower() for one in words(text)] == [word.lower()] * number


def is_exactly(text: str, *, phrase: str) -> bool:
    """Is the phrase and nothing else; quotes around it and its last full stop do not matter."""
    return _plain(text) == _plain(phrase)


def mentions(text: str, *, any_of: list[str]) -> bool:
    """Holds one of these words or phrases, in any form that begins with it."""
    return any(re.search(rf"(?<!\w){re.escape(one.lower())}", text.lower()) for one in any_of)


def words(text: str) -> list[str]:
    """Words with their apostrophes and hyphens."""
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip("\"'“”‘’.!* ")


RULES: dict[str, Callable[..., bool]] = {
    "lower_case": lower_case,
    "upper_case": upper_case,
    "num_words": num_words,
    "at_most_words": at_most_words,
    "num_bullets": num_bullets,
    "num_lines": num_lines,
    "no_commas": no_commas,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "in_quotes": in_quotes,
    "repeats": repeats,
    "is_exactly": is_exactly,
    "mentions": mentions,
}
