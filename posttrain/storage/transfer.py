"""Shared by the stores: how much they transfer at once, how long they wait for a server, how they report problems."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

NUM_WORKERS = 8  # files in flight
NUM_LARGE_WORKERS = 4  # large files in flight to the server: the client has two chunks of each in memory
LARGE_FILE_BYTES = 32 << 20  # larger files go in chunks, so that memory stays below about 300 MB

# A server may be down for minutes; a pod is killed ten minutes after the deadline of its stage.
PATIENCE_SECONDS = 300
SECONDS_BETWEEN_LINES = 60

T = TypeVar("T")
R = TypeVar("R")

SECRET = re.compile(r"(?i)((?:upload_id|token|signature|credential|key)[\w-]*[=:])[^&\s\"',]+")

logger = logging.getLogger(__name__)


class Repeats:
    """Counts the repeated requests to one server, and logs them in at most one line a minute."""

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
    """Splits files into large and small ones."""
    large, small = [], []
    for file in files:
        (large if size(file) > LARGE_FILE_BYTES else small).append(file)
    return large, small


def damaged(uri: str) -> str:
    return f"{uri}: damaged: the bytes do not match their crc32c checksum; upload it again"


def one_line(error: BaseException) -> str:
    """Returns the message in at most 300 characters on one line, without tokens and signatures."""
    return SECRET.sub(r"\1...", " ".join(str(error).split()))[:300]
