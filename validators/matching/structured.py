"""Matchers of structure: `json` and `tool_call`.

reference -> what scores an answer against it

The whole answer must be the JSON value: one in prose, with a key twice, or with NaN or infinity is none. Numbers are
equal by value (1 and 1.0), and exactly so unless a tolerance is set; true is not 1; objects are equal in any order of
their keys, lists in their own.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from posttrain.config import MatchOptions
from validators.matching import Reference, Scorer, number
from validators.matching.text import exact

NO_JSON = object()
CALL_FORMS = (
    'give {"name", "arguments"}, {"name", "accepted_arguments"[, "optional_arguments"]}, a list of these, or a sentence'
)


@dataclass(frozen=True)
class Call:
    """A call that is right: each argument has one of its accepted values, or is left out where that is allowed."""

    name: str
    accepted: dict[str, list[Any]]
    optional: frozenset[str] = frozenset()


def json_value(reference: Reference, options: MatchOptions) -> Scorer:
    """Builds a scorer: 1 for an answer with the reference's JSON value, else 0.

    Raises:
        ValueError: the reference is a text that is not JSON, or nothing of it is left to compare.
    """
    wanted = parse(reference) if isinstance(reference, str) else as_parsed(reference)
    if wanted is NO_JSON:
        raise ValueError(f"reference {_shown(reference)} is not JSON: give JSON, or another answer_match")
    if isinstance(wanted, dict) and wanted and not wanted.keys() - set(options.ignored_keys):
        raise ValueError(f"reference {_shown(reference)} has only ignored keys: shorten match_options.ignored_keys")

    def score(answer: str) -> float:
        value = parse(answer)
        return float(value is not NO_JSON and equal(value, wanted, options))

    return score


def tool_call(reference: Reference, options: MatchOptions) -> Scorer:
    """Calls of the same functions with accepted arguments, in any order; or the sentence that calls nothing.

    Raises:
        ValueError: the reference is neither a call, a list of calls nor a sentence.
    """
    value = parse(reference) if isinstance(reference, str) else as_parsed(reference)
    if value is NO_JSON:
        return exact(reference, options)
    wanted = [_call(one) for one in (value if isinstance(value, list) else [value])]
    if not wanted or None in wanted:
        raise ValueError(f"reference {_shown(reference)} is neither a call nor a sentence: {CALL_FORMS}")

    def score(answer: str) -> float:
        value = parse(answer)
        calls = value if isinstance(value, list) else [value]
        return float(len(calls) == len(wanted) and _pair_up(calls, wanted, options))

    return score


def parse(text: str) -> Any:
    """The JSON value of a whole text, with every fraction as a Decimal, or NO_JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant, parse_float=Decimal, object_pairs_hook=object_of)
    except (ValueError, RecursionError):  # a model's output is hostile: ten thousand brackets end the parser so
        return NO_JSON


def as_parsed(value: Any) -> Any:
    """A value of a row as `parse` would give it."""
    return parse(json.dumps(value))


def equal(value: Any, wanted: Any, options: MatchOptions) -> bool:
    """Tells whether a value is the wanted one. It is looked into no deeper than the wanted one goes."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(wanted, int | Decimal) and isinstance(value, int | Decimal):
        return number.is_close(value, wanted, options)
    if isinstance(wanted, str) and isinstance(value, str):
        return _spelled(value, options) == _spelled(wanted, options)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(lambda *pair: equal(*pair, options), value, wanted))
    if isinstance(wanted, dict) and isinstance(value, dict):
        keys, ignored = wanted.keys() - set(options.ignored_keys), set(options.ignored_keys)
        return value.keys() - ignored == keys and all(equal(value[key], wanted[key], options) for key in keys)
    return value is None and wanted is None


def sample_text(reference: Reference) -> str:
    """A text that is right by this reference: itself, or the call with each argument's first accepted value."""
    value = parse(reference) if isinstance(reference, str) else as_parsed(reference)
    if value is NO_JSON:
        return reference
    several = [_call(one) for one in (value if isinstance(value, list) else [value])]
    if not several or None in several:
        return reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
    texts = [_call_text(call) for call in several]
    return f"[{', '.join(texts)}]" if isinstance(value, list) else texts[0]


def _call(value: Any) -> Call | None:
    """A reference's call; None where the value is in neither form."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if value.keys() == {"name", "arguments"} and isinstance(value["arguments"], dict):
        return Call(value["name"], {name: [one] for name, one in value["arguments"].items()})
    accepted, optional = value.get("accepted_arguments"), value.get("optional_arguments", [])
    if not {"name", "accepted_arguments"} <= value.keys() <= {"name", "accepted_arguments", "optional_arguments"}:
        return None
    if not isinstance(accepted, dict) or not all(isinstance(some, list) and some for some in accepted.values()):
        return None
    if not isinstance(optional, list) or not all(name in accepted for name in map(str, optional)):
        return None
    return Call(value["name"], accepted, frozenset(optional))


def _call_text(call: Call) -> str:
    arguments = {name: some[0] for name, some in call.accepted.items() if name not in call.optional}
    return json.dumps({"name": call.name, "arguments": arguments}, ensure_ascii=False, default=float)


def _pair_up(calls: list[Any], wanted: list[Call], options: MatchOptions) -> bool:
    """Tells whether each wanted call can have a call of its own (augmenting paths: accepted values may overlap)."""
    taken: dict[int, int] = {}  # index of a call -> index of the wanted one that has it

    def find(at: int, seen: set[int]) -> bool:
        for index, call in enumerate(calls):
            if index not in seen and _is_accepted(call, wanted[at], options):
                seen.add(index)
                if index not in taken or find(taken[index], seen):
                    taken[index] = at
                    return True
        return False

    return all(find(at, set()) for at in range(len(wanted)))


def _is_accepted(call: Any, wanted: Call, options: MatchOptions) -> bool:
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        return False
    arguments, ignored = call["arguments"], set(options.ignored_keys)
    named = arguments.keys() - ignored
    if call["name"] != wanted.name or not wanted.accepted.keys() - wanted.optional - ignored <= named:
        return False
    return all(any(equal(arguments[name], one, options) for one in wanted.accepted.get(name, [])) for name in named)


def _spelled(text: str, options: MatchOptions) -> str:
    """Loose: as Berkeley's checker has it, gorilla's bfcl_eval/eval_checker/ast_eval/ast_checker.py."""
    text = unicodedata.normalize("NFC", text)
    return text if options.text == "exact" else re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of a key that appears twice, readers take one value or the other."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice")
    return dict(pairs)


def refuse_constant(constant: str) -> None:
    """Refuses NaN and infinity, which Python would read."""
    raise ValueError(f"{constant} is not JSON")


def _shown(reference: Reference) -> str:
    return repr(reference)[:80]
