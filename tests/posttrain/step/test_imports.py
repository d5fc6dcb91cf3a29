import ast
import shutil
from pathlib import Path

import pytest

from posttrain.step import imports
from posttrain.step.imports import closure

CODE = """
import posttrain.a
from posttrain import b
from posttrain.c import function
from . import d

def late():
    from posttrain.inside import e
    return "posttrain.inside.f"
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """Packages of empty modules, and one that reaches some of them."""
    for name in ("a", "b", "c", "d", "inside/e", "inside/f", "untouched"):
        write(tmp_path, name, "")
    for package in ("posttrain", "posttrain/inside", "validators"):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
    write(tmp_path, "main", CODE)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    file = root / "posttrain" / f"{name}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def sha256(root: Path, text: str) -> str:
    write(root, "changing", text)
    return closure(["posttrain.changing"], root)["posttrain.changing"].sha256


def test_every_import_counts_wherever_it_stands(root):
    reached = {"main", "a", "b", "c", "d", "inside", "inside.e"}
    assert set(closure(["posttrain.main"], root)) == {"posttrain", *(f"posttrain.{name}" for name in reached)}


def test_a_package_reaches_what_its_init_imports(root):
    (root / "posttrain" / "inside" / "__init__.py").write_text("from posttrain.inside.f import thing")
    assert "posttrain.inside.f" in closure(["posttrain.main"], root)
    assert closure(["posttrain.a"], root).keys() == {"posttrain", "posttrain.a"}


def test_what_is_no_module_of_ours_is_left_out(root):
    assert closure(["posttrain.gone", "numpy", "tests.imported", ""], root).keys() == {"posttrain"}


@pytest.mark.parametrize(
    "same",
    [
        "def f(a, *, b=1):\n    return a + b  # a comment\n",
        '"""Of the module."""\n\n\ndef f(a, *, b=1):\n    """Of the function."""\n    return (a + b)\n',
        "# moved down\n\n\ndef f(\n    a,\n    *,\n    b=1,\n):\n    return a + b",
    ],
)
def test_comments_docstrings_and_layout_are_no_code(root, same):
    assert sha256(root, same) == sha256(root, "def f(a, *, b=1):\n    return a + b\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(a, *, b=1):\n    return a + b", "def f(a, *, b=2):\n    return a + b"),
        ("def f(*, a, b=1): pass", "def f(*, a=1, b): pass"),
        ("{**a, 'k': b}", "{'k': a, **b}"),
        ("x = 'text'", "x = b'text'"),
        ("if a:\n    b\nc", "if a:\n    b\n    c"),
        ("assert a", "a"),
        ("x = f('''text''')", "x = f('''other text''')"),
    ],
)
def test_everything_else_is(root, one, other):
    assert sha256(root, one) != sha256(root, other)


def test_what_was_read_is_kept_and_read_again_when_it_is_damaged(root, tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "KEPT", tmp_path / "kept" / "sources.json")
    first = closure(["posttrain.main"], root)
    monkeypatch.setattr(imports, "_parse", None)
    assert closure(["posttrain.main"], root) == first
    monkeypatch.undo()
    monkeypatch.setattr(imports, "KEPT", tmp_path / "kept" / "sources.json")
    imports.KEPT.write_text('{"half')
    assert closure(["posttrain.main"], root) == first


def test_where_nothing_can_be_kept_all_is_read(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(imports, "KEPT", tmp_path / "file" / "sources.json")
    assert "posttrain.inside.e" in closure(["posttrain.main"], root)


def test_all_modules_are_known_by_their_names(root):
    shutil.rmtree(root / "validators")
    assert {"posttrain", "posttrain.inside", "posttrain.inside.e"} <= set(imports.modules_of(root))


# What is imported by a name that no source spells out: the configuration's (`code_of` reads it there), or code of the
# user's own, which makes a verdict that is not reused. launch imports a stage for its flags only: what trains is in
# another image, whose digest counts.
DYNAMIC = {"posttrain/nodes/launch.py", "posttrain/step/become.py", "validators/custom.py"}
IMPORTERS = {"import_module", "__import__", "run_module", "run_path", "exec", "eval", "spec_from_file_location"}


def test_no_module_is_imported_in_a_way_that_the_source_does_not_show():
    found = set()
    for file in ours():
        for node in ast.walk(ast.parse(file.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if getattr(called, "attr", getattr(called, "id", None)) in IMPORTERS and not is_model_eval(called):
                found.add(file.as_posix())
    assert found == DYNAMIC


def is_model_eval(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and called.attr == "eval"  # torch's


def test_no_module_is_started_by_a_name_in_the_source_but_by_its_own():
    """The table of steps starts nothing: the graph and the launcher read it. A trial's commands are configuration."""
    for file in (file for file in ours() if file != Path("posttrain/config/line.py")):
        own = ".".join(file.with_suffix("").parts)
        texts = [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        names = {text for text in texts if isinstance(text, str) and imports.NAME.fullmatch(text)}
        assert {name for name in names if Path(*name.split(".")).with_suffix(".py").is_file()} <= {own}, file


def test_docstrings_are_read_by_help_alone():
    for file in ours():
        tree = ast.parse(file.read_text())
        parsers = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "arser" in ast.unparse(node.func)]
        shown = {id(node) for call in parsers for node in ast.walk(call)}
        for node in ast.walk(tree):
            if "__doc__" in (getattr(node, "id", ""), getattr(node, "attr", "")):
                assert id(node) in shown, file


def ours() -> list[Path]:
    return [file for package in imports.PACKAGES for file in sorted(Path(package).rglob("*.py"))]
