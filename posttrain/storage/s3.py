"""`s3://` on AWS and on compatible servers (`AWS_ENDPOINT_URL`), through s3fs.

Requests are repeated by the policies of botocore and s3fs while the server does not answer, or answers 429 or 5xx.
Uploaded files have their crc32c as metadata, against which a download is checked. Imported at the first `s3://` URI.
A process that is killed during an upload leaves nameless parts behind: give the bucket a lifecycle rule
AbortIncompleteMultipartUpload.
"""

import base64
import functools
import mimetypes
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import google_crc32c

try:
    import s3fs
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("s3:// needs the package s3fs, which is not installed; pip install s3fs") from error
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from posttrain.storage import transfer
from posttrain.storage.address import prefix, split, split_file
from posttrain.storage.hashing import BLOCK_BYTES, HashedFile

PART_BYTES = 16 << 20  # S3 takes at most 10,000 parts: files up to 160 GB
# botocore sends each request up to 5 times, within 7.5 s on average; s3fs waits 0.1 to 15 s and starts over. This many
# rounds take about PATIENCE_SECONDS.
NUM_ROUNDS = 20
EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "provided token has expired")


class S3:
    def __init__(self) -> None:
        # Connections do not survive a fork.
        self._fs = _connect(os.getpid(), os.environ.get("AWS_ENDPOINT_URL"))

    @property
    def num_repeats(self) -> int:
        return self._fs.repeats.number

    def read(self, uri: str) -> bytes:
        with _errors(uri):
            return self._fs.cat_file("/".join(split_file(uri)))

    def read_start(self, uri: str, num_bytes: int) -> bytes:
        with _errors(uri):
            return self._fs.cat_file("/".join(split_file(uri)), start=0, end=num_bytes)

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        mode, metadata = ("create", {"writer": uuid.uuid4().hex}) if if_absent else ("overwrite", {})
        content_type = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        try:
            with _errors(uri):
                self._fs.pipe_file(
                    "/".join(split_file(uri)), data, mode=mode, ContentType=content_type, Metadata=metadata
                )
        except FileExistsError:
            # It may be this write's own file: its answer got lost, and the repeat found the name taken.
            if self._head(uri)["Metadata"].get("writer") != metadata["writer"]:
                raise

    def size(self, uri: str) -> int:
        return self._head(uri)["ContentLength"]

    def sizes(self, uri: str) -> dict[str, int]:
        start = len(prefix(uri))
        return {key[start:]: size for key, size in self._below(uri).items() if not key.endswith("/")}

    def put(self, files: list[tuple[Path, str]]) -> list[str]:
        def send(file: tuple[Path, str]) -> str:
            path, uri = file
            crc32c, sha256 = _checksums(path)
            with _errors(uri):
                self._fs.put_file(
                    str(path),
                    "/".join(split_file(uri)),
                    chunksize=PART_BYTES,
                    max_concurrency=2,
                    Metadata={"crc32c": crc32c},
                )
            return sha256

        return transfer.in_parallel(send, files)

    def get(self, files: list[tuple[str, Path, int]]) -> list[str]:
        def fetch(file: tuple[str, Path, int]) -> str:
            uri, path, _ = file
            with _errors(uri):
                self._fs.get_file("/".join(split_file(uri)), str(path))
            expected = self._head(uri)["Metadata"].get("crc32c")
            crc32c, sha256 = _checksums(path)
            if expected and expected != crc32c:
                raise OSError(transfer.damaged(uri))
            return sha256

        return transfer.in_parallel(fetch, files)

    def remove(self, uri: str) -> None:
        bucket, name = split(uri)
        keys = [name, *self._below(uri)]
        with _errors(uri):
            transfer.in_parallel(lambda key: self._fs.rm_file(f"{bucket}/{key}"), keys)

    def _head(self, uri: str) -> dict[str, Any]:
        bucket, name = split_file(uri)
        with _errors(uri):
            return self._fs.call_s3("head_object", Bucket=bucket, Key=name)

    def _below(self, uri: str) -> dict[str, int]:
        """Returns the sizes of all objects below `uri` by key."""
        bucket, sizes, page = split(uri)[0], {}, {}
        while True:
            with _errors(uri):
                answer = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix(uri), **page)
            sizes |= {item["Key"]: item["Size"] for item in answer.get("Contents", [])}
            if not answer.get("IsTruncated"):
                return sizes
            page = {"ContinuationToken": answer["NextContinuationToken"]}


class _FileSystem(s3fs.S3FileSystem):
    """Notes each repeated request; botocore and s3fs decide how often and when."""

    cachable = False
    retries = NUM_ROUNDS

    def __init__(self, repeats: transfer.Repeats) -> None:
        super().__init__(use_listings_cache=False)
        self.repeats = repeats

    async def set_session(self, **options: Any) -> Any:
        client = await super().set_session(**options)  # often a new one
        client.meta.events.register("needs-retry.s3", self._note, unique_id="posttrain")
        return client

    def _note(self, response: tuple | None, caught_exception: Exception | None, **_: Any) -> None:
        status = response[0].status_code if response else None
        if caught_exception is not None:
            self.repeats.note(f"no answer ({type(caught_exception).__name__})")
        elif _is_busy(status):
            self.repeats.note(f"the server answers {status}")


@functools.lru_cache(maxsize=4)
def _connect(pid: int, host: str | None) -> _FileSystem:
    s3fs.core.set_custom_error_handler(_is_transient)
    return _FileSystem(transfer.Repeats("s3://" if host is None else f"s3:// at {host}"))


def _is_busy(status: int | None) -> bool:
    return status is not None and (status == 429 or status >= 500)


def _is_transient(error: Exception) -> bool:
    """Tells whether s3fs repeats a request. After a 409 neither of two conditional writes may have won."""
    answer = getattr(error, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return _is_busy(status) or answer.get("Error", {}).get("Code") == "ConditionalRequestConflict"


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, BotoCoreError, ClientError, OSError) as error:
        raise _error(error, uri) from None


def _error(error: Exception, uri: str) -> OSError:
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    code = answer.get("Error", {}).get("Code")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri}: no such object or bucket")
    if isinstance(error, FileExistsError) or code == "PreconditionFailed":
        return FileExistsError(f"{uri}: exists already")
    if code in EXPIRED or any(word in str(error) for word in EXPIRED):
        remedy = "renew the credentials of who runs this, and run again: what is finished is reused"
        return PermissionError(f"{uri}: the credentials have expired: {transfer.one_line(error)}; {remedy}")
    if isinstance(error, PermissionError | NoCredentialsError | PartialCredentialsError):
        remedy = f"allow s3:GetObject, PutObject, DeleteObject, ListBucket on {split(uri)[0]} to who runs this"
        return PermissionError(f"{uri}: access refused: {transfer.one_line(error)}; {remedy}")
    return OSError(f"{uri}: {type(error).__name__}: {transfer.one_line(error)}")


def _checksums(path: Path) -> tuple[str, str]:
    """Returns crc32c and SHA-256 of a file, computed in one pass."""
    crc32c = google_crc32c.Checksum()
    with HashedFile(path) as file:
        while block := file.read(BLOCK_BYTES):
            crc32c.update(block)
        return base64.b64encode(crc32c.digest()).decode(), file.sha256()
