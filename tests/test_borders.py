"""Tests who may import whom: the graph has no torch, the images have no kfp, and posttrain never imports validators."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

IMAGE_SIDE = sorted(
    path.with_suffix("").as_posix().replace("/", ".")
    for top in ("posttrain", "validators")
    for path in Path(top).rglob("*.py")
    if path.stem != "__init__"
)
TRAINING_LIBRARIES = ["torch", "transformers", "trl", "peft", "datasets", "unsloth"]


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def without(*modules: str) -> str:
    return f"import sys; sys.modules.update(dict.fromkeys({list(modules)!r})); "


def test_the_graph_compiles_without_torch(tmp_path):
    code = (
        without(*TRAINING_LIBRARIES)
        + f"import compile; sys.exit(compile.main(['--output', {str(tmp_path / 'g.yaml')!r}]))"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_the_graph_is_run_in_docker_without_torch():
    code = (
        "import run_pipeline; arguments = ['--config', 'gone.yaml', '--runner', 'docker']; "
        "sys.exit(run_pipeline.main(arguments) != 1)"
    )
    result = run(without("torch", "transformers", "trl", "peft", "unsloth", "scipy", "statsmodels") + code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("error: gone.yaml")


def test_the_image_side_imports_without_kfp_and_without_torch():
    result = run(without("kfp", *TRAINING_LIBRARIES) + f"import {', '.join(IMAGE_SIDE)}")
    assert result.returncode == 0, result.stderr


def test_posttrain_never_imports_validators_nor_the_graph():
    for path in Path("posttrain").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {module.split(".")[0] for module in imported} & {
            "validators",
            "pipelines",
            "components",
            "runner",
            "kfp",
        }, path


def test_the_graph_imports_nothing_of_posttrain_but_its_configuration():
    for file in [*Path("pipelines").glob("*.py"), *Path("components").glob("*.py"), Path("compile.py")]:
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        rooms = ("posttrain", "runner")
        whole = {f"{node.module}.{alias.name}" for node in nodes if node.module in rooms for alias in node.names}
        imports = whole | {node.module for node in nodes if node.module not in rooms}
        ours = {name for name in imports if name.startswith(("posttrain", "validators", "runner"))}
        assert {".".join(name.split(".")[:2]) for name in ours} <= {"posttrain.config", "runner.streams"}, file


@pytest.mark.parametrize("module", ["posttrain.sft", "posttrain.dpo", "validators.sft", "validators.alignment"])
def test_help_needs_no_torch(module):
    result = run(without("torch") + f"import {module} as m; m.build_parser().print_help()")
    assert result.returncode == 0, result.stderr
    assert "--executor-input" in result.stdout


def test_submitting_needs_no_torch():
    result = run(without(*TRAINING_LIBRARIES) + "import run_pipeline as r; r.build_parser().print_help()")
    assert result.returncode == 0, result.stderr
    assert "--endpoint" in result.stdout


def test_a_storage_client_is_imported_where_it_is_needed():
    result = run(without("google.cloud", "s3fs", "requests") + "import posttrain.storage, posttrain.step.frame")
    assert result.returncode == 0, result.stderr
