"""Gives the tools that a row offers, and the calls of its answers, the one form that chat templates expect.

`tools` column, `tool_calls` of a message: objects or their JSON text -> lists of objects; calls -> JSON text

    tool  {"type": "function", "function": {"name": str, "description": str, "parameters": JSON Schema}}
    call  {"type": "function", "id": str, "function": {"name": str, "arguments": object}}; id where the row has one

Templates print `arguments` as JSON themselves: given text, many would print it in quotes.
"""

import json
from typing import Any

from posttrain.config.documents import parse_json

TOOL_FORM = 'give {"type": "function", "function": {"name", "description", "parameters"}}'
CALL_FORM = 'give {"type": "function", "function": {"name", "arguments"}}, with arguments as an object or its JSON text'
MAX_SHOWN = 80


def read_tools(value: Any) -> list[dict]:
    """Returns the tools of a row's `tools`: a list, or JSON text of one; empty where there are none.

    Raises:
        ValueError: it is anything else, or a tool has no name.
    """
    value = _parsed(value, "'tools'")
    if value in (None, "", []):
        return []
    if not isinstance(value, list):
        raise ValueError(f"'tools' is {_shown(value)}: give a list of tools, or its JSON text")
    return [_tool(_parsed(one, "a tool")) for one in value]


def read_calls(value: Any) -> list[dict]:
    """Returns the calls of a message's `tool_calls`: a list or one call, or JSON text of either.

    Raises:
        ValueError: it is anything else, or a call has no name or no object of arguments.
    """
    value = _parsed(value, "'tool_calls'")
    calls = [value] if isinstance(value, dict) else value
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"'tool_calls' is {_shown(value)}: {CALL_FORM}")
    return [_call(_parsed(one, "a call")) for one in calls]


def names_of(tools: list[dict]) -> list[str]:
    """Returns the names of the functions, in their order."""
    return [tool["function"]["name"] for tool in tools]


def call_values(calls: list[dict]) -> Any:
    """Returns what a call says, `{"name", "arguments"}`; of several calls, the list."""
    values = [{name: call["function"][name] for name in ("name", "arguments")} for call in calls]
    return values[0] if len(values) == 1 else values


def calls_text(calls: list[dict]) -> str:
    """Returns `call_values` as JSON text."""
    return json.dumps(call_values(calls), ensure_ascii=False)


def _tool(value: Any) -> dict:
    """Wraps a bare definition, as ShareGPT rows have it."""
    function = value.get("function") if isinstance(value, dict) and "function" in value else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"'tools' holds {_shown(value)}: {TOOL_FORM}")
    return value if "function" in value and "type" in value else {"type": "function", "function": function}


def _call(value: Any) -> dict:
    function = value.get("function") if isinstance(value, dict) and "function" in value else value
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"'tool_calls' holds {_shown(value)}: {CALL_FORM}")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else _parsed(arguments, f"the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise ValueError(f"a call of {function['name']} has the arguments {_shown(arguments)}: {CALL_FORM}")
    call_id = {"id": value["id"]} if isinstance(value.get("id"), str) and value["id"] else {}
    return {"type": "function", **call_id, "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any, what: str) -> Any:
    """Returns the value of JSON text; anything else as it is."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError:
        raise ValueError(f"{what} is the text {_shown(value)}, which is not JSON: repair it") from None
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
