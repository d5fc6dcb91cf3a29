"""Gathers the wheels that a machine without a network lacks, in folders small enough to carry there one by one.

requirements, constraints.txt, the machine's `pip list --format=freeze` -> <output>/1, <output>/2, ..., and their sizes

What the machine has stays as it is, in whatever version; `--newer` names packages to bring all the same. A wheel may
hold libraries for devices that the machine does not have: `--without` leaves such files out.

    python -m images.wheels --machine packages.txt --output wheels --python 3.12 \
        --alone images/unsloth.txt --without 'bitsandbytes/*_cuda12?.so' trl==1.14.2 datasets pydantic

    pip install --no-index --no-deps wheels/1/*.whl  # there
"""

import argparse
import csv
import fnmatch
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from images.lock import IMAGES, pins, requirements

# pip matches each of these exactly; what it is given replaces its own list.
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
MIB = 1 << 20
METADATA = re.compile(r"[^/]+\.dist-info/METADATA")


@dataclass(frozen=True)
class Target:
    """The machine that the wheels are for."""

    python: str  # 3.12
    machine: str  # x86_64
    packages: dict[str, str]  # name -> version, "" where it is unknown

    @property
    def options(self) -> list[str]:
        """Options of pip that choose wheels for that machine."""
        platforms = [f"--platform={platform}_{self.machine}" for platform in PLATFORMS]
        return ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}", *platforms]

    @property
    def environment(self) -> dict[str, str]:
        """Values of the markers in a wheel's requirements."""
        machine = {"platform_machine": self.machine, "sys_platform": "linux", "platform_system": "Linux"}
        return {"python_version": self.python, "python_full_version": f"{self.python}.0", "extra": ""} | machine


def read_packages(path: Path) -> dict[str, str]:
    """Reads `pip list --format=freeze`: a package a line, with or without its version."""
    names = (pin.partition("==") for pin in pins(path))
    return {canonicalize_name(name): version for name, _, version in names}


def closure(wanted: list[str], folder: Path, target: Target) -> None:
    """Downloads to `folder` what is wanted, and what that needs in turn, unless the machine has it.

    pip's own resolver would go on to what the machine's packages need, which for torch are wheels of gigabytes.

    Raises:
        ValueError: pip finds no wheel for that machine.
    """
    asked: set[str] = set()
    while wanted := [one for one in wanted if _name(one) not in target.packages.keys() | asked]:
        asked |= set(map(_name, wanted))
        known = set(folder.glob("*.whl"))
        download(wanted, folder, target)
        wanted = [str(need) for wheel in set(folder.glob("*.whl")) - known for need in _needs(wheel, target)]


def download(wanted: list[str], folder: Path, target: Target) -> None:
    """Downloads a wheel of each of these, in the versions of constraints.txt where it has them."""
    if wanted:
        pinned = {_name(pin): pin for pin in pins(IMAGES / "constraints.txt")}
        chosen = {_name(one): pinned.get(_name(one), one.partition(";")[0]) for one in wanted}
        _pip("download", "--no-deps", f"--dest={folder}", *chosen.values(), at=target)


