"""Plain paths and `file://`: files are written under a temporary name and renamed, so that none is seen half-written.

A rename, and what it names, is on the disk before the call returns: after a power loss no COMPLETE.json is empty, nor
names files that are.

Temporary names (`.<32 hex digits>.part`), which a killed process may leave behind, are never listed.
"""

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posttrain.storage import hashing, transfer
from posttrain.storage.address import local_path

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.part")


def temporary(folder: Path) -> Path:
    """Returns a new name in `folder` for a file that is not complete yet."""
    return folder / f".{uuid.uuid4().hex}.part"


HUB_SNAPSHOT = re.compile(r"models--[^/]+/snapshots/[^/]+")  # of the Hub's cache, whose files lie in ../../blobs


def hub_blobs(folder: Path) -> Path | None:
    """Returns the folder to which the links of a snapshot in the Hub's cache lead; None for any other folder."""
    folder = folder.resolve()
    is_snapshot = HUB_SNAPSHOT.fullmatch("/".join(folder.parts[-3:]))
    return folder.parents[1] / "blobs" if is_snapshot else None


def check_links(folder: Path) -> None:
    """Refuses links that lead out of a folder: who wrote the folder need not be allowed to read what they lead to.

    Links into the blobs of the same model are fine, as in the Hub's cache.
    """
    inside = [folder.resolve(), *filter(None, [hub_blobs(folder)])]
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *names)):
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
                remedy = "give a folder that contains the file itself"
                raise ValueError(f"{path}: is a link that leads out of {folder}; {remedy}")


def sync(path: Path) -> None:
    """Has the disk keep a file, or the names in a folder, before anything is written that relies on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(uri: str | os.PathLike[str]) -> Iterator[None]:
    """Names the file in an error that does not: of a disk that is full, Python says only that it is."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(uri)) from None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a local file in UTF-8. An error names it, whatever it is."""
    with naming(path):
        Path(path).write_text(text, encoding="utf-8")


class Local:
    """The store of local files. It repeats nothing and checks no checksums: a disk reports its own failures."""

    num_repeats = 0

    def read(self, uri: str) -> bytes:
        return local_path(uri).read_bytes()

    def read_start(self, uri: str, num_bytes: int) -> bytes:
        with open(local_path(uri), "rb") as file:
            return file.read(num_bytes)

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = temporary(target.parent)
        try:
            with naming(uri):
                stage.write_bytes(data)
                sync(stage)
            # A link, unlike a rename, fails where the name is taken.
            target.hardlink_to(stage) if if_absent else stage.replace(target)
            sync(target.parent)
        except FileExistsError:
            # On NFS the answer to a link can get lost, and the repeated request finds the link that was made.
            if not target.exists() or not target.samefile(stage):
                raise FileExistsError(f"{uri}: exists already") from None
        finally:
            stage.unlink(missing_ok=True)

    def size(self, uri: str) -> int:
        path = local_path(uri)
        if not path.is_file():
            raise FileNotFoundError(f"{uri}: no such file")
        return path.stat().st_size

    def sizes(self, uri: str) -> dict[str, int]:
        def refuse(error: OSError) -> None:
            if isinstance(error, PermissionError):  # os.walk would leave the folder out
                raise error

        root, sizes = local_path(uri), {}
        for folder, folders, names in os.walk(root, onerror=refuse):
            folders[:] = [name for name in folders if not TEMPORARY_NAME.fullmatch(name)]
            for path in (Path(folder, name) for name in names if not TEMPORARY_NAME.fullmatch(name)):
                with suppress(FileNotFoundError):  # removed since it was listed, as a publisher does with its claim
                    status = path.stat()
                    if stat.S_ISREG(status.st_mode):
                        sizes[path.relative_to(root).as_posix()] = status.st_size
        return sizes

    def put(self, files: list[tuple[Path, str]]) -> list[str]:
        def copy(file: tuple[Path, str]) -> str:
            path, target = file[0], local_path(file[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            stage = temporary(target.parent)
            try:
                with naming(file[1]):
                    sha256 = hashing.copy(path, stage)
                    sync(stage)
                stage.replace(target)
                sync(target.parent)
                return sha256
            finally:
                stage.unlink(missing_ok=True)

        return transfer.in_parallel(copy, files)

    def get(self, files: list[tuple[str, Path, int]]) -> list[str]:
        def copy(file: tuple[str, Path, int]) -> str:
            with naming(file[1]):
                return hashing.copy(local_path(file[0]), file[1])

        return transfer.in_parallel(copy, files)

    def remove(self, uri: str) -> None:
        path = local_path(uri)
        if path.is_dir() and not path.is_symlink():
            # Renamed first: a folder that has lost some of its files must not look complete.
            shutil.rmtree(path.rename(temporary(path.parent)))
        else:
            path.unlink(missing_ok=True)
