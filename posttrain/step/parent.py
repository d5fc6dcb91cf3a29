"""Ends a process together with the one that started it, however that ends. Linux only: elsewhere it keeps running."""

import ctypes
import os
import shutil
import signal
import sys

PR_SET_PDEATHSIG = 1  # option of prctl


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent ends. `parent` is the id that the parent has, or had."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that line
        os._exit(1)


def tie_to_parent(command: list[str], signal_name: str = "KILL") -> list[str]:
    """Returns the command in a form that gets this signal when the process that starts it ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal_name, "--", *command] if setpriv else command
