"""Reads, writes and copies files in `gs://`, in `s3://` or in a folder of this machine, through one interface.

URI -> bytes, files and folders, and back. A file never appears under its final name before it is complete: objects
are atomic, local files are written under a temporary name and renamed. Checksums of objects are checked both ways.
Requests to a server that does not answer are repeated for about five minutes, with a line in the log. Every problem is
an `OSError` of the fitting kind (`FileNotFoundError`, `FileExistsError`, `PermissionError`) on one line that names the
URI; an invalid URI is a `ValueError`.
"""

import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.storage import transfer
from posttrain.storage.address import Uri, is_remote, join, local_path, place, scheme
from posttrain.storage.local import Local, sync, temporary
from posttrain.storage.store import Store

Digests = dict[str, str]  # relative name of a file -> SHA-256 of the bytes sent or received

GROUP_BYTES = 1 << 30  # bytes between two progress lines

logger = logging.getLogger(__name__)


def read_bytes(uri: Uri) -> bytes:
    """Returns the content of one file."""
    store, uri = _store(uri)
    return store.read(uri)


def read_start(uri: Uri, num_bytes: int) -> bytes:
    """Returns the first bytes of one file, or all of a shorter one."""
    store, uri = _store(uri)
    return store.read_start(uri, num_bytes)


def write_bytes(uri: Uri, data: bytes, *, if_absent: bool = False) -> None:
    """Writes one file; with `if_absent` exactly one of several writers wins and the others get `FileExistsError`.

    `if_absent` is for small files (locks, manifests, records). A write whose answer got lost is repeated; finding its
    own file then is no error, the writer has won.
    """
    store, uri = _store(uri)
    store.write(uri, data, if_absent=if_absent)


def exists(uri: Uri) -> bool:
    """Tells whether there is a file of exactly this name; for a folder use `list_files`."""
    store, uri = _store(uri)
    try:
        store.size(uri)
    except FileNotFoundError:
        return False
    return True


def list_files(uri: Uri) -> list[str]:
    """Returns the sorted names, relative to `uri`, of all files below it; none if there is no such folder."""
    store, uri = _store(uri)
    return sorted(store.sizes(uri))


def file_sizes(uri: Uri) -> dict[str, int | None]:
    """Returns the sizes in bytes of all files below `uri`, by relative name; None where the store unzips a file."""
    store, uri = _store(uri)
    return store.sizes(uri)


def upload_file(path: Uri, uri: Uri) -> str:
    """Copies a local file to `uri`, replacing any file there; returns the SHA-256 of the bytes sent."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file to upload to {uri}")
    store, uri = _store(uri)
    return store.put([(Path(path), uri)])[0]


def download_file(uri: Uri, path: Uri) -> str:
    """Copies the file `uri` to a local path, replacing any file there; returns the SHA-256 of the bytes received."""
    store, uri = _store(uri)
    stage = temporary(Path(path).parent)
    try:
        (sha256,) = _get(store, [(uri, stage, store.size(uri))])
        stage.replace(path)
        return sha256
    finally:
        stage.unlink(missing_ok=True)


def upload_folder(path: Uri, uri: Uri) -> Digests:
    """Copies all files below a local folder to `uri`, and returns their digests; other files at `uri` stay.

    Each file appears when it is complete. A new local folder appears at once; anywhere else files appear one by one:
    write a manifest last if a reader may look in between. Linked files are copied, linked folders left out.
    """
    sizes = Local().sizes(os.fspath(path))
    if not sizes:
        raise FileNotFoundError(f"{path}: no files to upload to {uri}")
    label = f"upload to {uri}"
    if not is_remote(uri):
        return _fetch_folder(Local(), os.fspath(path), sizes, local_path(uri), label=label, is_kept=True)
    store, uri = _store(uri)

    def send(names: list[str]) -> list[str]:
        return store.put([(Path(path, name), join(uri, name)) for name in names])

    return _in_groups(store, sizes, send, label=label)


def download_folder(uri: Uri, path: Uri) -> Digests:
    """Copies all files below `uri` into a local folder once all are here and checked; returns their digests.

    A new folder appears at once; in one that exists files are replaced one by one, and other files stay.
    """
    store, uri = _store(uri)
    sizes = store.sizes(uri)
    if not sizes:
        raise FileNotFoundError(f"{uri}: no such folder, or no files in it")
    return _fetch_folder(store, uri, sizes, Path(path), label=f"download from {uri}")


def remove(uri: Uri) -> None:
    """Removes a file, or a folder with everything below it; nothing happens if it does not exist."""
    if len(place(uri)) < 3:
        raise ValueError(f"{os.fspath(uri)!r} is a bucket or file system; give a folder or file in it")
    store, uri = _store(uri)
    store.remove(uri)


def check_writable(uri: Uri) -> None:
    """Writes, reads and removes a small file below `uri`; raises `ValueError` if one of the three fails.

    It also raises one if a second writer of that file is not refused: records, claims and results rely on that.
    """
    data = uuid.uuid4().hex.encode()
    probe = join(uri, f".write-check-{data.decode()}")
    try:
        write_bytes(probe, data, if_absent=True)
        is_exclusive = _is_refused(probe)
        read = read_bytes(probe)
        remove(probe)
    except OSError as error:
        message = f"{uri}: cannot write, read and remove files there: {error}"
        raise ValueError(f"{message}; grant that or choose another place") from error
    if not is_exclusive:
        reason = "of two writers of one file both win (conditional writes, If-None-Match, are ignored)"
        raise ValueError(f"{uri}: {reason}; choose a storage that has them, or a newer version of this server")
    if read != data:
        raise ValueError(f"{uri}: a file read back differs from what was written; choose another place")


def _is_refused(uri: str) -> bool:
    """Tells whether the store refuses to write a file that is there, where it is asked to."""
    try:
        write_bytes(uri, b"of a second writer", if_absent=True)
    except FileExistsError:
        return True
    return False


def _store(uri: Uri) -> tuple[Store, str]:
    """Returns the store of `uri`, and `uri` as a string. The clients of gs:// and s3:// are imported when needed."""
    name, uri = scheme(uri), os.fspath(uri)
    if name == "hf":
        raise ValueError(f"{uri}: the Hub does not store files of a run; use gs://, s3:// or a path")
    if name == "gs":
        from posttrain.storage.gcs import Gcs

        return Gcs(uri), uri
    if name == "s3":
        from posttrain.storage.s3 import S3

        return S3(), uri
    return Local(), uri


