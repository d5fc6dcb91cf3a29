"""Signals that end a run: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed.

Imports nothing that takes time: `run_pipeline.py` sets the handlers before it imports anything else.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from runner.exit_codes import INTERRUPTED


def handle_signals(handler: Callable) -> None:
    """Sets the handler of Ctrl-C too, because a shell may have it ignored in a job that runs in the background.

    A terminal that is closed sends SIGHUP; where that is ignored, as under nohup, it stays so.
    """
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


def leave_at_once(command: list[str], number: int) -> None:
    """Ends a process that still imports: nothing has begun that could be saved."""
    text = how_to_go_on(name_of(number), command)
    with suppress(OSError):  # the terminal is gone
        os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, f"{text}\n".encode())
    os._exit(INTERRUPTED)


def interrupt(number: int, _) -> None:
    """Ends the run at SIGINT, SIGTERM and SIGHUP alike: the running steps save their state and the run is reported."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # shell and kernel both send it when a terminal is closed
    raise KeyboardInterrupt(name_of(number))


def how_to_go_on(cause: str, command: list[str]) -> str:
    return f"Interrupted ({cause}). To continue, run:\n{shlex.join(command)}"


def name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def cause_of(interrupt: KeyboardInterrupt) -> str:
    return str(interrupt) or "Ctrl-C"
