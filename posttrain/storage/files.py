"""Files behind one interface, whether they lie in `gs://`, in `s3://` or in a folder of this machine.

URI -> bytes, files and folders, and back. A file never appears under its final name before it is whole: objects are
atomic by themselves, local files are written beside their place and renamed. Objects are checked against their checksum
both ways. A server that does not answer is asked again for about five minutes, with a line in the log. Every problem is
an `OSError` of the fitting kind (`FileNotFoundError`, `FileExistsError`, `PermissionError`) on one line that names the
URI; a URI that makes no sense is a `ValueError`.
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
from posttrain.storage.local import Local, temporary
from posttrain.storage.store import Store

Digests = dict[str, str]  # relative name of a file -> SHA-256 of what was sent or has arrived

GROUP_BYTES = 1 << 30  # a progress line after this many

logger = logging.getLogger(__name__)


def read_bytes(uri: Uri) -> bytes:
    """The whole content of one file."""
    store, uri = _store(uri)
    return store.read(uri)


def write_bytes(uri: Uri, data: bytes, *, if_absent: bool = False) -> None:
    """Writes one file; with `if_absent` exactly one of several writers wins and the others get `FileExistsError`.

    `if_absent` is for small files (locks, manifests, records). A write whose answer got lost is repeated and finds its
    own file: that is no error, the writer has won.
    """
    store, uri = _store(uri)
    store.write(uri, data, if_absent=if_absent)


def exists(uri: Uri) -> bool:
    """Whether there is a file of exactly this name; for a folder ask `list_files`."""
    store, uri = _store(uri)
    try:
        store.size(uri)
    except FileNotFoundError:
        return False
    return True


def list_files(uri: Uri) -> list[str]:
    """Sorted names, relative to `uri`, of all files below it; empty where there is no such folder."""
    store, uri = _store(uri)
    return sorted(store.sizes(uri))


def file_sizes(uri: Uri) -> dict[str, int | None]:
    """Bytes of all files below `uri` by their relative names; None where the store unpacks a file on its way."""
    store, uri = _store(uri)
    return store.sizes(uri)


def upload_file(path: Uri, uri: Uri) -> str:
    """Copies a local file to `uri`, replacing what is there, and gives the SHA-256 of what was sent."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file to upload to {uri}")
    store, uri = _store(uri)
    return store.put([(Path(path), uri)])[0]


def download_file(uri: Uri, path: Uri) -> str:
    """Copies the file `uri` to a local path, replacing what is there, and gives the SHA-256 of what arrived."""
    store, uri = _store(uri)
    stage = temporary(Path(path).parent)
    try:
        (sha256,) = _get(store, [(uri, stage, store.size(uri))])
        stage.replace(path)
        return sha256
    finally:
        stage.unlink(missing_ok=True)


def upload_folder(path: Uri, uri: Uri) -> Digests:
    """Copies all files below a local folder to `uri`, and gives their digests; files that are only at `uri` stay.

    Each file is whole when it appears. A local `uri` that does not exist yet appears at once; anywhere else files come
    one by one: write a manifest last if a reader may look in between. Linked files are copied, linked folders left out.
    """
    sizes = Local().sizes(os.fspath(path))
    if not sizes:
        raise FileNotFoundError(f"{path}: no files to upload to {uri}")
    label = f"upload to {uri}"
    if not is_remote(uri):
        return _fetch_folder(Local(), os.fspath(path), sizes, local_path(uri), label=label)
    store, uri = _store(uri)

    def send(names: list[str]) -> list[str]:
        return store.put([(Path(path, name), join(uri, name)) for name in names])

    return _in_groups(store, sizes, send, label=label)


def download_folder(uri: Uri, path: Uri) -> Digests:
    """Copies all files below `uri` into a local folder, when all of them are here and checked; gives their digests.

    A folder that does not exist yet appears at once; in one that exists files are replaced one by one, others stay.
    """
    store, uri = _store(uri)
    sizes = store.sizes(uri)
    if not sizes:
        raise FileNotFoundError(f"{uri}: no such folder, or no files in it")
    return _fetch_folder(store, uri, sizes, Path(path), label=f"download from {uri}")


def remove(uri: Uri) -> None:
    """Removes a file, or a folder with all that is below it. What is not there needs no removing."""
    if len(place(uri)) < 3:
        raise ValueError(f"{os.fspath(uri)!r} is a whole bucket or file system; give a folder or file in it")
    store, uri = _store(uri)
    store.remove(uri)


def check_writable(uri: Uri) -> None:
    """Writes, reads back and removes a small file below `uri`; raises `ValueError` where one of the three fails."""
    data = uuid.uuid4().hex.encode()
    probe = join(uri, f".write-check-{data.decode()}")
    try:
        write_bytes(probe, data, if_absent=True)
        found = read_bytes(probe)
        remove(probe)
    except OSError as error:
        message = f"{uri}: cannot write, read and remove files there: {error}"
        raise ValueError(f"{message}; grant that or choose another place") from error
    if found != data:
        raise ValueError(f"{uri}: a file read back differs from what was written; choose another place")


def _store(uri: Uri) -> tuple[Store, str]:
    """What serves `uri`, and `uri` as a string. The clients of gs:// and s3:// are imported where they are needed."""
    found, uri = scheme(uri), os.fspath(uri)
    if found == "hf":
        raise ValueError(f"{uri}: the Hub holds no files of a run; use gs://, s3:// or a path")
    if found == "gs":
        from posttrain.storage.gcs import Gcs

        return Gcs(uri), uri
    if found == "s3":
        from posttrain.storage.s3 import S3

        return S3(), uri
    return Local(), uri


def _fetch_folder(store: Store, uri: str, sizes: dict[str, int | None], path: Path, *, label: str) -> Digests:
    sources = {name: join(uri, name) for name in sizes}
    with _staged_folder(path) as stage:

        def fetch(names: list[str]) -> list[str]:
            return _get(store, [(sources[name], stage / name, sizes[name]) for name in names])

        return _in_groups(store, sizes, fetch, label=label)


def _in_groups(
    store: Store, sizes: dict[str, int | None], transfer_files: Callable[[list[str]], list[str]], *, label: str
) -> Digests:
    """Transfers the files, largest first, and logs a line after each GiB and at the end."""
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
    """Downloads (URI, path, expected size or None) and checks the sizes; the store has checked the checksums."""
    for _, path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    digests = store.get(files)
    for uri, path, size in files:
        if size is not None and path.stat().st_size != size:
            raise OSError(f"{uri}: {path.stat().st_size} bytes arrived of {size}; try again")
    return digests


@contextmanager
def _staged_folder(target: Path) -> Iterator[Path]:
    """A new folder whose files move to `target` if the block ends well.

    It stands beside `target`; where that exists already (a mount, perhaps) inside it, so that both are one file system.
    """
    stage = temporary(target if target.exists() else target.parent)
    stage.mkdir(parents=True)
    try:
        yield stage
        _move(stage, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _move(stage: Path, target: Path) -> None:
    if not target.exists():
        try:
            stage.rename(target)
            return
        except OSError as error:  # another process has made it since
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    for name in sorted(Local().sizes(os.fspath(stage))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target / name)
