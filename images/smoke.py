"""Refuses an image that could not run its steps; the last step of its build.

the components' source, the lock files -> exit 0, or 1 with one line on stderr for each finding
"""

import argparse
import ast
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.utils import canonicalize_name

ABSENT = {"cpu": ("kfp", "torch", "transformers", "trl", "peft"), "train": ("kfp",)}
CPU_LIBRARIES = "datasets, google.cloud.storage, huggingface_hub, jinja2, pyarrow.parquet, s3fs, tokenizers"
TRAIN_LIBRARIES = "accelerate, jsonschema, matplotlib.figure, peft, scipy.stats, statsmodels.stats.proportion, torch"
TRAINERS = f"from trl import DPOTrainer, SFTTrainer; import transformers, {TRAIN_LIBRARIES}"


def stages(components: Path) -> dict[str, str]:
    """Module -> image, out of every `container("<module>", "<image>", ...)` in the components' source.

    A module that runs in both images is one of the cpu image.
    """
    images: dict[str, str] = {}
    for file in sorted(components.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "container":
                module, image = (argument.value for argument in node.args)
                images[module] = image if images.get(module) != "cpu" else "cpu"
    if not images:
        raise ValueError(f"{components}: no component names a module: give the folder of the components")
    return images


def check_absent(image: str) -> Iterator[str]:
    for name in ABSENT[image]:
        if find_spec(name):
            yield f"{name} is installed, and the {image} image must not have it: see the extras in pyproject.toml"


def check_commands(image: str, components: Path) -> Iterator[str]:
    """The train image has every stage; the cpu image those that need no torch."""
    for module, needs in stages(components).items():
        if image == "train" or needs == image:
            yield from check_python(["-m", "posttrain.step.attempts", module, "--help"])


def check_libraries(image: str) -> Iterator[str]:
    yield from check_python(["-c", f"import {CPU_LIBRARIES}"])
    if image == "train":
        yield from check_python(["-c", TRAINERS])
        if find_spec("unsloth"):  # it patches the others, so it must be able to come first
            yield from check_python(["-c", f"import unsloth; {TRAINERS}"])


def check_python(arguments: list[str]) -> Iterator[str]:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if result.returncode:
        cause = (result.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        yield f"python {' '.join(arguments)}: exit {result.returncode}: {cause}"


def check_locked(locks: list[Path], installed: dict[str, str]) -> Iterator[str]:
    """Every package is that of a lock file. `installed`: name -> version."""
    lines = [line for lock in locks for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    locked = {line.partition(" ")[0] for line in lines}
    for name, version in installed.items():
        if f"{name}=={version}" not in locked:
            yield f"{name} {version} is installed, and it is in none of {' '.join(lock.name for lock in locks)}"


def installed_versions() -> dict[str, str]:
    """Versions of all installed packages but this one, by name."""
    versions = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions()}
    return {name: version for name, version in versions.items() if name != "posttrain"}


def check_user() -> Iterator[str]:
    """The image's user is not root, may write its caches, and not the code."""
    if os.getuid() == 0:
        yield "the image runs as root: set USER"
    if os.access(sys.prefix, os.W_OK):
        yield f"{sys.prefix} is writable: copy it as root"
    for variable in ("HOME", "HF_HOME"):
        folder = Path(os.environ.get(variable, ""))
        nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(nearest, os.W_OK):
            yield f"{variable}={folder} cannot be written: put it below /cache"


def check_certificates() -> Iterator[str]:
    """Without certificate authorities no step reaches a storage or the Hub."""
    paths = ssl.get_default_verify_paths()
    if not (Path(paths.cafile or "").is_file() or any(Path(paths.capath or "none").glob("*.0"))):
        yield f"no certificate authorities in {paths.cafile or paths.openssl_cafile}: install ca-certificates"


def findings(image: str, components: Path, locks: list[Path]) -> Iterator[str]:
    yield from check_user()
    yield from check_certificates()
    yield from check_absent(image)
    yield from check_locked(locks, installed_versions())
    yield from check_libraries(image)
    yield from check_commands(image, components)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True, choices=sorted(ABSENT))
    parser.add_argument("--components", required=True, type=Path, help="folder of the components' source")
    parser.add_argument("--locks", required=True, type=Path, nargs="+", help="lock files that it was installed from")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    faults = list(findings(args.image, args.components, args.locks))
    for fault in faults:
        print(f"smoke: {fault}", file=sys.stderr)
    print(f"smoke: {args.image}: {len(faults)} findings")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
