"""Writes docs/configuration.md: every setting with its type, default, meaning, and the steps that read it.

sections of posttrain.config, the compiled graph that samples pairs too -> docs/configuration.md

python -m docs.reference    write it again, after a change of a setting, its default or its comment
"""

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from pipelines.package import Package, Task
from pipelines.steps import step_names
from posttrain.config import OVERRIDABLE, PipelineConfig, Section
from posttrain.config.line import is_gate, step_of
from posttrain.config.sweep import SweepConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
OF_THE_GRAPH = ("stages.", "placement.")  # its shape and its placement, whichever steps receive them too
PRAGMA = re.compile(r"\s*# (fmt|noqa|type): .*")  # speaks to a tool
SAME_AS = {"placement.gpu": "placement.cpu"}  # only defaults that differ have rows
HEAD = """# Configuration

<!-- Written by `make golden` from the comments in posttrain/config/. Edit those, not this page. -->

The settings of a pipeline live in `configs/pipeline_config.yaml`; `sft_config.yaml` and `dpo_config.yaml` beside it
hold the training settings of the two stages. Three things can be layered on top, each overriding what comes before it:

1. further files after `--config`: `--config configs/pipeline_config.yaml configs/clusters/eks.yaml`;
2. `--set section.key=value`, for `compile.py` and for `run_pipeline.py`;
3. `--overrides '{"sft": {"epochs": 2}}'`, for a single run, and only for `sft` and `dpo`.

Unknown keys, values out of range, NaN and infinity are refused, with the file, the key, the value and a remedy.

**Read by** lists the steps of the full pipeline, `stages.pairs` on, that receive a key. When a key changes, those steps
do their work again; the others are reused from earlier runs as long as their inputs stay the same. Keys read by *the
graph* decide its shape and where its steps run. With only one training stage some gates have other names:
`check_sft_data` or `check_preference_data` takes the place of `check_data`, and without DPO `check_safety` that of
`check_alignment`.

**Fixed at** says when a value is settled. *compile*: the value is part of the compiled graph, and starting a run
cannot change it. *run*: the value is a parameter of each run. `run_pipeline.py` compiles the graph anew for every
run, so there `--set` reaches every key.
"""
NOTES = {
    "placement": "`placement.gpu`, and each step under `placement.steps`, have the keys of `placement.cpu`; only "
    "differing defaults are listed. Local runs ignore this section.\n"
}
SWEEP_HEAD = """## The sweep file

These are the keys of `configs/sweep_config.yaml`, the file that `--sweep` takes; all are fixed at compile time.
[Sweeps](sweeps.md) explains how they work together.
"""


@dataclass(frozen=True)
class Setting:
    """One key of a section."""

    key: str  # dotted, from the top of the file
    section: type[Section]
    field: FieldInfo
    default: Any
    schema: dict[str, Any]  # JSON schema of its value

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


# --- the settings -----------------------------------------------------------------------------------------------------


def settings(section: type[Section], prefix: str = "", default: Section | None = None) -> Iterator[Setting]:
    """Yields the keys of a section; those of a section inside it follow under their dotted names."""
    schemas = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        value = getattr(default, name) if default else field.get_default(call_default_factory=True)
        if isinstance(value, Section):
            yield from settings(type(value), f"{prefix}{name}.", value)
        else:
            yield Setting(prefix + name, section, field, value, schemas[name])


def entries(section: type[Section]) -> dict[str, type[Section]]:
    """Returns the sections that stand in lists, mappings or optional keys of a section, by the key that holds them.

    One that also stands directly in a key has its rows there.
    """
    fields = section.model_fields.items()
    direct = [part for _, field in fields if isinstance(field.default, Section) for part in type(field.default).__mro__]
    nested = {}
    for name, field in fields:
        for inner in sections_in(field.annotation) if not isinstance(field.default, Section) else []:
            nested |= ({} if inner in direct else {name: inner}) | entries(inner)
    return nested


