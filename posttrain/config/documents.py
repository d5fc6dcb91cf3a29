"""Parses JSON and YAML that people wrote, strictly: nothing in it may be lost or ambiguous without an error.

text -> value, or a ValueError that names the key, what is wrong with it and the remedy; the caller adds the file

Both formats allow duplicate keys, and Python's parsers keep the last one. Numbers that JSON does not have, numbers of
thousands of digits, nesting that ends a parser or a later writer, and halves of a surrogate pair are refused as well.
"""

import json
import math
import re
from collections.abc import Hashable, Iterator
from functools import cache
from itertools import count
from typing import Any

MAX_DEPTH = 200  # levels of lists and objects; Python's own readers and writers end at about a thousand
MAX_SHOWN_CHARS = 60
SURROGATE = re.compile("[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
NO_NUMBER = "which is no number in JSON: write a number, null or text"
TOO_DEEP = f"more than {MAX_DEPTH} levels of lists and objects: flatten it"
TWICE = "and only one would count: remove one"
MERGE = "tag:yaml.org,2002:merge"  # the key `<<`

Path = tuple[str | int, ...]  # keys and indices that lead to a value


class Refused(ValueError):
    """A document with a value that is refused. `path` leads to it; `what` says what is wrong and what to do."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{dotted(path)!r} {what}" if path else what)
        self.path, self.what = path, what


class _Bad(str):
    """Stands for a value that is refused; its text says why."""


class _Twice(dict):
    """An object with a key that stands in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.key = next(key for at, key in enumerate(keys) if key in keys[:at])


def dotted(path: Path) -> str:
    """Returns `messages[0].role` for `("messages", 0, "role")`, cut if it is long."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def parse_json(text: str) -> Any:
    """Parses a JSON document.

    Raises:
        json.JSONDecodeError: it is not JSON.
        Refused: a value in it is refused.
    """
    try:
        value = STRICT.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise Refused((), f"JSON with {TOO_DEEP}") from None
    except ValueError:
        value = _marked(text)
    if ESCAPED_SURROGATE.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
        check(value)
    return value


def _marked(text: str) -> Any:
    """Parses JSON once more to learn where the value is that is refused; raises Refused."""
    try:
        check(MARKING.decode(text))
    except RecursionError:
        raise Refused((), f"JSON with {TOO_DEEP}") from None
    raise AssertionError("the strict decoder refused a value that this one does not mark")


def check(value: Any) -> None:
    """Raises Refused for nesting that is too deep, halves of surrogate pairs, and what the second look has marked."""
    level: dict[int, tuple[Path, Any]] = {id(value): ((), value)}  # aliases of YAML once, and those in themselves
    for depth in count():
        below: dict[int, tuple[Path, Any]] = {}
        for path, one in level.values():
            if fault := _fault(one):
                raise Refused((*path, one.key) if isinstance(one, _Twice) else path, fault)
            if depth == MAX_DEPTH and isinstance(one, dict | list):
                raise Refused(path[:1], f"has {TOO_DEEP}")
            below |= {id(inner): ((*path, key), inner) for key, inner in _inside(one)}
        if not below:
            return
        level = below


def _fault(value: Any) -> str | None:
    if isinstance(value, _Twice):
        return f"appears twice, {TWICE}"
    if isinstance(value, _Bad):
        return str(value)
    texts = [value] if isinstance(value, str) else value if isinstance(value, dict) else ()
    halved = next((text for text in texts if isinstance(text, str) and SURROGATE.search(text)), None)
    if halved is None:
        return None
    shown = repr(halved)[:MAX_SHOWN_CHARS]
    return f"has an unpaired UTF-16 surrogate in {shown}: repair the text's encoding"


def _inside(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from ((key if isinstance(key, str) else repr(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | set):
        yield from enumerate(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError
    return value


def _constant(name: str) -> float:
    raise ValueError


def _marked_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Twice(pairs)


def _marked_int(text: str) -> int | _Bad:
    try:
        return int(text)
    except ValueError:  # sys.int_info: what int refuses to read
        return _Bad(f"is a number of {len(text.lstrip('-'))} digits, too long for one: write it as text")


def _marked_float(text: str) -> float | _Bad:
    return (
        _Bad(f"is {text[:MAX_SHOWN_CHARS]}, too large a number: write it as text")
        if math.isinf(float(text))
        else float(text)
    )


def _marked_constant(name: str) -> _Bad:
    return _Bad(f"is {name}, {NO_NUMBER}")


STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)
MARKING = json.JSONDecoder(
    object_pairs_hook=_marked_object,
    parse_int=_marked_int,
    parse_float=_marked_float,
    parse_constant=_marked_constant,
)


def parse_yaml(text: str) -> Any:
    """Parses one YAML document.

    Raises:
        ValueError: it is not YAML, or a value in it is refused.
    """
    import yaml  # only where the files are: a step is given JSON

    try:
        value = yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise Refused((), f"YAML with {TOO_DEEP}") from None
    check(value)
    return value


@cache
def _strict_loader() -> type:
    """Returns a safe loader that refuses a key that appears twice in a mapping, and names the line of a bad value."""
    from yaml import SafeLoader
    from yaml.constructor import ConstructorError

    class StrictLoader(SafeLoader):
        def compose_mapping_node(self, anchor):
            node, lines = super().compose_mapping_node(anchor), {}
            for key_node, _ in node.value:
                key = key_node.value if key_node.tag == MERGE else self.construct_object(key_node, deep=True)
                line = key_node.start_mark.line + 1
                if isinstance(key, Hashable) and key in lines:
                    raise Refused((), f"line {line}: {key!r} appears twice, first in line {lines[key]}, {TWICE}")
                lines |= {key: line} if isinstance(key, Hashable) else {}
            return node

        def construct_object(self, node, deep=False):
            try:
                return super().construct_object(node, deep=deep)
            except (ValueError, OverflowError) as error:  # a date with 13 months, a number of 5,000 digits
                shown = str(node.value)[:MAX_SHOWN_CHARS]
                raise ConstructorError(None, None, f"{shown!r} is no value: {error}", node.start_mark) from None

    return StrictLoader
