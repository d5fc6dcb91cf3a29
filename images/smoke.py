"""Refuses an image that could not run its steps; the last step of its build.

the components' source, constraints.txt -> exit 0, or 1 with one line on stderr for each finding
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

ABSENT = {"cpu": ("kfp", "torch", "trl", "peft"), "train": ("kfp",)}
CPU_LIBRARIES = (
    "datasets",
    "google.cloud.storage",
    "jsonschema",
    "matplotlib.pyplot",
    "pyarrow.parquet",
    "s3fs",
    "statsmodels.api",
    "transformers",
)
TRAINERS = "from trl import DPOTrainer, SFTTrainer; import accelerate, peft, torch, transformers"
OWN = {"posttrain", "unsloth", "unsloth-zoo", "tyro", "cut-cross-entropy"}  # pinned where they are installed
PINNED_BY_TORCH = ("cuda-", "nvidia-", "triton")  # which are part of its CUDA build alone


def stages(components: Path) -> dict[str, str]:
    """Module -> image, out of every `container("<module>", "<image>", ...)` in the components' source.

    A module that runs in both images is one of the cpu image.
    """
    found: dict[str, str] = {}
    for file in sorted(components.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "container":
                module, image = (argument.value for argument in node.args)
                found[module] = image if found.get(module) != "cpu" else "cpu"
    if not found:
        raise ValueError(f"{components}: no component names a module: give the folder of the components")
    return found


def check_absent(image: str) -> Iterator[str]:
    for name in ABSENT[image]:
        if find_spec(name):
            yield f"{name} is installed, and the {image} image must not have it: see the extras in pyproject.toml"


def check_commands(image: str, components: Path) -> Iterator[str]:
    """The train image has every stage; the cpu image those that need no torch."""
    for module, needs in stages(components).items():
        if image == "train" or needs == image:
            yield from check_python(["-m", module, "--help"])


def check_libraries(image: str) -> Iterator[str]:
    yield from check_python(["-c", f"import {', '.join(CPU_LIBRARIES)}"])
    if image == "train":
        yield from check_python(["-c", TRAINERS])
        if find_spec("unsloth"):  # it patches the others, so it must be able to come first
            yield from check_python(["-c", f"import unsloth; {TRAINERS}"])


def check_python(arguments: list[str]) -> Iterator[str]:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if result.returncode:
        cause = (result.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        yield f"python {' '.join(arguments)}: exit {result.returncode}: {cause}"


def check_locked(constraints: Path, installed: dict[str, str]) -> Iterator[str]:
    """Every version is a tested one. `installed`: name -> version; torch's `+cpu` is the build, not the version."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    tested = {normalised(name): version for name, version in tested.items()}
    for name, version in installed.items():
        if name in OWN or name.startswith(PINNED_BY_TORCH):
            continue
        if tested.get(name) != version.partition("+")[0]:
            yield f"{name} {version} is installed, {constraints.name} has {tested.get(name)}: run make lock"


def installed_versions() -> dict[str, str]:
    return {normalised(found.metadata["Name"]): found.version for found in distributions()}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_user() -> Iterator[str]:
    """The image's user is not root, may write its caches, and not the code."""
    if os.getuid() == 0:
        yield "the image runs as root: set USER"
    if os.access(sys.prefix, os.W_OK):
        yield f"{sys.prefix} is writable: copy it as root"
    for variable in ("HOME", "HF_HOME", "MPLCONFIGDIR"):
        folder = Path(os.environ.get(variable, ""))
        nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(nearest, os.W_OK):
            yield f"{variable}={folder} cannot be written: put it below /cache"


def findings(image: str, components: Path, constraints: Path) -> Iterator[str]:
    yield from check_user()
    yield from check_absent(image)
    yield from check_locked(constraints, installed_versions())
    yield from check_libraries(image)
    yield from check_commands(image, components)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True, choices=sorted(ABSENT))
    parser.add_argument("--components", required=True, type=Path, help="folder of the components' source")
    parser.add_argument("--constraints", required=True, type=Path, help="the versions that were tested together")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    found = list(findings(args.image, args.components, args.constraints))
    for finding in found:
        print(f"smoke: {finding}", file=sys.stderr)
    print(f"smoke: {args.image}: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