def _pip(verb: str, *arguments: str, at: Target) -> str:
    command = [sys.executable, "-m", "pip", verb, "--quiet", *at.options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip {verb}: {done.stderr.strip().splitlines()[-1]}: is an index or a platform missing?")
    return done.stdout


def leave_out(wheel: Path, patterns: list[str]) -> None:
    """Writes the wheel again without the files that match, in its list of files too; compressed as far as it goes."""
    with zipfile.ZipFile(wheel) as whole:
        names = [name for name in whole.namelist() if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        if len(names) == len(whole.namelist()):
            return
        partial = wheel.with_suffix(".part")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as smaller:
            for name in names:
                content = whole.read(name)
                smaller.writestr(name, _kept(content, names) if name.endswith(".dist-info/RECORD") else content)
    partial.replace(wheel)


def _kept(record: bytes, names: list[str]) -> bytes:
    rows = [row for row in csv.reader(io.StringIO(record.decode())) if row[0] in names]
    return "".join(f"{','.join(row)}\n" for row in rows).encode()


def missing(wheels: Iterable[Path], target: Target) -> list[str]:
    """Lists what the wheels need that neither they nor the machine have, or have in a version that is not allowed."""
    wheels = list(wheels)
    there = target.packages | {name: str(version) for name, version in map(_name_and_version, wheels)}
    lacking = []
    for one, needed in ((wheel, needed) for wheel in wheels for needed in _needs(wheel, target)):
        version = there.get(_name(needed.name))
        if version is None or (version and not needed.specifier.contains(version, prereleases=True)):
            has = "which is nowhere" if version is None else f"and {version} is there"
            lacking.append(f"{_name_and_version(one)[0]} asks for {needed.name}{needed.specifier}, {has}")
    return lacking


def _needs(wheel: Path, target: Target) -> list[Requirement]:
    """Reads what the wheel requires on that machine, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if METADATA.fullmatch(name)]
        lines = HeaderParser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    needs = map(Requirement, lines)
    return [need for need in needs if not need.marker or need.marker.evaluate(target.environment)]


def _name(requirement: str) -> str:
    return canonicalize_name(Requirement(requirement).name)


def _name_and_version(wheel: Path) -> tuple[str, str]:
    name, version, *_ = parse_wheel_filename(wheel.name)
    return str(name), str(version)


def groups(wheels: Iterable[Path], limit_bytes: int) -> list[list[Path]]:
    """Deals the wheels, in their order, to groups of at most so many bytes; a larger wheel is a group of its own."""
    dealt: list[list[Path]] = [[]]
    for wheel in wheels:
        if dealt[-1] and sum(one.stat().st_size for one in [*dealt[-1], wheel]) > limit_bytes:
            dealt.append([])
        dealt[-1].append(wheel)
    return dealt


def gather(args: argparse.Namespace, target: Target) -> list[list[Path]]:
    """Downloads what is missing, and returns the wheels of each group."""
    with tempfile.TemporaryDirectory(dir=args.output.parent) as name:
        folder = Path(name)
        closure(args.requirements or requirements("train"), folder, target)
        download(args.newer, folder, target)
        alone = [pin for path in args.alone for pin in pins(path)]
        download([pin for pin in alone if _name(pin) not in target.packages], folder, target)
        wheels = sorted(folder.glob("*.whl"))
        for wheel in wheels:
            leave_out(wheel, args.without)
        dealt = groups(wheels, args.limit * MIB)
        return [[_move(wheel, args.output / str(number)) for wheel in group] for number, group in enumerate(dealt, 1)]


def _move(wheel: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(wheel, folder / wheel.name))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m images.wheels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requirements", nargs="*", help="with all that they need (default: those of the train image)")
    parser.add_argument("--alone", type=Path, nargs="*", default=[], help="requirements files, without what these need")
    parser.add_argument("--machine", type=Path, required=True, help="its packages, of `pip list --format=freeze`")
    parser.add_argument("--newer", nargs="*", default=[], help="packages to bring although the machine has them")
    parser.add_argument("--without", nargs="*", default=[], help="patterns of files to leave out of the wheels")
    parser.add_argument("--python", default="3.12", help="its version (default: %(default)s)")
    parser.add_argument("--arch", default="x86_64", help="its processor (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=60, help="MiB of a folder (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the numbered folders")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.output.mkdir(parents=True)
    target = Target(args.python, args.arch, read_packages(args.machine))
    try:
        dealt = gather(args, target)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for number, group in enumerate(dealt, 1):
        for wheel in group:
            print(f"{wheel.stat().st_size / MIB:8.2f} MiB  {wheel.name}")
        print(f"{sum(wheel.stat().st_size for wheel in group) / MIB:8.2f} MiB  {args.output / str(number)}")
    for line in missing((wheel for group in dealt for wheel in group), target):
        print(f"warning: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
