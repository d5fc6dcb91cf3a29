"""The interface of the three stores: plain paths, `gs://` and `s3://`.

Only `posttrain.storage.files` uses it.
"""

from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """A place for files. Every problem is an `OSError` on one line that names the URI."""

    @property
    def num_repeats(self) -> int:
        """Number of requests to this server that this process has repeated."""

    def read(self, uri: str) -> bytes: ...

    def read_start(self, uri: str, num_bytes: int) -> bytes:
        """Returns the first bytes of a file, or all of a shorter one."""

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        """With `if_absent` one of several writers wins; the others get `FileExistsError`."""

    def size(self, uri: str) -> int | None:
        """Returns the bytes that a download of the file gives; None if that is not known before."""

    def sizes(self, uri: str) -> dict[str, int | None]:
        """Returns the sizes of all files below `uri` by their relative names."""

    def put(self, files: list[tuple[Path, str]]) -> list[str]:
        """Uploads (path, URI) in parallel, each complete when it appears; returns the SHA-256 of the bytes sent."""

    def get(self, files: list[tuple[str, Path, int | None]]) -> list[str]:
        """Downloads (URI, path, expected size) in parallel, straight to the paths.

        Checks the checksums and returns the SHA-256 of the bytes received.
        """

    def remove(self, uri: str) -> None: ...
