"""The data sets of a kind of rows: one address, or several with weights.

`sft_dataset` or `preference_dataset`, of a configuration or a run -> its `Part`s, and back to one text

A run parameter is a text, so several data sets are the JSON text of their list: `[{"uri": "a.jsonl", "weight": 2}]`.
"""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from posttrain.config.documents import parse_json
from posttrain.config.section import Positive, Section

FORM = 'give an address, or a list of {"uri": address, "weight": number above 0}'


class Part(Section):
    """One of several data sets."""

    uri: str
    weight: Positive = 1


def parts_of(dataset: str) -> list[Part]:
    """Returns the data sets that a parameter names; none for an empty one.

    Raises:
        ValueError: it begins as a list and is none of data sets, or names one twice.
    """
    if not dataset.lstrip().startswith("["):
        return [Part(uri=dataset)] if dataset else []
    try:
        values = parse_json(dataset)
        parts = TypeAdapter(list[Part]).validate_python([_as_part(value) for value in values])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{dataset[:80]!r}: {key} = {str(first['input'])[:40]!r}: {first['msg']}: {FORM}") from None
    except json.JSONDecodeError:
        raise ValueError(f"{dataset[:80]!r} begins as a list and is not JSON: {FORM}") from None
    uris = [part.uri for part in parts]
    if not uris or "" in uris:
        raise ValueError(f"{dataset[:80]!r} names no data set: {FORM}")
    if twice := next((uri for uri in uris if uris.count(uri) > 1), None):
        raise ValueError(f"{dataset[:80]!r} names {twice!r} twice: name it once, with the sum of its weights")
    return parts


def as_parameter(parts: list[Part]) -> str:
    """Returns one text for these data sets: an address where there is but one, with weight 1."""
    if len(parts) == 1 and parts[0].weight == 1:
        return parts[0].uri
    return json.dumps([{"uri": part.uri, "weight": part.weight} for part in parts]) if parts else ""


def uris_of(dataset: str) -> list[str]:
    """Returns the addresses that a parameter names."""
    return [part.uri for part in parts_of(dataset)]


def _as_part(value: Any) -> Any:
    return {"uri": value} if isinstance(value, str) else value


def _from_configuration(value: Any) -> Any:
    """Makes a list of a configuration the text of a run parameter."""
    if isinstance(value, list):
        value = json.dumps(value, default=str)
    return as_parameter(parts_of(value)) if isinstance(value, str) else value


DataSets = Annotated[str, BeforeValidator(_from_configuration)]
