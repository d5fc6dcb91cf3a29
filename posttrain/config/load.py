"""Loads the configuration of a pipeline: YAML files on top of each other, `--set`, and the files that they name."""

import logging
from collections.abc import Sequence
from pathlib import Path

from posttrain.config.documents import parse_json, parse_yaml
from posttrain.config.parse import OVERRIDABLE, merged, read_yaml, validate
from posttrain.config.pipeline import PipelineConfig
from posttrain.config.stages import PairsConfig

WITH_A_FILE = OVERRIDABLE | {"pairs": PairsConfig}  # stages that have settings of their own
OTHER_NAMES = {"output_root": "storage_root"}

logger = logging.getLogger(__name__)


def load_config(paths: str | Path | Sequence[str | Path], settings: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """Reads pipeline configurations, later files override earlier ones, and settings `section.key=value` all files.

    The files that `stages.*.config_path` names come below them.

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
    for name, stage in _stages_with_a_file(raw):
        if name not in WITH_A_FILE:
            logger.warning("%s: stages.%s.config_path is ignored: the stage has no settings of its own", source, name)
            continue
        file = _find(stage["config_path"], folders, key=f"stages.{name}.config_path")
        section = read_yaml(file)
        validate(WITH_A_FILE[name], section, source=str(file))
        raw |= merged({name: section}, {name: raw.get(name) or {}})
    _embed_schema(raw, folders)
    keys = [OTHER_NAMES.get(key, key) for key in (setting.partition("=")[0] for setting in settings)]
    return validate(PipelineConfig, raw, source=source, settings=keys)


def _stages_with_a_file(raw: dict) -> list[tuple[str, dict]]:
    stages = raw.get("stages")
    stages = stages.items() if isinstance(stages, dict) else ()  # anything else is refused with all other problems
    return [(name, stage) for name, stage in stages if isinstance(stage, dict) and stage.get("config_path")]


def _read_pipeline(path: Path) -> dict:
    raw = read_yaml(path)
    for other, name in OTHER_NAMES.items():
        if other in raw and name in raw:
            raise ValueError(f"{path}: {other} and {name} are one setting: remove one of them")
    raw = {OTHER_NAMES.get(key, key): value for key, value in raw.items()}
    if isinstance(raw.get("stages"), list):
        raw["stages"] = _by_name(raw["stages"], file=path)
    return raw


def _by_name(stages: list, *, file: Path) -> dict[str, dict]:
    """Turns a list of stages, each with its name, into a mapping, so that another file can change one of them."""
    by_name = {}
    for at, stage in enumerate(stages):
        if not isinstance(stage, dict) or "name" not in stage:
            raise ValueError(
                f"{file}: stages[{at}] is {stage!r}: give a mapping with a name (sft, merge, pairs or dpo)"
            )
        stage = dict(stage)
        name = stage.pop("name")
        if name in by_name:
            raise ValueError(f"{file}: stages names {name!r} twice: remove one")
        by_name[name] = stage
    return by_name


def _find(name: str, folders: list[Path], *, key: str) -> Path:
    """Looks for a file beside each of the configurations, then in the working directory."""
    candidates = [folder / name for folder in folders]
    for candidate in (*candidates, Path(name)):
        if candidate.is_file():
            return candidate
    beside = ", ".join(map(str, dict.fromkeys(candidates)))
    raise ValueError(f"{key}: {name!r} is neither beside the configuration ({beside}) nor in {Path.cwd()}")


def _embed_schema(raw: dict, folders: list[Path]) -> None:
    """Reads the JSON Schema that `validation.output_format.schema_path` names into the configuration."""
    validation = raw.get("validation")
    output_format = validation.get("output_format") if isinstance(validation, dict) else None
    if not isinstance(output_format, dict) or not output_format.get("schema_path"):
        return
    file = _find(output_format["schema_path"], folders, key="validation.output_format.schema_path")
    try:
        output_format["json_schema"] = parse_json(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON Schema: {error}") from error


def _set(raw: dict, setting: str) -> None:
    path, equals, value = setting.partition("=")
    *parents, key = OTHER_NAMES.get(path, path).split(".")
    if not equals or not all((*parents, key)):
        raise ValueError(f"--set {setting!r}: give section.key=value")
    for name in parents:
        raw = raw.setdefault(name, {})
        if not isinstance(raw, dict):
            raise ValueError(f"--set {setting!r}: {name!r} is a value, not a section")
    try:
        raw[key] = parse_yaml(value)
    except ValueError as error:
        raise ValueError(f"--set {setting!r}: {error}") from error
