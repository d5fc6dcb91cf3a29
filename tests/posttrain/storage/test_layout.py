"""Where things lie below a storage root: said in one place."""

import ast
from pathlib import Path

import pytest

from posttrain.storage import layout

NAMES = {layout.RUNS, layout.RESULTS, layout.CHECKPOINTS, layout.PUBLISHED, layout.SWEEPS}


def test_each_kind_of_thing_has_its_own_folder():
    kinds = (layout.runs, layout.results, layout.checkpoints, layout.published, layout.sweeps)
    assert {kind("gs://bucket/root") for kind in kinds} == {f"gs://bucket/root/{name}" for name in NAMES}
    assert layout.runs(Path("store"), "r1", "report.html") == "store/runs/r1/report.html"
    with pytest.raises(ValueError, match=r"\.\./other"):
        layout.results("store", "../other")


@pytest.mark.parametrize("room", ["posttrain", "validators", "pipelines", "runner"])
def test_nobody_else_spells_these_folders(room):
    joined = [
        f"{file}:{part.lineno}"
        for file in Path(room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for part in _parts_of_addresses(node)
        if part.value in NAMES and not _is_local(node)
    ]
    assert joined == []


def _parts_of_addresses(node: ast.AST) -> list[ast.Constant]:
    """The texts that a `join` or a `/` puts together."""
    if isinstance(node, ast.Call) and "join" in ast.unparse(node.func):
        parts = node.args
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        parts = [node.left, node.right]
    else:
        parts = []
    return [part for part in parts if isinstance(part, ast.Constant)]


def _is_local(node: ast.AST) -> bool:
    """A trial's own temporary folder is not below the storage root."""
    return ast.unparse(node).startswith("trial.folder")
