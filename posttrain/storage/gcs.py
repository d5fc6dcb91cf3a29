"""`gs://`, through google-cloud-storage.

Every request is repeated by the client's own policy while the server does not answer, or answers 429 or 5xx; every
transfer is checked by its crc32c, both ways. Imported at the first `gs://` URI, because it takes a second.
"""

import base64
import functools
import hashlib
import mimetypes
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import requests
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import storage
from google.cloud.storage import Blob
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from posttrain.storage import hashing, transfer
from posttrain.storage.address import prefix, split, split_file
from posttrain.storage.hashing import HashedFile

UPLOAD_CHUNK_BYTES = 28 << 20  # a multiple of 256 KiB, as resumable uploads demand
DOWNLOAD_CHUNK_BYTES = 16 << 20
NUM_STARTS = 5  # attempts at an upload whose session the server loses
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 1, 10  # between repeats, so that a server that is back is noticed soon

File = tuple[Path, str]  # path, URI


@dataclass(frozen=True)
class Connection:
    client: storage.Client
    retry: Retry
    repeats: transfer.Repeats


class Gcs:
    def __init__(self, uri: str) -> None:
        with _errors(uri):
            # Connections do not survive a fork.
            connection = _connect(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))
        self._client, self._retry, self._repeats = connection.client, connection.retry, connection.repeats

    @property
    def num_repeats(self) -> int:
        return self._repeats.number

    def read(self, uri: str) -> bytes:
        # In one request: the client does not check the checksum of a download that broke off and went on.
        with _errors(uri):
            return self._blob(uri).download_as_bytes(checksum="crc32c", single_shot_download=True, retry=self._retry)

    def read_start(self, uri: str, num_bytes: int) -> bytes:
        with _errors(uri):  # the checksum is that of the whole
            return self._blob(uri).download_as_bytes(end=num_bytes - 1, checksum=None, retry=self._retry)

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        blob, writer = self._blob(uri), uuid.uuid4().hex
        condition = {"if_generation_match": 0} if if_absent else {}
        if if_absent:
            blob.metadata = {"writer": writer}
        with _errors(uri):
            try:
                blob.upload_from_string(data, _content_type(uri), checksum="crc32c", retry=self._retry, **condition)
            except exceptions.PreconditionFailed:
                if not self._is_written_by(writer, uri):
                    raise

    def _is_written_by(self, writer: str, uri: str) -> bool:
        """Tells whether this write made the object: its answer got lost, and the repeat found the name taken."""
        blob = self._blob(uri)
        blob.reload(retry=self._retry)
        return (blob.metadata or {}).get("writer") == writer

    def size(self, uri: str) -> int | None:
        with _errors(uri):
            blob = self._blob(uri)
            blob.reload(retry=self._retry)
            return _size(blob)

    def sizes(self, uri: str) -> dict[str, int | None]:
        start = len(prefix(uri))
        return {blob.name[start:]: _size(blob) for blob in self._below(uri) if not blob.name.endswith("/")}

    def put(self, files: list[File]) -> list[str]:
        large, small = transfer.by_size(files, lambda file: file[0].stat().st_size)
        sent = zip(large, transfer.in_parallel(self._put, large, num_workers=transfer.NUM_LARGE_WORKERS), strict=True)
        digests = dict(sent) | dict(zip(small, transfer.in_parallel(self._put, small), strict=True))
        return [digests[file] for file in files]

    def _put(self, file: File) -> str:
        """Uploads a file, from the start again if the upload breaks off."""
        path, uri = file
        with _errors(uri):
            for _ in range(NUM_STARTS):
                try:
                    return self._send(path, uri)
                except (exceptions.GoogleAPICallError, DataCorruption, ValueError) as error:
                    if not _broke_off(error):
                        raise
                self._repeats.note("an upload was interrupted")
        raise OSError(f"{uri}: the upload was interrupted {NUM_STARTS} times; try again later")

    def _send(self, path: Path, uri: str) -> str:
        with HashedFile(path) as file:
            self._blob(uri, chunk_size=UPLOAD_CHUNK_BYTES).upload_from_file(
                file,
                size=os.fstat(file.fileno()).st_size,
                content_type=_content_type(uri),
                checksum="crc32c",
                retry=self._retry,
            )
            return file.sha256()

    def get(self, files: list[tuple[str, Path, int | None]]) -> list[str]:
        large, small = transfer.by_size(files, lambda file: file[2] or 0)
        digests = dict(zip(small, transfer.in_parallel(self._get_small, small), strict=True))
        digests |= {file: self._get_large(file[0], file[1]) for file in large}
        return [digests[file] for file in files]

    def _get_small(self, file: tuple[str, Path, int | None]) -> str:
        uri, path, _ = file
        with _errors(uri):
            self._blob(uri).download_to_filename(
                str(path), checksum="crc32c", single_shot_download=True, retry=self._retry
            )
        return hashing.sha256(path)

    def _get_large(self, uri: str, path: Path) -> str:
        """Downloads in pieces, several at once; the checksums are computed in order as pieces arrive."""
        with _errors(uri):
            blob = self._blob(uri)
            blob.reload(retry=self._retry)
        path.touch()
        crc32c, sha256 = google_crc32c.Checksum(), hashlib.sha256()
        fetch = partial(self._get_piece, blob, path)
        try:
            with _errors(uri), open(path, "rb", buffering=0) as file, ThreadPoolExecutor(transfer.NUM_WORKERS) as pool:
                for _ in pool.map(fetch, range(0, blob.size, DOWNLOAD_CHUNK_BYTES)):
                    piece = file.read(DOWNLOAD_CHUNK_BYTES)
                    crc32c.update(piece)
                    sha256.update(piece)
        except FileNotFoundError:  # each piece asks for the generation that `reload` has seen
            raise OSError(f"{uri}: was replaced or removed while it was downloaded; try again") from None
        if base64.b64encode(crc32c.digest()).decode() != blob.crc32c:
            raise OSError(transfer.damaged(uri))
        return sha256.hexdigest()

    def _get_piece(self, blob: Blob, path: Path, start: int) -> None:
        end = min(start + DOWNLOAD_CHUNK_BYTES, blob.size) - 1
        with open(path, "rb+") as file:
            file.seek(start)
            blob.download_to_file(
                file, start=start, end=end, checksum=None, single_shot_download=True, retry=self._retry
            )

    def remove(self, uri: str) -> None:
        bucket = self._client.bucket(split(uri)[0])
        names = [split(uri)[1], *(blob.name for blob in self._below(uri))]

        def delete(name: str) -> None:
            try:
                with _errors(uri):
                    bucket.blob(name).delete(retry=self._retry)
            except FileNotFoundError:
                return

        transfer.in_parallel(delete, names)

    def _blob(self, uri: str, *, chunk_size: int | None = None) -> Blob:
        bucket, name = split_file(uri)
        return self._client.bucket(bucket).blob(name, chunk_size=chunk_size)

    def _below(self, uri: str) -> list[Blob]:
        fields = "items(name,size,contentEncoding),nextPageToken"
        with _errors(uri):
            blobs = self._client.list_blobs(split(uri)[0], prefix=prefix(uri), fields=fields, retry=self._retry)
            return list(blobs)


