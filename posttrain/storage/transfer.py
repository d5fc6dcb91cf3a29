"""What the stores share: how much at once, how long a server is waited for, and how a problem reads."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

NUM_WORKERS = 8  # files in flight
NUM_LARGE_WORKERS = 4  # large files going up at once: the client holds two chunks of each in memory
LARGE_FILE_BYTES = 32 << 20  # from here on files go in chunks, so that memory stays below about 300 MB

# A server may be away for minutes; a pod is killed ten minutes after the deadline of its stage.
PATIENCE_SECONDS = 300
SECONDS_BETWEEN_LINES = 60

T = TypeVar("T")
R = TypeVar("R")

SECRET = re.compile(r"(?i)((?:upload_id|token|signature|credential|key)[\w-]*[=:])[^&\s\"',]+")

logger = logging.getLogger(__name__)


class Repeats:
    """Counts the requests to one server that are sent once more, and tells of them in at most one line a minute."""

    def __init__(self, server: str) -> None:
        self.server, self.number = server, 0
        self._lock, self._silent_until = threading.Lock(), 0.0

    def note(self, cause: str) -> None:
        with self._lock:
            self.number += 1
            now = time.monotonic()
            if now < self._silent_until:
                return
            self._silent_until = now + SECONDS_BETWEEN_LINES
        logger.warning("%s: %s; asking again for up to %d minutes", self.server, cause, PATIENCE_SECONDS // 60)


def in_parallel(function: Callable[[T], R], items: Iterable[T], *, num_workers: int = NUM_WORKERS) -> list[R]:
    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(function, items))


def by_size(files: list[Any], size: Callable[[Any], int]) -> tuple[list[Any], list[Any]]:
    """The large files and the others."""
    large, small = [], []
    for file in files:
        (large if size(file) > LARGE_FILE_BYTES else small).append(file)
    return large, small


def damaged(uri: str) -> str:
    return f"{uri}: damaged: the bytes do not match their crc32c checksum; upload it again"


def one_line(error: BaseException) -> str:
    """The message in at most 300 characters of one line, without what could open a door."""
    return SECRET.sub(r"\1...", " ".join(str(error).split()))[:300]
