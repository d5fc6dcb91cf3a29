"""Writes the lock files of the images: each package with its version and the SHA-256 of the wheel that was chosen.

pyproject.toml, constraints.txt, pip's own configuration -> images/*.lock

Runs on Linux x86-64 with Python 3.11, as the images do: wheels of another platform have other digests.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.utils import canonicalize_name

IMAGES = Path(__file__).parent
PROJECT = IMAGES.parent / "pyproject.toml"
PLATFORM = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
HEAD = "# {title}. `make lock` writes this file.\n"
UNSLOTH = IMAGES / "unsloth.txt"  # without what it asks for beside that

TITLES = {
    "build": "What builds the wheel of this package",
    "cpu": "The cpu image",
    "train": "The train image, beside torch",
    "torch-cpu": "torch in its CPU build",
    "torch-cuda": "torch in its CUDA build",
    "unsloth": "unsloth, for INSTALL_UNSLOTH=1",
}

Lock = dict[str, tuple[str, str]]  # name -> version, SHA-256


def locks() -> dict[str, Lock]:
    """Resolves the content of each lock file; the two of torch hold what its builds do not share.

    Both builds are resolved with everything else: `===` takes the CUDA build alone, which has no local version.
    """
    needed = requirements("train")
    torch = next(pin for pin in needed if pin.startswith("torch=="))
    cpu, cuda = (resolve([*needed, build]) for build in (f"{torch}+cpu", torch.replace("==", "===")))
    shared = {name: pinned for name, pinned in cpu.items() if cuda.get(name) == pinned}
    return {
        "build": resolve(build_requirements()),
        "cpu": resolve(requirements("cpu")),
        "train": shared,
        "torch-cpu": without(cpu, shared),
        "torch-cuda": without(cuda, shared),
        "unsloth": without(resolve(pins(UNSLOTH), "--no-deps"), cuda),
    }


def requirements(extra: str) -> list[str]:
    """Lists the package's requirements for one of its extras, which may name another one."""
    project = project_table()["project"]
    needed = list(project["dependencies"])
    for pin in project["optional-dependencies"][extra]:
        other = re.fullmatch(rf"{project['name']}\[(\w+)\]", pin)
        needed += requirements(other[1]) if other else [pin]
    return list(dict.fromkeys(needed))


def pins(path: Path) -> list[str]:
    """Reads the pins of a requirements file, without its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [pin for line in lines if (pin := line.partition("#")[0].strip())]


def build_requirements() -> list[str]:
    return project_table()["build-system"]["requires"]


def project_table() -> dict:
    return tomllib.loads(PROJECT.read_text(encoding="utf-8"))


def resolve(pins: list[str], *options: str) -> Lock:
    """Resolves these requirements, and all that they need, to what pip would install.

    Raises:
        ValueError: pip finds none, with pip's last line; or this is another platform.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    command += ["--quiet", "--report=-", "--constraint", str(IMAGES / "constraints.txt"), *options, *pins]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"pip finds no set of wheels: {result.stderr.strip().splitlines()[-1]}: is an index missing?")
    report = json.loads(result.stdout)
    if not PLATFORM.items() <= report["environment"].items():
        raise ValueError(f"the images are of {' '.join(PLATFORM.values())}: run make lock there")
    return dict(sorted(map(_locked, report["install"])))


def _locked(entry: dict) -> tuple[str, tuple[str, str]]:
    name, version = entry["metadata"]["name"], entry["metadata"]["version"]
    return canonicalize_name(name), (version, entry["download_info"]["archive_info"]["hashes"]["sha256"])


def without(lock: Lock, other: Lock) -> Lock:
    return {name: pinned for name, pinned in lock.items() if name not in other}


def render(title: str, lock: Lock) -> str:
    lines = [f"{name}=={version} --hash=sha256:{sha256}\n" for name, (version, sha256) in lock.items()]
    return HEAD.format(title=title) + "".join(lines)


def main() -> int:
    try:
        resolved = locks()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, lock in resolved.items():
        path = IMAGES / f"{name}.lock"
        path.write_text(render(TITLES[name], lock), encoding="utf-8")
        print(f"{path.relative_to(IMAGES.parent)}: {len(lock)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
