"""Files behind one interface, whether they lie in `gs://`, in `s3://` or in a folder of this machine.

URI -> bytes, files and folders, and back. A file never appears under its final name before it is whole: objects are
atomic by themselves, local files are written beside their place and renamed. Bytes are checked against their checksum
both ways. Every problem is an `OSError` of the fitting kind (`FileNotFoundError`, `FileExistsError`, `PermissionError`)
on one line that names the URI; a URI that makes no sense is a `ValueError`.
"""

import base64
import errno
import functools
import logging
import mimetypes
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

NUM_WORKERS = 8  # files in flight
NUM_LARGE_WORKERS = 4  # large files going up at once: each holds one chunk in memory
LARGE_FILE_BYTES = 32 << 20  # from here on files go in chunks, so that memory stays below about 300 MB
UPLOAD_CHUNK_BYTES = 64 << 20  # a multiple of 256 KiB, as resumable uploads demand
DOWNLOAD_CHUNK_BYTES = 16 << 20
S3_PART_BYTES = 16 << 20  # S3 takes at most 10,000 parts: files up to 160 GB
GROUP_BYTES = 1 << 30  # a progress line after this many

HUB_ID = re.compile(r"(?!.*(?:\.\.|--))([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]+))?", re.ASCII)
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.part")  # what a killed process leaves behind: never listed
SECRET = re.compile(r"(?i)((?:upload_id|token|signature|credential|key)[\w-]*[=:])[^&\s\"',]+")

logger = logging.getLogger(__name__)

Uri = str | os.PathLike[str]


def read_bytes(uri: Uri) -> bytes:
    """The whole content of one file."""
    store, uri = _store(uri)
    return store.read(uri)


def write_bytes(uri: Uri, data: bytes, *, if_absent: bool = False) -> None:
    """Writes one file; with `if_absent` exactly one of several writers wins and the others get `FileExistsError`.

    `if_absent` is for small files (locks, manifests, records). When the answer to a write got lost, the retry finds the
    file it has written itself and raises too: to tell the two apart, read the file.
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


def upload_file(path: Uri, uri: Uri) -> None:
    """Copies a local file to `uri`, replacing what is there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file to upload to {uri}")
    store, uri = _store(uri)
    store.put([(Path(path), uri)])


def download_file(uri: Uri, path: Uri) -> None:
    """Copies the file `uri` to a local path, replacing what is there."""
    store, uri = _store(uri)
    stage = _temporary(Path(path).parent)
    try:
        _get(store, [(uri, stage, store.size(uri))])
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)


def upload_folder(path: Uri, uri: Uri) -> None:
    """Copies all files below a local folder to `uri`; files that are only at `uri` stay.

    Each file is whole when it appears. A local `uri` that does not exist yet appears at once; anywhere else files come
    one by one: write a manifest last if a reader may look in between. Linked files are copied, linked folders left out.
    """
    sizes = _Local().sizes(os.fspath(path))
    if not sizes:
        raise FileNotFoundError(f"{path}: no files to upload to {uri}")
    if not is_remote(uri):
        download_folder(path, local_path(uri))
        return
    store, uri = _store(uri)

    def send(names: list[str]) -> None:
        store.put([(Path(path, name), join(uri, name)) for name in names])

    _in_groups(sizes, send, label=f"upload to {uri}")


def download_folder(uri: Uri, path: Uri) -> None:
    """Copies all files below `uri` into a local folder, when all of them are here and checked.

    A folder that does not exist yet appears at once; in one that exists files are replaced one by one, others stay.
    """
    store, uri = _store(uri)
    sizes = store.sizes(uri)
    if not sizes:
        raise FileNotFoundError(f"{uri}: no such folder, or no files in it")
    sources = {name: join(uri, name) for name in sizes}
    with _staged_folder(Path(path)) as stage:

        def fetch(names: list[str]) -> None:
            _get(store, [(sources[name], stage / name, sizes[name]) for name in names])

        _in_groups(sizes, fetch, label=f"download from {uri}")


def remove(uri: Uri) -> None:
    """Removes a file, or a folder with all that is below it. What is not there needs no removing."""
    if len(_place(uri)) < 3:
        raise ValueError(f"{os.fspath(uri)!r} is a whole bucket or file system; give a folder or file in it")
    store, uri = _store(uri)
    store.remove(uri)


