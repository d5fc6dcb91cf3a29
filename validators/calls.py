"""Reads the calls in an answer that a model wrote by its own chat template.

answer to a prompt that offers tools -> the same calls as JSON text, as `answer_match: tool_call` compares them

Templates print a call as JSON between marks of their own: <tool_call> of Hermes, Qwen and SmolLM3, [TOOL_CALLS] of
Mistral, <|python_tag|> of Llama, <|tool_call|> of Phi and Granite. Llama calls the arguments `parameters`, Mistral adds
an id. An answer to a prompt without tools is left as it is: there a mark is no more than a wrong word.
"""

import json
import re
from typing import Any

from posttrain.rows.formats import tools_of
from validators.matching.structured import object_of, refuse_constant

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>", "<|/tool_call|>")
FIRST_MARK = re.compile("|".join(map(re.escape, MARKS)))
BETWEEN = re.compile(rf"(?:[\s;,]|{FIRST_MARK.pattern})*")  # what may stand between calls
KEYS = ({"name", "arguments"}, {"name", "parameters"})


def as_json(text: str, prompt: list[dict]) -> str:
    """Returns the calls of an answer as JSON text; any other answer, or one to a prompt without tools, as it is.

    What the model says before its first call does not count. Of several calls the text is a list.
    """
    if not tools_of(prompt):
        return text
    start = FIRST_MARK.search(text)
    values = _values(text[start.start() :] if start else text)
    calls = [_call(value) for value in values or []]
    if not calls or None in calls:
        return text
    return json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)


def _values(text: str) -> list[Any] | None:
    """Returns the JSON values of a text that has nothing else but marks, those of a list one by one; else None."""
    decoder = json.JSONDecoder(parse_constant=refuse_constant, object_pairs_hook=object_of)
    values, at = [], BETWEEN.match(text).end()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):  # a model's output is hostile: ten thousand brackets end the parser so
            return None
        values += value if isinstance(value, list) else [value]
        at = BETWEEN.match(text, at).end()
    return values


def _call(value: Any) -> dict | None:
    """Returns the call in the form of a reference; None if it is none."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value.keys() - {"id"} not in KEYS:
        return None
    arguments = value["arguments"] if "arguments" in value else value["parameters"]
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None
