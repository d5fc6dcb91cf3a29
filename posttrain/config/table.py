"""The settings of all steps in one table, where nothing appears twice, and the digest by which a step knows its own.

settings of each step -> the table, compiled into preflight -> the settings again, in the image

What a step gets as a value stands in a run's Workflow about eight times. So only preflight gets settings: it writes
those of each step into the storage of the run, and the step gets their SHA-256. Defaults are not in the table. The
table's own digest is that of all settings, so an image with other defaults than the graph was compiled with is refused.
"""

import hashlib
import json
from typing import Any

from posttrain.config.line import step_of
from posttrain.config.parse import validate
from posttrain.config.section import Section
from posttrain.config.steps import StepSection

Values = dict[str, Any]

# Fields that several steps have with the same value.
SHARED = (
    "allowed_prefixes",
    "allowed_storage_roots",
    "commands",
    "data",
    "dpo",
    "evidence",
    "publish_root",
    "sft",
    "sweep",
    "validation",
)


def is_table(config: Values) -> bool:
    """Tells whether this is a table, and not the settings of one step."""
    return config.keys() == {"sha256", "shared", "steps"}


def reference(settings: Values) -> Values:
    """Returns what a step gets in place of its settings."""
    return {"sha256": sha256(text_of(settings))}


def referred(config: Values) -> str | None:
    """Returns the digest of the settings that a step gets in place of them; None if it gets the settings."""
    return config["sha256"] if config.keys() == {"sha256"} else None


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def text_of(settings: Values) -> str:
    """Returns settings as JSON, always the same for the same settings: Kubeflow makes floats of all numbers."""
    return json.dumps(_whole(settings), sort_keys=True, indent=2)


def table_of(settings: dict[str, Values]) -> Values:
    """Returns the table of these settings, by step."""
    sections = {step: step_of(step).section.model_validate(values) for step, values in settings.items()}
    shared: Values = {}
    for section in sections.values():
        for name, value in _dumped(section, exclude_defaults=True).items():
            if name in SHARED:
                shared[name] = shared.get(name, {}) | value if isinstance(value, dict) else value
    for section in sections.values():  # kfp could not compile a null over a shared value
        shared = {name: value for name, value in shared.items() if getattr(section, name, value) is not None}
    steps = {step: _own(section, shared) for step, section in sections.items()}
    if "commands" in shared:
        shared["commands"] = [_without_config(command, settings) for command in shared["commands"]]
    return {"sha256": _sha256_of_all(settings), "shared": shared, "steps": steps}


def settings_of(table: Values) -> dict[str, Values]:
    """Returns the settings in a table, by step.

    Raises:
        ValueError: they are not those of which the table was made.
    """
    shared, settings = dict(table["shared"]), {}
    for step, own in sorted(table["steps"].items(), key=lambda item: _runs_others(item[0])):
        if _runs_others(step):
            shared["commands"] = [{"config": settings.get(one["step"])} | one for one in table["shared"]["commands"]]
        settings[step] = _whole(_expanded(step, shared, own))
    if _sha256_of_all(settings) != table["sha256"]:
        raise ValueError(
            "--config: the graph's settings are not those that this version derives from them; compile it again, "
            "with the version of its images"
        )
    return settings


def _runs_others(step: str) -> bool:
    """Tells whether a step is trials, whose settings have those of the line's steps in them."""
    return "commands" in step_of(step).section.model_fields


def _dumped(section: StepSection, **options: bool) -> Values:
    """Returns a step's settings as they are compiled: kfp knows no null, and all nulls are defaults."""
    values = section.model_dump(mode="json", exclude_none=True, **options)
    roots = section.allowed_storage_roots
    return values | ({} if roots is None else {"allowed_storage_roots": roots})


def _own(section: StepSection, shared: Values) -> Values:
    """Returns what a step's settings have beside defaults and shared values, or instead of them."""
    values, changed = _dumped(section), _dumped(section, exclude_defaults=True)
    own = {name: value for name, value in changed.items() if name not in shared}
    for name in shared.keys() & type(section).model_fields.keys():
        taken = type(section).model_validate(values | _fitting(type(section), {name: shared[name]}))
        if getattr(taken, name) != getattr(section, name):
            own[name] = values[name]
    return own


def _expanded(step: str, shared: Values, own: Values) -> Values:
    section = step_of(step).section
    return _dumped(validate(section, _fitting(section, shared) | own, source=f"--config: {step}"))


def _fitting(section: type[Section], values: Values) -> Values:
    """Returns those of the values that a section has, and of a section in it those that this one has."""
    fitting = {}
    for name in values.keys() & section.model_fields.keys():
        inner, value = section.model_fields[name].annotation, values[name]
        is_section = isinstance(inner, type) and issubclass(inner, Section)
        fitting[name] = {key: value[key] for key in value if key in inner.model_fields} if is_section else value
    return fitting


def _without_config(command: Values, settings: dict[str, Values]) -> Values:
    """Returns a step that a trial runs without its settings, if the table has the same."""
    is_there = _whole(command["config"]) == _whole(settings.get(command["step"]))
    return {name: value for name, value in command.items() if name != "config" or not is_there}


def _sha256_of_all(settings: dict[str, Values]) -> str:
    return sha256(text_of(settings))


def _whole(value: Any) -> Any:
    """Returns a value in which a float that is a whole number is one."""
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