def join(root: Uri, *parts: str) -> str:
    """`root/part/part`; `ValueError` for a part that is empty, absolute or leads upwards (`..`)."""
    for part in parts:
        if any(name in ("", ".", "..") for name in part.split("/")) or "\0" in part:
            raise ValueError(
                f"{part!r} below {root} is no relative file name; rename it: no '..', no '//', no '/' in front"
            )
    root = os.fspath(root)
    return "/".join([root if root.endswith("://") else root.rstrip("/"), *parts]) if parts else root


def is_remote(uri: Uri) -> bool:
    """Whether `uri` needs the network: everything but a plain path and `file://`."""
    return _scheme(uri) != "local"


def local_path(uri: Uri) -> Path:
    """The path that a plain path or a `file://` URI means."""
    if is_remote(uri):
        raise ValueError(f"{uri} is no local path; download it first")
    text = os.fspath(uri)
    return Path(unquote(text.removeprefix("file://")) if text.startswith("file://") else text).expanduser()


def kind(uri: Uri) -> str:
    """What a model or data-set address means: "gs", "s3", "hub" or "local".

    `org/name` is a Hub id unless there is such a local path; `hf://org/name` always is one, `./org/name` never.
    """
    scheme = _scheme(uri)
    if scheme == "hf":
        hub_id(uri)
        return "hub"
    is_hub_id = scheme == "local" and HUB_ID.fullmatch(os.fspath(uri)) and not local_path(uri).exists()
    return "hub" if is_hub_id else scheme


def hub_id(uri: Uri) -> tuple[str, str | None]:
    """Repository id and revision (None: not given) of `hf://org/name@revision` or `org/name@revision`."""
    match = HUB_ID.fullmatch(os.fspath(uri).removeprefix("hf://"))
    if not match:
        raise ValueError(f"{os.fspath(uri)!r} is no Hub id; write hf://org/name or hf://org/name@revision")
    return match[1], match[2]


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


def check_allowed(uri: Uri, allowed_prefixes: Iterable[str], *, name: str) -> None:
    """Raises `ValueError` unless `uri`, the value of parameter `name`, lies under one of the prefixes.

    Compared name by name, so `gs://models` does not cover `gs://models-2`; local paths after resolving links and `..`.
    "/" covers every local path, "gs://", "s3://" and "hf://" all of theirs, `hf://org/name` every revision.
    """
    allowed_prefixes = list(allowed_prefixes)
    try:
        place = _place(uri)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if any(place[: len(prefix)] == prefix for prefix in map(_place, allowed_prefixes)):
        return
    looks_like_id = place[0] == "hf" and _scheme(uri) != "hf"
    hint = f" (it reads as a Hub id; for a folder write ./{uri})" if looks_like_id else ""
    raise ValueError(
        f"{name}={os.fspath(uri)!r}{hint} lies under none of the allowed prefixes "
        f"({', '.join(allowed_prefixes) or 'there are none'}); use one of them, or add one to allowed_prefixes and "
        "compile again"
    )


class _Local:
    """Plain paths and `file://`."""

    def read(self, uri: str) -> bytes:
        return local_path(uri).read_bytes()

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = _temporary(target.parent)
        try:
            stage.write_bytes(data)
            # A link, unlike a rename, fails where the name is taken.
            target.hardlink_to(stage) if if_absent else stage.replace(target)
        except FileExistsError:
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
                if path.is_file():
                    sizes[path.relative_to(root).as_posix()] = path.stat().st_size
        return sizes

    def put(self, files: list[tuple[Path, str]]) -> None:
        _in_parallel(lambda file: download_file(file[0], local_path(file[1])), files)

    def get(self, files: list[tuple[str, Path, int]]) -> None:
        _in_parallel(lambda file: shutil.copyfile(local_path(file[0]), file[1]), files)

    def remove(self, uri: str) -> None:
        path = local_path(uri)
        if path.is_dir() and not path.is_symlink():
            # Renamed first: a folder that lost some of its files must not be taken for a whole one.
            shutil.rmtree(path.rename(_temporary(path.parent)))
        else:
            path.unlink(missing_ok=True)


