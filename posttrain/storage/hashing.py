"""SHA-256 of files, computed while they are copied or sent, so that they need not be read again for it."""

import hashlib
import io
import os
from pathlib import Path

BLOCK_BYTES = 1 << 20  # a block is still in the CPU's cache when it is hashed and written


class HashedFile(io.BufferedReader):
    """A file that is hashed while it is read. Bytes that a repeated request reads again count once."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._sha256, self._num_hashed = hashlib.sha256(), 0

    def read(self, size: int | None = -1, /) -> bytes:
        position = self.tell()
        data = super().read(size)
        if position <= self._num_hashed < position + len(data):
            self._sha256.update(memoryview(data)[self._num_hashed - position :])
            self._num_hashed = position + len(data)
        return data

    def sha256(self) -> str:
        """Returns the digest of the whole file, after reading what has not been read."""
        self.seek(self._num_hashed)
        while self.read(BLOCK_BYTES):
            pass
        return self._sha256.hexdigest()


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """Copies the content of a file and returns its SHA-256."""
    hashed, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    with open(source, "rb", buffering=0) as old, open(target, "wb") as new:
        while count := old.readinto(block):
            hashed.update(block[:count])
            new.write(block[:count])
    return hashed.hexdigest()