def sections_in(annotation: Any) -> list[type[Section]]:
    """Returns the sections that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


# --- what the source says ---------------------------------------------------------------------------------------------


def description(setting: Setting) -> str:
    """Returns the comment on a field; a subclass that only changes a default keeps the comment of its base class.

    Raises:
        ValueError: no class has a comment on it.
    """
    for section in setting.section.__mro__:
        if issubclass(section, Section) and (comment := comments(section).get(setting.name)):
            return comment
    raise ValueError(f"{setting.section.__name__}.{setting.name} has no comment: say what it is, with its unit")


@cache
def comments(section: type[Section]) -> dict[str, str]:
    """Returns the comment of each field that a class declares: behind it, or on the lines directly above."""
    source = inspect.getsource(section)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: PRAGMA.sub("", token.string) for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line in by_line if source.splitlines()[line - 1].lstrip().startswith("#")}
    result = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = [by_line[line] for line in range(node.lineno, node.end_lineno + 1) if by_line.get(line)]
            lines = behind or above(node.lineno, by_line, alone)
            result[node.target.id] = " ".join(text.removeprefix("# ") for text in lines)
    return result


def above(line: int, by_line: dict[int, str], alone: set[int]) -> list[str]:
    """Returns the block of comments that ends on the line before."""
    block = []
    while (line := line - 1) in alone:
        block.insert(0, by_line[line])
    return block


# --- who reads a key --------------------------------------------------------------------------------------------------


@cache
def package() -> Package:
    return Package.read(ROOT / "tests" / "pipelines" / "golden" / "pairs.yaml")


def keys_of(step: Task) -> set[str]:
    """Returns the keys that a step receives: those of its section, and the run parameters among its inputs."""
    section = {setting.key.removeprefix("training.") for setting in settings(step_of(step.name).section)}
    parameters = [value.get("componentInputParameter", "") for value in step.given("parameters").values()]
    return section | {name.removeprefix("pipelinechannel--") for name in parameters}


@cache
def readers() -> dict[str, set[str]]:
    """Returns the keys that each step of the line receives."""
    steps = {step.name: step for step in package().steps}
    return {name: keys_of(steps[name]) for name in line()}


def line() -> list[str]:
    """Returns the steps of the full line with sampled pairs, in order."""
    config = PipelineConfig(stages={"pairs": {"enabled": True}}, validation={"answer_match": "exact"})
    return [*step_names(config), "report_run"]


def readers_of(key: str) -> str:
    """Returns the readers of a key, as a cell of the table."""
    names = [name for name, keys in readers().items() if key in keys]
    gates = [name for name in line() if is_gate(name)]
    if key.startswith(OF_THE_GRAPH) or not names:
        return "the graph"
    if len(names) == len(line()):
        return "every step"
    if set(gates) <= set(names):
        names = [*(name for name in names if name not in gates), "every gate"]
    return ", ".join(names)


def fixed_at(key: str) -> str:
    """Returns when a key is settled, as a cell of the table."""
    if key in package().parameters:
        return "run"
    return "compile; run, by `overrides`" if key.startswith(tuple(f"{name}." for name in OVERRIDABLE)) else "compile"


# --- the page ---------------------------------------------------------------------------------------------------------


def type_of(schema: dict[str, Any]) -> str:
    """Returns a JSON schema in words: `integer ≥ 1`, `list of text`, or the words that are allowed."""
    if "anyOf" in schema:
        parts = [type_of(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if words := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{json.dumps(word).strip(chr(34))}`" for word in words)
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return NAMES.get(schema.get("type"), "mapping" if "$ref" in schema else "any value") + range_of(schema)


NAMES = {
    "string": "text", "boolean": "`true`, `false`", "integer": "integer", "number": "number", "object": "mapping",
}  # fmt: skip
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def range_of(schema: dict[str, Any]) -> str:
    """Returns the bounds of a number: ` > 0, < 1`."""
    bounds = [f"{sign} {schema[name]:g}" for name, sign in BOUNDS.items() if name in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def row(setting: Setting, *, with_readers: bool = True) -> str:
    """Returns a line of a table."""
    default = "required" if setting.field.is_required() else f"`{json.dumps(setting.default)}`"
    cells = [f"`{setting.key}`", type_of(setting.schema), default, description(setting)]
    cells += [readers_of(setting.key), fixed_at(setting.key)] if with_readers else []
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace('<', '&lt;') for cell in cells)} |"


def table(rows: list[Setting], *, with_readers: bool = True) -> str:
    """Returns a Markdown table."""
    heads = ["key", "type", "default", "meaning", *(["read by", "fixed at"] if with_readers else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(row(setting, with_readers=with_readers) for setting in rows)]) + "\n"


def parts(section: type[Section], rows: list[Setting], *, prefix: str) -> dict[type[Section], list[Setting]]:
    """Returns the rows of a section; of one that is composed of several, by the part that declares them."""
    if len(section.__bases__) == 1:
        return {section: rows}
    result: dict[type[Section], list[Setting]] = {part: [] for part in section.__mro__ if issubclass(part, Section)}
    for setting in rows:
        name = setting.key.removeprefix(prefix).partition(".")[0]
        declaring = [part for part in result if name in part.__dict__.get("__annotations__", {})]
        result[declaring[-1]].append(setting)
    return {part: declared for part, declared in result.items() if declared}


def rows_of(section: type[Section], *, prefix: str = "", default: Section | None = None) -> list[Setting]:
    """Returns the rows of a section; of one inside it that is like another, those whose defaults differ."""
    rows = list(settings(section, prefix, default))
    defaults = {setting.key: setting.default for setting in rows}

    def is_shown(key: str) -> bool:
        others = [key.replace(name, other, 1) for name, other in SAME_AS.items() if key.startswith(f"{name}.")]
        return not any(defaults[other] == defaults[key] for other in others)

    return [setting for setting in rows if is_shown(setting.key)]


def section_text(name: str, section: type[Section], default: Section) -> str:
    """Returns the chapter of a section that stands at the top of the file."""
    blocks = [f"## {name}\n", *([NOTES[name]] if name in NOTES else [])]
    rows = rows_of(section, prefix=f"{name}.", default=default)
    for part, declared in parts(section, rows, prefix=f"{name}.").items():
        blocks += [f"{inspect.getdoc(part)}\n", table(declared)]
    return "\n".join([*blocks, *entries_text(section)])


def entries_text(section: type[Section]) -> list[str]:
    """Returns the tables of what stands in lists and mappings of a section."""
    blocks = []
    for key, inner in entries(section).items():
        blocks += [f"### Keys under `{key}`\n", f"{inspect.getdoc(inner)}\n"]
        blocks.append(table(rows_of(inner), with_readers=False))
    return blocks


def text() -> str:
    """Returns the page."""
    config = PipelineConfig()
    chapters = {name: value for name, value in config if isinstance(value, Section)}
    top = [setting for setting in settings(PipelineConfig, default=config) if "." not in setting.key]
    blocks = [
        *entries_text(PipelineConfig),
        *(section_text(name, type(value), value) for name, value in chapters.items()),
    ]
    sweep = [table(rows_of(SweepConfig), with_readers=False), *entries_text(SweepConfig)]
    return "\n".join([HEAD, "## The pipeline\n", table(top), *blocks, SWEEP_HEAD, *sweep])


def main() -> None:
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