class _Gcs:
    """`gs://`. Each call is retried by the client's own policy (2 minutes); each transfer is checked by its crc32c."""

    def __init__(self, uri: str) -> None:
        with _gcs_errors(uri):
            self._client = _gcs_client(*_client_key())

    def read(self, uri: str) -> bytes:
        with _gcs_errors(uri):
            return self._blob(uri).download_as_bytes(checksum="crc32c")

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        content_type = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        with _gcs_errors(uri):
            self._blob(uri).upload_from_string(
                data, content_type=content_type, checksum="crc32c", if_generation_match=0 if if_absent else None
            )

    def size(self, uri: str) -> int | None:
        with _gcs_errors(uri):
            blob = self._blob(uri)
            blob.reload()
            return _gcs_size(blob)

    def sizes(self, uri: str) -> dict[str, int | None]:
        start = len(_prefix(uri))
        return {blob.name[start:]: _gcs_size(blob) for blob in self._below(uri) if not blob.name.endswith("/")}

    def put(self, files: list[tuple[Path, str]]) -> None:
        large, small = _by_size(files, lambda file: file[0].stat().st_size)
        self._put(large, num_workers=NUM_LARGE_WORKERS)
        self._put(small, num_workers=NUM_WORKERS)

    def _put(self, files: list[tuple[Path, str]], *, num_workers: int) -> None:
        from google.cloud.storage import transfer_manager

        pairs = [(str(path), self._blob(uri, chunk_size=UPLOAD_CHUNK_BYTES)) for path, uri in files]
        results = transfer_manager.upload_many(
            pairs, upload_kwargs={"checksum": "crc32c"}, worker_type=transfer_manager.THREAD, max_workers=num_workers
        )
        _raise_first(results, [uri for _, uri in files])

    def get(self, files: list[tuple[str, Path, int | None]]) -> None:
        large, small = _by_size(files, lambda file: file[2] or 0)
        self._get_small(small)
        for uri, path, _ in large:
            self._get_large(uri, path)

    def _get_small(self, files: list[tuple[str, Path, int | None]]) -> None:
        from google.cloud.storage import transfer_manager

        results = transfer_manager.download_many(
            [(self._blob(uri), str(path)) for uri, path, _ in files],
            download_kwargs={"checksum": "crc32c", "single_shot_download": True},
            worker_type=transfer_manager.THREAD,
            max_workers=NUM_WORKERS,
        )
        _raise_first(results, [uri for uri, _, _ in files])

    def _get_large(self, uri: str, path: Path) -> None:
        from google.cloud.storage import transfer_manager

        with _gcs_errors(uri):
            transfer_manager.download_chunks_concurrently(
                self._blob(uri),
                str(path),
                chunk_size=DOWNLOAD_CHUNK_BYTES,
                download_kwargs={"single_shot_download": True},
                worker_type=transfer_manager.THREAD,
                max_workers=NUM_WORKERS,
                crc32c_checksum=True,
            )

    def remove(self, uri: str) -> None:
        bucket = self._client.bucket(_split(uri)[0])
        names = [_split(uri)[1], *(blob.name for blob in self._below(uri))]

        def delete(name: str) -> None:
            try:
                with _gcs_errors(uri):
                    bucket.blob(name).delete()
            except FileNotFoundError:
                return

        _in_parallel(delete, names)

    def _blob(self, uri: str, *, chunk_size: int | None = None) -> Any:
        bucket, name = _object(uri)
        return self._client.bucket(bucket).blob(name, chunk_size=chunk_size)

    def _below(self, uri: str) -> list:
        fields = "items(name,size,contentEncoding),nextPageToken"
        with _gcs_errors(uri):
            return list(self._client.list_blobs(_split(uri)[0], prefix=_prefix(uri), fields=fields))


class _S3:
    """`s3://` and what speaks like it (`AWS_ENDPOINT_URL`), through s3fs. Files carry their crc32c as metadata."""

    def __init__(self) -> None:
        self._fs = _s3_filesystem(*_client_key())

    def read(self, uri: str) -> bytes:
        with _s3_errors(uri):
            return self._fs.cat_file("/".join(_object(uri)))

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        mode = "create" if if_absent else "overwrite"
        content_type = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        with _s3_errors(uri):
            self._fs.pipe_file("/".join(_object(uri)), data, mode=mode, ContentType=content_type)

    def size(self, uri: str) -> int:
        return self._head(uri)["ContentLength"]

    def sizes(self, uri: str) -> dict[str, int]:
        start = len(_prefix(uri))
        return {key[start:]: size for key, size in self._below(uri).items() if not key.endswith("/")}

    def put(self, files: list[tuple[Path, str]]) -> None:
        def send(file: tuple[Path, str]) -> None:
            path, uri = file
            with _s3_errors(uri):
                self._fs.put_file(
                    str(path),
                    "/".join(_object(uri)),
                    chunksize=S3_PART_BYTES,
                    max_concurrency=2,
                    Metadata={"crc32c": _crc32c(path)},
                )

        _in_parallel(send, files)

    def get(self, files: list[tuple[str, Path, int]]) -> None:
        def fetch(file: tuple[str, Path, int]) -> None:
            uri, path, _ = file
            with _s3_errors(uri):
                self._fs.get_file("/".join(_object(uri)), str(path))
            expected = self._head(uri)["Metadata"].get("crc32c")
            if expected and expected != _crc32c(path):
                raise OSError(_damaged(uri))

        _in_parallel(fetch, files)

    def remove(self, uri: str) -> None:
        bucket, name = _split(uri)
        keys = [name, *self._below(uri)]
        with _s3_errors(uri):
            _in_parallel(lambda key: self._fs.rm_file(f"{bucket}/{key}"), keys)

    def _head(self, uri: str) -> dict[str, Any]:
        bucket, name = _object(uri)
        with _s3_errors(uri):
            return self._fs.call_s3("head_object", Bucket=bucket, Key=name)

    def _below(self, uri: str) -> dict[str, int]:
        """Key -> size of all objects below `uri`."""
        bucket, sizes, page = _split(uri)[0], {}, {}
        while True:
            with _s3_errors(uri):
                answer = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=_prefix(uri), **page)
            sizes |= {item["Key"]: item["Size"] for item in answer.get("Contents", [])}
            if not answer.get("IsTruncated"):
                return sizes
            page = {"ContinuationToken": answer["NextContinuationToken"]}


