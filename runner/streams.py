"""Standard streams whose reader may go away: a closed terminal, `| head`, a full disk, `>&-`.

Whoever looks on decides nothing: from then on what is written goes nowhere, and the run goes on to its end.
"""

import os
import sys
from typing import Any, TextIO

NAMES = ("stdin", "stdout", "stderr")  # by file descriptor


class Told(KeyboardInterrupt):
    """An interrupt after which the terminal says already how to go on."""


class LastingStream:
    """A text stream that stays writable when nobody reads it any longer."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """Sends what is still in the buffer, and whatever follows, nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def keep_open() -> None:
    """Makes the standard streams of this process last, and opens those that were closed when it started.

    A file that is opened later must not get their numbers: what is printed would be written into it.
    """
    for descriptor, name in enumerate(NAMES):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest number that is free is this one
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
        if name != "stdin" and not isinstance(getattr(sys, name), LastingStream):
            setattr(sys, name, LastingStream(getattr(sys, name)))