@functools.lru_cache(maxsize=4)
def _connect(pid: int, host: str | None) -> Connection:
    repeats = transfer.Repeats("gs://" if host is None else f"gs:// at {host}")
    retry = Retry(
        DEFAULT_RETRY._predicate,  # its `with_` methods can change all but `on_error`
        initial=FIRST_DELAY_SECONDS,
        maximum=MAX_DELAY_SECONDS,
        timeout=transfer.PATIENCE_SECONDS,
        on_error=lambda error: repeats.note(_cause(error)),
    )
    return Connection(storage.Client(project=None), retry, repeats)  # objects need no project


def _content_type(uri: str) -> str:
    return mimetypes.guess_type(uri)[0] or "application/octet-stream"


def _size(blob: Blob) -> int | None:
    """Returns the bytes that a download gives; None where the store unzips them on the way."""
    return None if blob.content_encoding == "gzip" else blob.size


def _broke_off(error: Exception) -> bool:
    """Tells whether an upload in chunks must start again.

    The server was restarted and no longer knows it; it kept less of a chunk than it was sent (ValueError); or the bytes
    have another checksum, and the client has deleted them. A POST only starts an upload.
    """
    if isinstance(error, exceptions.GoogleAPICallError):
        return error.code in (400, 404, 410) and error.response.request.method != "POST"
    return isinstance(error, ValueError | DataCorruption)


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns the client's errors into ours, not chained: theirs contain upload URLs that need no password."""
    try:
        yield
    except (exceptions.GoogleAPIError, GoogleAuthError, DataCorruption, requests.RequestException) as error:
        raise _error(error, uri) from None


def _error(error: Exception, uri: str) -> OSError:
    if isinstance(error, exceptions.NotFound):
        return FileNotFoundError(f"{uri}: no such object or bucket")
    if isinstance(error, exceptions.PreconditionFailed):
        return FileExistsError(f"{uri}: exists already")
    if isinstance(error, DataCorruption):
        return OSError(transfer.damaged(uri))
    is_auth = isinstance(error, GoogleAuthError) and not isinstance(error, TransportError)
    if is_auth or isinstance(error, exceptions.Forbidden | exceptions.Unauthorized):
        remedy = f"grant roles/storage.objectUser on gs://{split(uri)[0]} to who runs this"
        return PermissionError(f"{uri}: access refused: {transfer.one_line(error)}; {remedy}")
    if isinstance(error, exceptions.RetryError) and error.cause is not None:
        return OSError(
            f"{uri}: {_cause(error.cause)} for {transfer.PATIENCE_SECONDS / 60:.0f} minutes; try again later"
        )
    return OSError(f"{uri}: {type(error).__name__}: {transfer.one_line(error)}")


def _cause(error: Any) -> str:
    """Returns the reason why a request is repeated."""
    response = getattr(error, "response", None)
    return f"no answer ({type(error).__name__})" if response is None else f"the server answers {response.status_code}"