def _store(uri: Uri) -> tuple[_Local | _Gcs | _S3, str]:
    """What serves `uri`, and `uri` as a string."""
    scheme, uri = _scheme(uri), os.fspath(uri)
    if scheme == "hf":
        raise ValueError(f"{uri}: the Hub holds no files of a run; use gs://, s3:// or a path")
    if scheme == "local":
        return _Local(), uri
    return (_Gcs(uri) if scheme == "gs" else _S3()), uri


def _scheme(uri: Uri) -> str:
    scheme, separator, _ = os.fspath(uri).partition("://")
    if not os.fspath(uri) or (separator and scheme not in ("gs", "s3", "hf", "file")):
        raise ValueError(f"{os.fspath(uri)!r} is no address; use gs://, s3://, hf://, file:// or a path")
    return scheme if separator and scheme != "file" else "local"


def _split(uri: str) -> tuple[str, str]:
    """Bucket and name of a `gs://` or `s3://` URI; the name is empty for the bucket itself."""
    bucket, _, name = uri.partition("://")[2].partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket; write {uri.partition('://')[0]}://bucket/name")
    return bucket, name.rstrip("/")


def _object(uri: str) -> tuple[str, str]:
    bucket, name = _split(uri)
    if not name:
        raise ValueError(f"{uri!r} is a bucket, not a file; write {uri.rstrip('/')}/name")
    return bucket, name


def _prefix(uri: str) -> str:
    name = _split(uri)[1]
    return f"{name}/" if name else ""


def _place(uri: Uri) -> tuple[str, ...]:
    """Scheme and names from the root down to `uri`; a Hub revision counts as a name of its own."""
    scheme, uri = _scheme(uri), os.fspath(uri)
    if scheme == "local" and kind(uri) == "hub":
        scheme, uri = "hf", f"hf://{uri}"
    if scheme == "local":
        return (scheme, *local_path(uri).resolve().parts)
    path = uri.partition("://")[2].rstrip("/")
    path, at, revision = path.partition("@") if scheme == "hf" else (path, "", "")
    names = path.split("/") if path else []
    if any(name in ("", ".", "..") for name in names):
        raise ValueError(f"{uri!r} holds '..', '.' or '//'; write the address without them")
    return (scheme, *names, at + revision) if at else (scheme, *names)


def _in_groups(sizes: dict[str, int | None], transfer: Callable[[list[str]], None], *, label: str) -> None:
    """Transfers the files, largest first, and logs a line after each GiB and at the end."""
    started, num_files, num_bytes = time.monotonic(), 0, 0
    for names in _groups(sizes):
        transfer(names)
        num_files += len(names)
        num_bytes += sum(sizes[name] or 0 for name in names)
        megabytes, seconds = num_bytes / 1e6, time.monotonic() - started
        rate = megabytes / max(seconds, 1e-9)
        logger.info("%s: %d of %d files, %.1f MB, %.1f MB/s", label, num_files, len(sizes), megabytes, rate)


