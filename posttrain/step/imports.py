"""Finds the modules of our packages that a module can import, by reading source: nothing is imported or run.

names of modules -> every module that they can reach, with the SHA-256 of its code

Every `import` statement counts, also inside functions, and so do the packages around the module that it names.
Comments, docstrings and layout are not code: they change no SHA-256.
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
# Parsing a module takes milliseconds, and a step reaches fifty: the results are cached beside Python's own bytecode.
KEPT = Path(cache_from_source(__file__)).with_suffix(".json")
MAX_KEPT = 1_000  # sources


class Source(BaseModel):
    """The source of one module, as far as a fingerprint needs it."""

    sha256: str  # of its syntax tree
    names: list[str]  # modules that it imports; some may be names inside a module


def closure(modules: Iterable[str], root: Path = ROOT) -> dict[str, Source]:
    """Returns these modules and all that they can reach, by name. Names that are no module of ours are left out."""
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
    """Lists every module of our packages."""
    files = (file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*.py"))
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


def _with_packages(name: str) -> list[str]:
    """Returns `a`, `a.b` and `a.b.c` for `a.b.c`: importing a module runs the packages around it first."""
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
    """Yields the node and everything below it that decides what the code does, in order.

    `ast.dump` is not used because its output changes between releases of Python.
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
    """Returns whether it is a string on its own. Only `--help` reads docstrings of our packages."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names(node: ast.AST, package: str) -> list[str]:
    """Lists the names that the node imports."""
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
    """Writes the cache if the folder is writable. If two processes write at once, the last one wins."""
    partial = KEPT.with_suffix(f".{os.getpid()}.partial")
    with suppress(OSError):
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(list(kept.items())[-MAX_KEPT:])), encoding="utf-8")
        partial.replace(KEPT)
