"""Recognises the form of the answers in the rows.

answers, their prompts -> `output_format` and `answer_match`, with the reason
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.config import OutputFormat
from validators.answers import fault_finder, parse_json

MAX_LABELS = 20
ROWS_OF_A_LABEL = 8  # so many on average make texts labels
MAX_WORDS = 6  # of an answer that is looked for in the model's
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?")
JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}

FREE_TEXT = "free text: NOBODY JUDGES WHETHER IT IS RIGHT, unless you choose a matcher or a judge model"

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """A form that all answers have."""

    output_format: OutputFormat
    answer_match: str
    reason: str


def recognise(pairs: list[tuple[Turns, str]], declines_with: str | None) -> Form:
    """Returns the strictest form that all answers have.

    Args:
        pairs: prompts with the answers of the rows.
        declines_with: the sentence that declines; None: the only answer that is not JSON, if there is one.
    """
    texts = [text for _, text in pairs]
    sentence = declines_with or _sentence(texts)
    texts = [text for text in texts if text.strip() != (sentence or "").strip()]
    for form in (*_of_json(texts, sentence), *_of_words(texts, declines_with)):
        find_fault = fault_finder(form.output_format)
        if all(find_fault(text, prompt) is None for prompt, text in pairs):
            return form
    raise AssertionError("every answer that is not empty is text")


def _sentence(texts: list[str]) -> str | None:
    """Returns the one answer that is not JSON: the sentence with which the product declines."""
    others = {text.strip() for text in texts if not isinstance(parse_json(text), dict)}
    return others.pop() if len(others) == 1 and len(set(texts)) > 1 else None


def _of_json(texts: list[str], sentence: str | None) -> Iterable[Form]:
    values = [parse_json(text) for text in texts]
    if not values or not all(isinstance(value, dict) for value in values):
        return
    yield Form(
        OutputFormat(kind="tool_call", declines_with=sentence),
        "tool_call",
        "every answer is a call, with name and arguments, of a function that its prompt offers",
    )
    yield Form(
        OutputFormat(kind="json_schema", json_schema=schema_of(values), declines_with=sentence),
        "json",
        f"every answer is a JSON object; the schema fits these {len(values)}",
    )


def _of_words(texts: list[str], sentence: str | None) -> Iterable[Form]:
    counts = Counter(text.strip() for text in texts)
    if texts and all(NUMBER.fullmatch(text.strip()) for text in texts):
        form = OutputFormat(kind="regex", pattern=rf"\s*{NUMBER.pattern}\s*", declines_with=sentence)
        yield Form(form, "number", "every answer is a number")
    if 2 <= len(counts) <= MAX_LABELS and len(texts) >= ROWS_OF_A_LABEL * len(counts):
        pattern = rf"\s*({'|'.join(map(re.escape, sorted(counts)))})\s*"
        form = OutputFormat(kind="regex", pattern=pattern, declines_with=sentence)
        yield Form(form, "exact", f"the answers are {len(counts)} labels")
    if texts and all(len(text.split()) <= MAX_WORDS for text in texts):
        reason = f"no answer has more than {MAX_WORDS} words: the model's answer must contain it"
        yield Form(OutputFormat(declines_with=sentence), "contains", reason)
    yield Form(OutputFormat(declines_with=sentence), "none", FREE_TEXT)


def schema_of(values: list[dict]) -> dict[str, Any]:
    """Returns a JSON Schema that fits all values: their keys, the required ones, and their types."""
    keys = sorted(set().union(*values))
    return {
        "type": "object",
        "properties": {key: _type_of([value[key] for value in values if key in value]) for key in keys},
        "required": [key for key in keys if all(key in value for value in values)],
        "additionalProperties": False,
    }


def _type_of(values: list[Any]) -> dict[str, Any]:
    names = {JSON_TYPES.get(type(value), "null") for value in values}
    if {"integer", "number"} <= names:
        names.discard("integer")
    return {"type": names.pop()} if len(names) == 1 else {"type": sorted(names)}