def _groups(sizes: dict[str, int | None]) -> Iterator[list[str]]:
    group, num_bytes = [], 0
    for name in sorted(sizes, key=lambda name: (-(sizes[name] or 0), name)):
        group.append(name)
        num_bytes += sizes[name] or 0
        if len(group) >= NUM_LARGE_WORKERS and num_bytes >= GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _get(store: _Local | _Gcs | _S3, files: list[tuple[str, Path, int | None]]) -> None:
    """Downloads (URI, path, expected size or None) and checks the sizes; the store has checked the checksums."""
    for _, path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    store.get(files)
    for uri, path, size in files:
        if size is not None and path.stat().st_size != size:
            raise OSError(f"{uri}: {path.stat().st_size} bytes arrived of {size}; try again")


@contextmanager
def _staged_folder(target: Path) -> Iterator[Path]:
    """A new folder whose files move to `target` if the block ends well.

    It stands beside `target`; where that exists already (a mount, perhaps) inside it, so that both are one file system.
    """
    stage = _temporary(target if target.exists() else target.parent)
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
    for name in sorted(_Local().sizes(os.fspath(stage))):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target / name)


def _temporary(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex}.part"


def _by_size(files: list[Any], size: Callable[[Any], int]) -> tuple[list[Any], list[Any]]:
    """The large files and the others."""
    large, small = [], []
    for file in files:
        (large if size(file) > LARGE_FILE_BYTES else small).append(file)
    return large, small


def _in_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        list(pool.map(function, items))


def _client_key() -> tuple[int, str | None, str | None]:
    """What makes a client unusable when it changes: the process (connections do not survive a fork) and the server."""
    return os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("AWS_ENDPOINT_URL")


@functools.lru_cache(maxsize=4)
def _gcs_client(pid: int, gcs_host: str | None, s3_host: str | None) -> Any:
    from google.cloud import storage

    return storage.Client(project=None)  # objects need no project


def _gcs_size(blob: Any) -> int | None:
    """Bytes that a download gives; unknown where the store unpacks them on the way."""
    return None if blob.content_encoding == "gzip" else blob.size


def _raise_first(results: list[Any], uris: list[str]) -> None:
    failed = [(result, uri) for result, uri in zip(results, uris, strict=True) if isinstance(result, Exception)]
    if failed:
        if len(failed) > 1:
            logger.error("%d of %d files failed; the first is %s", len(failed), len(uris), failed[0][1])
        with _gcs_errors(failed[0][1]):
            raise failed[0][0]


@contextmanager
def _gcs_errors(uri: str) -> Iterator[None]:
    """Turns the client's errors into ours. Not chained: theirs hold upload addresses that open without a password."""
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption

    try:
        yield
    except (GoogleAPIError, GoogleAuthError, DataCorruption, requests.RequestException) as error:
        raise _gcs_error(error, uri) from None


def _gcs_error(error: Exception, uri: str) -> OSError:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption

    if isinstance(error, exceptions.NotFound):
        return FileNotFoundError(f"{uri}: no such object or bucket")
    if isinstance(error, exceptions.PreconditionFailed):
        return FileExistsError(f"{uri}: exists already")
    if isinstance(error, DataCorruption):
        return OSError(_damaged(uri))
    is_auth = isinstance(error, GoogleAuthError) and not isinstance(error, TransportError)
    if is_auth or isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
        remedy = f"grant roles/storage.objectUser on gs://{_split(uri)[0]} to who runs this"
        return PermissionError(f"{uri}: access refused: {_one_line(error)}; {remedy}")
    return OSError(f"{uri}: {type(error).__name__}: {_one_line(error)}")


@functools.lru_cache(maxsize=4)
def _s3_filesystem(pid: int, gcs_host: str | None, s3_host: str | None) -> Any:
    try:
        import s3fs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("s3:// needs the package s3fs, which is not installed; pip install s3fs") from error
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, OSError) as error:
        raise _s3_error(error, uri) from None


def _s3_error(error: Exception, uri: str) -> OSError:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code = answer.get("Error", {}).get("Code")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri}: no such object or bucket")
    if isinstance(error, FileExistsError) or code == "PreconditionFailed":
        return FileExistsError(f"{uri}: exists already")
    if isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError):
        remedy = f"allow s3:GetObject, PutObject, DeleteObject, ListBucket on {_split(uri)[0]} to who runs this"
        return PermissionError(f"{uri}: access refused: {_one_line(error)}; {remedy}")
    return OSError(f"{uri}: {type(error).__name__}: {_one_line(error)}")


def _damaged(uri: str) -> str:
    return f"{uri}: damaged: the bytes do not match their crc32c checksum; upload it again"


def _crc32c(path: Path) -> str:
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


def _one_line(error: Exception) -> str:
    """The message in at most 300 characters of one line, without what could open a door."""
    return SECRET.sub(r"\1...", " ".join(str(error).split()))[:300]
