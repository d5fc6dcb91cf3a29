"""Scores one answer of a function-calling model.

In:  a held-out row (offered functions with JSON Schemas, function to call, accepted values) and the answer's text.
Out: a `Score` of booleans; no model and no network is needed.
"""

import json
import math
import re
from dataclasses import dataclass

import jsonschema

DECLINE = "No function fits."


@dataclass(frozen=True, slots=True)
class Score:
    """Findings about one answer. `function` and everything after it are False for an answer that declines."""

    declines: bool
    call: bool  # the whole answer is one call, with name and arguments, of an offered function
    schema: bool  # and its arguments are valid under that function's schema, without unknown ones
    function: bool  # and it is the right function
    arguments: bool  # and all its arguments have accepted values
    invents: bool  # a call with an argument that is unknown, or optional and not asked for


def parse_call(text: str) -> dict | None:
    """The call, if the whole answer is one: a call buried in prose is none."""
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # ten thousand brackets end the parser so
        return None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return None
    return call if isinstance(call["name"], str) and isinstance(call["arguments"], dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def score(row: dict, text: str) -> Score:
    call, schemas = parse_call(text), {f["name"]: f["parameters"] for f in row["functions"]}
    if call is None or call["name"] not in schemas:
        return Score(text.strip() == DECLINE, False, False, False, False, False)
    schema = {**schemas[call["name"]], "additionalProperties": False}
    right = call["name"] == row["function"]
    return Score(
        declines=False,
        call=True,
        schema=jsonschema.Draft202012Validator(schema).is_valid(call["arguments"]),
        function=right,
        arguments=right and is_accepted(call["arguments"], row["accepted"]),
        invents=_invents(call["arguments"], schema, row["accepted"] if right else {}),
    )


def _invents(arguments: dict, schema: dict, accepted: dict[str, list]) -> bool:
    """An argument the function does not know, or one that may be left out and has a value that is not accepted."""
    required = schema.get("required", [])
    return any(
        name not in schema.get("properties", {})
        or (name not in required and not any(equal(value, option) for option in accepted.get(name, [])))
        for name, value in arguments.items()
    )


def is_accepted(arguments: dict, accepted: dict[str, list]) -> bool:
    """Tells whether every argument has one of its accepted values and only such are missing as may be."""
    if not arguments.keys() <= accepted.keys():
        return False
    for name, options in accepted.items():
        options = options if isinstance(options, list) else [options]
        if name not in arguments:
            if "" not in options:
                return False
        elif not any(equal(arguments[name], option) for option in options):
            return False
    return True


def equal(value: object, accepted: object) -> bool:
    """Equality as BFCL's checker has it: strings without case, blanks and light punctuation, 1 == 1.0, True != 1."""
    if isinstance(value, str) and isinstance(accepted, str):
        return _plain(value) == _plain(accepted)
    if isinstance(value, bool) or isinstance(accepted, bool):
        return value is accepted
    if isinstance(value, int | float) and isinstance(accepted, int | float):
        return math.isclose(value, accepted, rel_tol=1e-9)
    if isinstance(value, list) and isinstance(accepted, list):
        return len(value) == len(accepted) and all(equal(v, a) for v, a in zip(value, accepted, strict=True))
    if isinstance(value, dict) and isinstance(accepted, dict):
        return is_accepted(value, accepted)  # a nested object again lists the accepted values of each key
    return value == accepted


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
