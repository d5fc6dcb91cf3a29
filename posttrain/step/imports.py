"""What a module can import of our own packages, read from their source: nothing is imported or run.

names of modules -> every module that they can reach, with the SHA-256 of its code

Every `import` counts, wherever it stands, together with the packages around what it names. Comments, docstrings and
layout are not code: they change no SHA-256.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import cache_from_source, resolve_name
from pathlib import Path

from pydantic import BaseModel

PACKAGES = ("posttrain", "validators")
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.\w+)+")  # of a module of ours
ROOT = Path(__file__).parents[2]  # the folder of our packages
# Parsing takes milliseconds and a step reaches fifty modules: what was read is kept beside Python's own bytecode.
KEPT = Path(cache_from_source(__file__)).with_suffix(".json")
MAX_KEPT = 1_000  # sources


class Source(BaseModel):
    """What the source of one module says."""

    sha256: str  # of its syntax tree
    names: list[str]  # modules that it imports; some may be names inside a module


def closure(modules: Iterable[str], root: Path = ROOT) -> dict[str, Source]:
    """These modules and all of ours that they can reach, by name. A name that is no module of ours is left out."""
    reached, waiting, kept = {}, list(modules), _read_kept()
    num_kept = len(kept)
    while waiting:
        for name in _with_packages(waiting.pop()):
            if name not in reached and (file := _file(name, root)):
                reached[name] = _source(file, name, kept)
                waiting += reached[name].names
    if len(kept) > num_kept:
        _write_kept(kept)
    return reached


def modules_of(root: Path = ROOT) -> list[str]:
    """Every module of ours."""
    files = (file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*.py"))
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


def _with_packages(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`: importing a module runs the packages around it first."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _file(name: str, root: Path) -> Path | None:
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    path = root.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _source(file: Path, name: str, kept: dict[str, dict]) -> Source:
    text = file.read_bytes()
    key = hashlib.sha256(b"\0".join([Path(__file__).read_bytes(), name.encode(), text])).hexdigest()
    if key not in kept:
        kept[key] = _parse(text, package=name if file.name == "__init__.py" else name.rpartition(".")[0]).model_dump()
    return Source.model_validate(kept[key])


def _parse(text: bytes, *, package: str) -> Source:
    lines, names = [], set()
    for part in _flat(ast.parse(text)):
        if isinstance(part, ast.AST):
            names.update(_names(part, package))
            part = type(part).__name__
        lines.append(part)
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Source(sha256=sha256, names=sorted(names))


def _flat(node: ast.AST) -> Iterator[ast.AST | str]:
    """The node and everything below it that says what the code does, in order. What is absent is left out.

    `ast.dump` would say the same, but in other words with each release of Python.
    """
    yield node
    for field in node._fields:
        value = getattr(node, field, None)
        if value is None or isinstance(value, ast.expr_context):
            continue
        for part in value if isinstance(value, list) else [value]:
            if not _is_docstring(part):
                yield field
                yield from _flat(part) if isinstance(part, ast.AST) else [repr(part)]
    yield "end"


def _is_docstring(node: object) -> bool:
    """Whether it is a string that stands alone: nothing but `--help` reads those of our packages."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names(node: ast.AST, package: str) -> list[str]:
    """The modules that the node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
        return [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return []


def _read_kept() -> dict[str, dict]:
    try:
        return json.loads(KEPT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_kept(kept: dict[str, dict]) -> None:
    """The newest, where the folder can be written. Of two processes at once one is kept, and the other reads again."""
    partial = KEPT.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(list(kept.items())[-MAX_KEPT:])), encoding="utf-8")
        partial.replace(KEPT)
