"""Finds the licence of a base model, and what it may forbid.

model card, names of files -> the Hub's word for the licence, `apache-2.0`; words about what it restricts

Only the licence's name is read. Whether a product may use a model is for people to decide: nothing here refuses one.
"""

import re
from typing import Any

LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")  # the Hub's names for licences
UNSAID = ("", "unknown", "other")
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
MAX_CHARS = 1 << 16  # of a model card that are read


def of_card(text: str) -> str:
    """Returns the licence that the front matter of a model card names; empty if there is none."""
    import yaml

    match = FRONT_MATTER.match(text[:MAX_CHARS])
    try:
        values = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return ""
    return named(values.get("license")) if isinstance(values, dict) else ""


def named(value: Any) -> str:
    """Returns what a card gives as its licence as one name; empty if it is none."""
    value = value[0] if isinstance(value, list) and value else value
    return value.lower() if isinstance(value, str) and LICENCE.fullmatch(value) else ""


def restriction(licence: str) -> str | None:
    """Says what is to be looked at before a model made from a base under this licence is used; None: nothing."""
    if licence in UNSAID:
        return "names no licence that is known here: read its terms before you publish or use what is made from it"
    parts = re.split(r"[-.]", licence)
    known = {"nc": "commercial use", "nd": "publishing what is made from it"}
    forbidden = [words for part, words in known.items() if part in parts]
    return f"is under {licence}, which forbids {' and '.join(forbidden)}" if forbidden else None
