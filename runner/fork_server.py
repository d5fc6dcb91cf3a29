"""Keeps a process that has imported what steps need, and forks steps from it: they start in milliseconds, not seconds.

argv of a `python -m`, its environment and streams -> a process that runs it

`ForkServer` starts that process and sends it requests over a socket; `main` is what it runs, on Linux.
"""

import ctypes
import errno
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from posttrain.config.line import ENDS, LINE, STEPS
from posttrain.step.become import OURS, forget, run
from posttrain.step.parent import die_with_parent, tie_to_parent

IS_POSSIBLE = sys.platform == "linux"  # elsewhere system libraries may not be used after a fork
MAX_REQUEST = 1 << 17  # bytes that fit into one datagram
PR_SET_NAME = 15  # option of prctl
# Not `-m runner.fork_server`: the launcher is not installed, and a step may run in any folder.
LAUNCH = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from runner import fork_server
del sys.path[0]
fork_server.main()
"""
WITH_MODEL = tuple({step.module: None for step in STEPS.values() if step.loads_model})  # modules
AT_WORK = ("validators.custom", "tokenizers", "jinja2")  # imported by steps without a model only when they work
PLAIN = (*{step.module: None for step in (*LINE, *ENDS) if not step.loads_model}, *AT_WORK)
IMPORTS = {"plain": PLAIN, "models": WITH_MODEL}


class Forked:
    """A process that a `ForkServer` has forked, with the interface of `subprocess.Popen`."""

    def __init__(self, ended: int, stderr: int):
        """Reads the pid from `ended`, which later gives the exit code; raises ConnectionError if the server is gone."""
        self.stderr = open(stderr, "rb")  # noqa: SIM115  its reader closes it, like the stderr of a Popen
        self.returncode: int | None = None
        self._ended, self._lock = ended, threading.Lock()
        if not (pid := self._line()):
            self.stderr.close()
            raise ConnectionError("the fork server has ended")
        self.pid = int(pid)

    def __del__(self) -> None:  # not when the process has ended: another thread may still wait for it
        os.close(self._ended)

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the process; returns the exit code, or minus the number of the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: the process still runs after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            with self._lock:  # two threads may wait for it
                if self.returncode is None:
                    self.returncode = int(self._line() or -signal.SIGKILL)
        return self.returncode

    def _line(self) -> str:
        line = bytearray()
        while (byte := os.read(self._ended, 1)) not in (b"", b"\n"):
            line += byte
        return line.decode()


class ForkServer:
    """Runs a process that imports one of `IMPORTS` and then forks steps, until it is closed or this process ends."""

    def __init__(self, imports: str, *, directory: Path, environment: dict[str, str]):
        self.environment = environment
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", LAUNCH, str(theirs.fileno()), imports]
        with theirs:
            self._process = subprocess.Popen(
                tie_to_parent(command),
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def fork(self, argv: list[str], *, environment: dict[str, str], stdout: int) -> Forked:
        """Runs `python -m <argv>` in a session of its own, with a pipe for its stderr.

        Raises:
            OSError: the server has ended, or the request is too large.
        """
        request = json.dumps({"argv": argv, "environment": environment}).encode()
        if len(request) > MAX_REQUEST:
            raise OSError(errno.EMSGSIZE, f"a command and environment of {len(request)} bytes")
        stderr, to_stderr = os.pipe()
        ended, to_ended = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._socket, [request], [stdout, to_stderr, to_ended])
        except OSError:
            os.close(stderr)
            os.close(ended)
            raise
        finally:
            os.close(to_stderr)
            os.close(to_ended)
        return Forked(ended, stderr)

    def close(self) -> None:
        """Ends the server, even while it imports, and with it the processes that it has forked."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks a child for each request and reports how it ended. Returns the request in the child, None in the server."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data:
                pid, to_ended = key.data
                selector.unregister(key.fd)
                os.close(key.fd)
                _report(to_ended, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(to_ended)
                continue
            message, descriptors, *_ = socket.recv_fds(requests, MAX_REQUEST, 3)
            if not message:
                return None
            stdout, stderr, to_ended = descriptors
            if not (pid := os.fork()):
                _close_all(selector, to_ended)
                return json.loads(message) | {"streams": [stdout, stderr]}
            os.close(stdout)
            os.close(stderr)
            if not _report(to_ended, pid):
                os.kill(pid, signal.SIGKILL)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, to_ended))


def _close_all(selector: selectors.BaseSelector, to_ended: int) -> None:
    """Closes in a child what belongs to the server."""
    for key in selector.get_map().values():
        for descriptor in (key.fd, *(key.data or ())[1:]):
            os.close(descriptor)
    selector.close()
    os.close(to_ended)


def _report(descriptor: int, number: int) -> bool:
    """Writes a number; returns whether anyone still reads it."""
    try:
        os.write(descriptor, f"{number}\n".encode())
    except BrokenPipeError:
        return False
    return True


def become(request: dict[str, Any], server: int) -> None:
    """Turns this child of the server into the requested process, which ends with the server."""
    module = [name for name in request["argv"][:2] if not name.startswith("-")][-1]  # behind that of the attempts
    ctypes.CDLL(None).prctl(PR_SET_NAME, module.encode())  # for `ps -o comm` and `top`
    die_with_parent(server)
    os.setsid()
    stdout, stderr = request["streams"]
    for stream, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), stdout, stderr]):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    run(request["argv"])


def main() -> None:
    requests, imports = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    import_all(imports)
    server = os.getpid()
    if request := serve(requests):
        become(request, server)


def import_all(imports: str) -> None:
    """Imports the libraries. Our own modules are dropped again: a child's must not have the state of this process."""
    for name in IMPORTS[imports]:
        with suppress(ImportError):  # the step that needs it reports it
            importlib.import_module(name)
    if imports == "models":
        with suppress(ImportError):
            importlib.import_module("posttrain.train.backend").import_libraries()
    forget(OURS)
    gc.collect()
    gc.freeze()  # a collection in a child then leaves these pages shared
