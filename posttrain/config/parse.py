"""Turns YAML and JSON into sections: one section from a file, a step's `--config`, and a run's overrides.

Every problem is one line that names source, key, value and remedy.
"""

import json
import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from posttrain.config.documents import parse_json, parse_yaml
from posttrain.config.masking import mask
from posttrain.config.section import Section
from posttrain.config.stages import DpoConfig, SftConfig

DOLLAR = "remove it; in a pattern, write the dollar as [$]"
# What the backend and the kubelet expand, in any value -> what to do instead.
EXPANDED = {"{{": "remove the braces; compose text in the container, not in the graph", "$(": DOLLAR, "$$": DOLLAR}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")  # of a published model, and of a version
MAX_RUN_PARAMETERS_BYTES = 8_000  # the backend refuses 10,000 bytes for all run parameters together
# Limits, placement, prefixes and data splits are fixed when the graph is compiled.
OVERRIDABLE: dict[str, type[Section]] = {"sft": SftConfig, "dpo": DpoConfig}
S = TypeVar("S", bound=Section)


def read_section(section: type[S], path: str | Path) -> S:
    """Reads a section from a YAML file of its own.

    Raises:
        ValueError: the file is missing or not a YAML mapping, a key is unknown, a value is out of range.
    """
    return validate(section, read_yaml(Path(path)), source=str(path))


def parse_overrides(text: str) -> dict:
    """Parses the overrides of a run, as `run_pipeline.py --overrides` takes them."""
    return check_overrides(json_object(text, "--overrides"))


def parse_step(step: type[S], config: str, overrides: str = "{}") -> S:
    """Returns the configuration of a step inside its container: the compiled JSON with the run's overrides on top.

    Every step checks all overrides, its own or not, so that a wrong one ends the run before anything expensive starts.
    """
    compiled = json_object(config, "--config")
    changes = check_overrides(json_object(overrides, "overrides"))
    own = {name: section for name, section in changes.items() if name in step.model_fields}
    return validate(step, merged(compiled, own), source="--config")


def check_overrides(overrides: dict) -> dict:
    """Returns the overrides of a run unchanged, if they are valid. Only `sft` and `dpo` may be overridden."""
    for name, section in overrides.items():
        if name not in OVERRIDABLE:
            raise ValueError(
                f"overrides: {name!r} cannot be changed by a run: only {' and '.join(OVERRIDABLE)} can; "
                "change the configuration and compile the graph again"
            )
        validate(OVERRIDABLE[name], section, source=f"overrides.{name}")
    return overrides


def check_name(value: str, *, key: str) -> None:
    """Refuses what cannot be the name of a published model or of a version: it becomes that of a folder.

    Raises:
        ValueError: naming `key` and the value.
    """
    if not NAME.fullmatch(value):
        raise ValueError(
            f"{key}: {value!r} is not a name; use up to 96 letters, digits, '.', '_' and '-', a letter or digit first"
        )


def check_run_parameters(parameters: dict[str, Any]) -> None:
    """Refuses run-time values that the backend would expand or cut.

    Raises:
        ValueError: a value holds one of `EXPANDED`, all values together are too large, or model_name is no name.
    """
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value)
        for mark, remedy in EXPANDED.items():
            if mark in text:
                raise ValueError(f"{name}: {text[:80]!r} holds {mark!r}, which the backend would expand: {remedy}")
    check_name(parameters.get("model_name", "model"), key="model_name")
    size = len(json.dumps(parameters).encode())
    if size > MAX_RUN_PARAMETERS_BYTES:
        raise ValueError(
            f"run parameters are {size} bytes, at most {MAX_RUN_PARAMETERS_BYTES} are safe: "
            "move settings from overrides into the configuration"
        )


def merged(base: dict, changes: dict) -> dict:
    """Returns `base` with `changes` on top: sections are merged, lists and scalars replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def read_yaml(path: Path) -> dict:
    """Reads a YAML mapping.

    Raises:
        ValueError: the file is missing, not YAML, has a key twice, or holds something else.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: give the path of a readable YAML file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not YAML: not UTF-8 at byte {error.start}: convert the file to UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(raw, dict):
        problem = "is empty" if raw is None else f"is a {type(raw).__name__}"
        raise ValueError(f"{path}: {problem}: give a mapping of keys to values")
    return raw


def validate(section: type[S], raw: Any, *, source: str, settings: Collection[str] = ()) -> S:
    """Validates a section.

    Args:
        settings: keys that `--set` has set: it is named for them, and not `source`.

    Raises:
        ValueError: with all problems on one line, each with its key, value and remedy.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            key = ".".join(str(part) for part in one["loc"])
            problems.setdefault(_origin(key, settings) or source, []).append(_problem(section, one))
        raise ValueError("; ".join(f"{origin}: {'; '.join(some)}" for origin, some in problems.items())) from None


def _origin(key: str, settings: Collection[str]) -> str | None:
    """Returns the `--set` that has set a key, or a part of its value; None for a key of the files."""
    is_it = [f"{key}.".startswith(f"{name}.") or key and name.startswith(f"{key}.") for name in settings]
    return next((f"--set {name}" for name, is_this in zip(settings, is_it, strict=True) if is_this), None)


def json_object(text: str, source: str) -> dict:
    """Parses a JSON object; ValueError if the text is none."""
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: {text[:80]!r} is not JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f'{source}: {text[:80]!r} is not a JSON object; give {{"sft": {{"epochs": 1}}}}')
    return value


def _problem(section: type[Section], error: dict) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(section, error["loc"][:-1])
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}")
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}" if key else str(error["ctx"]["error"])
    return f"{key} = {mask(str(error['input']))[:80]!r}: {error['msg']}"


def _known_keys(section: type[Section], location: tuple) -> list[str]:
    for part in location:
        if field := section.model_fields.get(str(part)):  # else the index of a list, or the key of a mapping
            section = _section_in(field.annotation)
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[Section]:
    """Returns the section in a field's type, which may be a list or a mapping of sections."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
