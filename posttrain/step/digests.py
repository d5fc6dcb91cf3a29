"""SHA-256 of files and folders."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from posttrain.storage import hashing
from posttrain.storage.address import check_name


def digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file, or that of a folder's sorted `<relative name> <SHA-256>` lines."""
    path = Path(path)
    if path.is_dir():
        return folder_digest(file_digests(path))
    return hashing.sha256(path)


def file_digests(folder: str | Path, *, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Maps the relative name of each file below a folder to its SHA-256; files that are `known` are not read."""
    names = [file.relative_to(folder).as_posix() for file in files_of(folder)]
    return {name: known.get(name) or hashing.sha256(Path(folder, name)) for name in names}


def folder_digest(digests: dict[str, str]) -> str:
    """Returns the `digest` of a folder with these files; refuses a name that could stand for two lines of the list."""
    for name in digests:
        check_name(name)
    lines = [f"{name} {sha256}\n" for name, sha256 in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_of(folder: str | Path) -> list[Path]:
    """Lists all files below a folder, sorted by relative name."""
    folder = Path(folder)
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())