def _fetch_folder(
    store: Store, uri: str, sizes: dict[str, int | None], path: Path, *, label: str, is_kept: bool = False
) -> Digests:
    """Copies files to a local folder; one that is kept for later runs is on the disk before it gets its name."""
    sources = {name: join(uri, name) for name in sizes}
    with _staged_folder(path, is_kept=is_kept) as stage:

        def fetch(names: list[str]) -> list[str]:
            return _get(store, [(sources[name], stage / name, sizes[name]) for name in names])

        return _in_groups(store, sizes, fetch, label=label)


def _in_groups(
    store: Store, sizes: dict[str, int | None], transfer_files: Callable[[list[str]], list[str]], *, label: str
) -> Digests:
    """Transfers the files, largest first, with a log line after each GiB and at the end."""
    digests: Digests = {}
    started, num_files, num_bytes, num_repeats = time.monotonic(), 0, 0, store.num_repeats
    for names in _groups(sizes):
        digests |= zip(names, transfer_files(names), strict=True)
        num_files += len(names)
        num_bytes += sum(sizes[name] or 0 for name in names)
        megabytes, seconds = num_bytes / 1e6, time.monotonic() - started
        line = f"{num_files} of {len(sizes)} files, {megabytes:.1f} MB, {megabytes / max(seconds, 1e-9):.1f} MB/s"
        repeats = store.num_repeats - num_repeats
        logger.info("%s: %s%s", label, line, f", {repeats} requests repeated" if repeats else "")
    return digests


def _groups(sizes: dict[str, int | None]) -> Iterator[list[str]]:
    group, num_bytes = [], 0
    for name in sorted(sizes, key=lambda name: (-(sizes[name] or 0), name)):
        group.append(name)
        num_bytes += sizes[name] or 0
        if len(group) >= transfer.NUM_LARGE_WORKERS and num_bytes >= GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _get(store: Store, files: list[tuple[str, Path, int | None]]) -> list[str]:
    """Downloads (URI, path, expected size or None) and checks sizes; the store has checked the checksums."""
    for _, path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    digests = store.get(files)
    for uri, path, size in files:
        if size is not None and path.stat().st_size != size:
            raise OSError(f"{uri}: received {path.stat().st_size} of {size} bytes; try again")
    return digests


@contextmanager
def _staged_folder(target: Path, *, is_kept: bool) -> Iterator[Path]:
    """Makes a folder whose files move to `target` if the block succeeds.

    It is beside `target`, or inside it if that exists (perhaps as a mount), so that both are on one file system.
    """
    stage = temporary(target if target.exists() else target.parent)
    stage.mkdir(parents=True)
    try:
        yield stage
        paths = [*stage.rglob("*"), stage] if is_kept else []
        folders = [target / path.relative_to(stage) for path in paths if path.is_dir()]
        for path in paths:
            sync(path)
        _move(stage, target)
        for folder in (*folders, target.parent) if is_kept else ():
            sync(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move(stage: Path, target: Path) -> None:
    if not target.exists():
        try:
            stage.rename(target)
            return
        except OSError as error:  # another process has created it
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    for name in sorted(Local().sizes(os.fspath(stage))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target / name)
