"""The three places where files lie, behind one interface: plain paths, `gs://` and `s3://`.

`posttrain.storage.files` is what everybody else imports.
"""

from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """What `posttrain.storage.files` asks of a place; every problem is an `OSError` on one line that names the URI."""

    @property
    def num_repeats(self) -> int:
        """Requests to this server that this process has sent once more."""

    def read(self, uri: str) -> bytes: ...

    def write(self, uri: str, data: bytes, *, if_absent: bool) -> None:
        """With `if_absent` one of several writers wins; the others get `FileExistsError`."""

    def size(self, uri: str) -> int | None:
        """Bytes of a file, as a download gives them; None: not known before."""

    def sizes(self, uri: str) -> dict[str, int | None]:
        """Name relative to `uri` -> size, for all files below it."""

    def put(self, files: list[tuple[Path, str]]) -> list[str]:
        """Uploads (path, URI) in parallel, each whole when it appears, and gives the SHA-256 of what was sent."""

    def get(self, files: list[tuple[str, Path, int | None]]) -> list[str]:
        """Downloads (URI, path, expected size) in parallel, straight to the paths.

        Checks the checksums and gives the SHA-256 of what arrived.
        """

    def remove(self, uri: str) -> None: ...
