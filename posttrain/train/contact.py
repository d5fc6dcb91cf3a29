"""Keeps the first rank of an attempt in contact with the step that ordered it.

order, newest progress line of the log -> progress.txt every few seconds; lease.json -> whether anybody still waits

Both are done beside the training, which never waits for the storage.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from posttrain import storage
from posttrain.step.beside import beside
from posttrain.step.progress import RESUMED, progress_of
from posttrain.train.order import PROGRESS, LeaseReader, Order

PROGRESS_SECONDS = 15.0  # between two writes of the progress
READS_PER_LAPSE = 10  # reads of the lease in the time after which it lapses

logger = logging.getLogger(__name__)


class Contact(logging.Handler):
    """Follows the log while it is kept, and knows whether the lease has lapsed."""

    def __init__(self, order: Order):
        super().__init__()
        self.order, self._has_lapsed = order, False
        self._line = self._written = ""

    def has_lapsed(self) -> bool:
        """Tells whether the lease had lapsed when it was last read."""
        return self._has_lapsed

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if progress_of(line) or RESUMED.search(line):
            self._line = line

    @contextmanager
    def kept(self, joined: str) -> Iterator[None]:
        """Keeps the contact while the block runs; `joined` is the first line of its progress."""
        lease = LeaseReader(self.order, clock=time.monotonic)
        self._line = joined
        self._write()
        logging.root.addHandler(self)
        read = partial(_every, self.order.lapse_seconds / READS_PER_LAPSE, partial(self._read, lease))
        try:
            with beside(partial(_every, PROGRESS_SECONDS, self._write), name="progress"), beside(read, name="lease"):
                yield
        finally:
            logging.root.removeHandler(self)

    def _read(self, lease: LeaseReader) -> None:
        self._has_lapsed = lease.has_lapsed()

    def _write(self) -> None:
        """Writes the newest line, unless it is written already. The training goes on without it."""
        line = self._line
        if line == self._written:
            return
        try:
            storage.write_bytes(self.order.uri(PROGRESS), f"{line}\n".encode())
            self._written = line
        except OSError as error:
            logger.warning("the progress could not be written: %s", error)


def _every(seconds: float, do: Callable[[], None], over: threading.Event) -> None:
    while not over.wait(seconds):
        do()
