"""The code that a step's result depends on, and the fingerprint of that, its configuration and its inputs."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from posttrain.step import imports
from posttrain.storage import hashing

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "unsloth")  # another release may train differently
ENGINES = {"vllm", "gguf", "xllamacpp"}  # another release may write, or answer, differently, where a step imports it
ROWS = ".jsonl"  # of general skills: a package has them in a folder
PAGES = "posttrain.pages"  # this room shows results and decides none: a curve in another colour needs no new training


class Code(BaseModel):
    """The code that ran. Other source, or another release of a library that trains, may give another result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    posttrain: str  # release of this package
    source: str  # SHA-256 of the modules of ours that the step can import, and of the rows that they ask
    libraries: dict[str, str]  # name -> release; `absent` where it is not installed
    # The step's module; empty in records from when `source` covered all modules.
    module: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(exclude_defaults=True), sort_keys=True).encode()).hexdigest()


def fingerprint(step: str, *, config: dict[str, Any], inputs: dict[str, str], code: Code) -> str:
    """Returns the SHA-256 of all that a result depends on: step, configuration, input digests, source, libraries."""
    parts = {"step": step, "config": config, "inputs": inputs, "code": code.sha256}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_of(module: str, *, config: dict[str, Any]) -> Code:
    """Returns the code of a step as installed here.

    It covers every module that the step can import and, where a step starts other modules, those that its configuration
    names. A module from outside our packages may use any of ours, so all of them count for it.
    """
    started = frozenset(text for text in _strings(config) if imports.NAME.fullmatch(text))
    return _code(module, started)


@cache
def _code(module: str, started: frozenset[str]) -> Code:
    names = {name.partition(".")[0] for source in _reached(module, started).values() for name in source.names}
    return Code(
        posttrain=_release("posttrain"),
        source=source_digest(module, started),
        libraries={name: _release(name) for name in (*LIBRARIES, *sorted(ENGINES & names))},
        module=module,
    )


def source_digest(module: str, started: frozenset[str] = frozenset(), root: Path = imports.ROOT) -> str:
    """Returns the SHA-256 of the sorted `<name> <SHA-256>` lines of all modules that count for a step, and of the rows
    below their packages, which gates ask.
    """
    reached = _reached(module, started, root)
    lines = [f"{name} {source.sha256}" for name, source in sorted(reached.items()) if not is_page(name)]
    folders = [root.joinpath(*name.split(".")) for name in reached]
    rows = {file for folder in folders for file in folder.glob(f"*/*{ROWS}") if (folder / "__init__.py").is_file()}
    lines += [f"{file.relative_to(root).as_posix()} {hashing.sha256(file)}" for file in sorted(rows)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _reached(module: str, started: frozenset[str], root: Path = imports.ROOT) -> dict[str, imports.Source]:
    """Returns the modules that a step can import; all of ours for one from outside our packages."""
    reached = imports.closure([module, *started], root)
    return reached if module in reached else imports.closure(imports.modules_of(root), root)


def is_page(module: str) -> bool:
    return f"{module}.".startswith(f"{PAGES}.")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
