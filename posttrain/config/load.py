"""Reads configurations: YAML files, `--set`, a step's `--config`, and a run's overrides."""

import json
import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from posttrain.config.masking import mask
from posttrain.config.pipeline import PipelineConfig, _stages_from_list
from posttrain.config.section import Section
from posttrain.config.stages import DpoConfig, SftConfig

MAX_RUN_PARAMETERS_BYTES = 8_000  # the backend refuses 10,000 bytes for all run parameters together
OTHER_NAMES = {"output_root": "storage_root"}
OVERRIDABLE = ("sft", "dpo")  # limits, placement, prefixes and data splits are fixed when the graph is compiled
S = TypeVar("S", bound=Section)

logger = logging.getLogger(__name__)


def load_config(paths: str | Path | Sequence[str | Path], settings: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """Reads pipeline configurations, each on top of the one before, and settings `section.key=value` on top of all.

    The stage files that they name lie below them.

    Raises:
        ValueError: a file is missing or not a YAML mapping, a key is unknown, a value is out of range.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    source, folders = ", ".join(map(str, paths)), [path.parent for path in paths]
    raw: dict = {}
    for path in paths:
        raw = merged(raw, _read_pipeline(path))
    for setting in settings:
        _set(raw, setting)
    for name in ("sft", "dpo"):
        stage = (raw.get("stages") or {}).get(name) or {}
        if isinstance(stage, dict) and stage.get("config_path"):
            file = _find(stage["config_path"], folders, key=f"stages.{name}.config_path")
            section = _read_yaml(file)
            _validate({"sft": SftConfig, "dpo": DpoConfig}[name], section, source=str(file))
            raw[name] = merged(section, raw.get(name) or {})
    if isinstance(merge := (raw.get("stages") or {}).get("merge"), dict) and merge.get("config_path"):
        logger.warning("%s: stages.merge.config_path is ignored: merging has no settings of its own", source)
    _embed_schema(raw, folders)
    return _validate(PipelineConfig, raw, source=source)


def read_section(section: type[S], path: str | Path) -> S:
    """A section that stands in a YAML file of its own.

    Raises:
        ValueError: as `load_config`.
    """
    return _validate(section, _read_yaml(Path(path)), source=str(path))


def parse_step(step: type[S], config: str, overrides: str = "{}") -> S:
    """The configuration of one step inside its container: the compiled JSON with the run's overrides on top.

    Every step checks all overrides, its own or not, so that a wrong one ends the run before anything expensive starts.
    """
    compiled = _json_object(config, "--config")
    changes = check_overrides(_json_object(overrides, "overrides"))
    own = {name: section for name, section in changes.items() if name in step.model_fields}
    return _validate(step, merged(compiled, own), source="--config")


def check_overrides(overrides: dict) -> dict:
    """The overrides of a run as they came, once they are known to be valid. Only `sft` and `dpo` may be overridden."""
    for name, section in overrides.items():
        if name not in OVERRIDABLE:
            raise ValueError(
                f"overrides: {name!r} cannot be changed by a run: only {' and '.join(OVERRIDABLE)} can; "
                "change the configuration and compile the graph again"
            )
        _validate({"sft": SftConfig, "dpo": DpoConfig}[name], section, source=f"overrides.{name}")
    return overrides


def check_run_parameters(parameters: dict[str, Any]) -> None:
    """Refuses run-time values that the backend would expand or cut.

    Raises:
        ValueError: a value holds `{{`, or all values together are too large.
    """
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if "{{" in text:
            raise ValueError(f"{name}: {text[:80]!r} holds '{{{{', which the backend would expand: remove it")
    size = len(json.dumps(parameters).encode())
    if size > MAX_RUN_PARAMETERS_BYTES:
        raise ValueError(
            f"run parameters are {size} bytes, at most {MAX_RUN_PARAMETERS_BYTES} are safe: "
            "move settings from overrides into the configuration"
        )


def merged(base: dict, changes: dict) -> dict:
    """`base` with `changes` on top, section by section; lists and scalars are replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def _read_pipeline(path: Path) -> dict:
    raw = _read_yaml(path)
    for other, name in OTHER_NAMES.items():
        if other in raw and name in raw:
            raise ValueError(f"{path}: {other} and {name} are one setting: remove one of them")
    raw = {OTHER_NAMES.get(key, key): value for key, value in raw.items()}
    if isinstance(raw.get("stages"), list):
        raw["stages"] = _stages_from_list(raw["stages"], file=str(path))
    return raw


def _read_yaml(path: Path) -> dict:
    import yaml  # only where the files are: a step is given JSON

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}: give the path of a readable YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: holds {type(raw).__name__}, not a mapping of keys to values")
    return raw


def _find(name: str, folders: list[Path], *, key: str) -> Path:
    candidates = [folder / name for folder in folders]
    for candidate in (*candidates, Path(name)):
        if candidate.is_file():
            return candidate
    beside = ", ".join(map(str, dict.fromkeys(candidates)))
    raise ValueError(f"{key}: {name!r} is neither beside the configuration ({beside}) nor in {Path.cwd()}")


def _embed_schema(raw: dict, folders: list[Path]) -> None:
    """Puts the JSON Schema that `validation.output_format.schema_path` names into the configuration itself."""
    validation = raw.get("validation")
    output_format = validation.get("output_format") if isinstance(validation, dict) else None
    if not isinstance(output_format, dict) or not output_format.get("schema_path"):
        return
    file = _find(output_format["schema_path"], folders, key="validation.output_format.schema_path")
    try:
        output_format["json_schema"] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON Schema: {error}") from error


def _set(raw: dict, setting: str) -> None:
    import yaml

    path, equals, value = setting.partition("=")
    *parents, key = OTHER_NAMES.get(path, path).split(".")
    if not equals or not all((*parents, key)):
        raise ValueError(f"--set {setting!r}: give section.key=value")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise ValueError(f"--set {setting!r}: {name!r} is a value, not a section")
    try:
        raw[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {setting!r}: {value!r} is not a YAML value") from error


def _json_object(text: str, source: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source}: {text[:80]!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {text[:80]!r} is not a JSON object")
    return value


def _validate(section: type[S], raw: Any, *, source: str) -> S:
    """`section.model_validate` with every problem on one line, each with its key, value and remedy."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ValueError(f"{source}: {'; '.join(_problem(section, e) for e in error.errors())}") from None


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
    """The section that a field holds, itself or in a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
