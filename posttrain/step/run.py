"""The run that this process belongs to: its id, its logging, how a step leaves it unfinished."""

import logging
import os
import sys

from posttrain.config import EXIT_AGAIN, FRESH_ENV, RUN_ID_ENV, masking
from posttrain.step import progress


def configure_logging() -> None:
    """One log format for every step: plain lines on stderr, without secrets."""
    masking.mask_output()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "urllib3", "google", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    progress.follow()  # in a rank


class OneLine(logging.Formatter):
    """Formats a message as one line of visible characters: ids of rows and names of files may hold anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        if text.isprintable():
            return text
        return "".join(char if char.isprintable() else f"\\u{{{ord(char):x}}}" for char in text)


def run_id() -> str:
    """Returns the id of the run that this process belongs to; `manual` when a step is started by hand."""
    return os.environ.get(RUN_ID_ENV) or "manual"


def is_fresh() -> bool:
    """Returns whether this run reuses nothing of earlier ones."""
    return os.environ.get(FRESH_ENV) == "1"


class Unfinished(SystemExit):
    """A stage has saved its state and exits with `EXIT_AGAIN`."""

    def __init__(self, message: str):
        super().__init__(EXIT_AGAIN)
        self.message = message

    def __str__(self) -> str:
        return self.message
