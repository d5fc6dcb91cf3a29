"""Takes measurements in processes with a time limit each, so that one that raises, hangs or dies hides no other.

functions that return numbers, by name · timeouts -> the numbers, the seconds that each took, a check for each failure

Cheap, independent measurements run `side_by_side`; those that share a model run `in_order` in one process, which ends
with the first failure. Results travel as JSON: numbers, strings, lists, mappings, and dataclasses of these.

The processes are forked: they start at once and see what the gate has read. A gate therefore loads no torch before it
measures: a fork does not inherit a thread pool or a GPU.
"""

import gc
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from posttrain.step.parent import die_with_parent
from posttrain.verdict import Check, holds

logger = logging.getLogger(__name__)

Measure = Callable[[], dict[str, Any] | None]
Parts = dict[str, Measure]
Numbers = TypeVar("Numbers")  # a gate's frozen dataclass
REPAIR = "See this step's log for the cause."
READ_BYTES = 1 << 20  # at once
GRACE_SECONDS = 1.0  # for a process to end after it closed its end of the pipe


@dataclass(frozen=True)
class Timeouts:
    """Seconds that each measurement may take."""

    default: float
    by_name: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> float:
        return self.by_name.get(name, self.default)


@dataclass
class Measured:
    """Results of measurements. A number that none of them returned is missing, and its check does not pass."""

    numbers: dict[str, Any] = field(default_factory=dict)
    failures: list[Check] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by measurement

    def __or__(self, other: "Measured") -> "Measured":
        numbers = merged(self.numbers, other.numbers)
        return Measured(numbers, [*self.failures, *other.failures], self.seconds | other.seconds)

    def read(self, kind: type[Numbers]) -> Numbers:
        """The numbers as a gate's own dataclass, in which what could not be measured keeps its default, None."""
        return TypeAdapter(kind).validate_python(self.numbers)


def merged(numbers: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Joins two mappings and the mappings inside them: several parts may measure the same model or the same file."""
    both = (name for name in numbers.keys() & more.keys() if isinstance(numbers[name], dict))
    return numbers | more | {name: merged(numbers[name], more[name]) for name in both if isinstance(more[name], dict)}


def side_by_side(parts: Parts, timeouts: Timeouts, more: Callable[[], Parts] = dict) -> Measured:
    """Runs each measurement in its own process, as many at once as there are cores.

    Args:
        more: returns the last measurements. It is called when a core is free for them, so that what they share is
            prepared while others are being measured.
    """
    return _measure(({name: measure} for some in (lambda: parts, more) for name, measure in some().items()), timeouts)


def in_order(parts: Parts, timeouts: Timeouts) -> Measured:
    """Runs one after the other in one process, which can keep a model; whatever follows a failure is not run."""
    return _measure(iter([parts] if parts else []), timeouts)


def whole(measured: Measured) -> Measured:
    """Returns the measurements if none has failed.

    Raises:
        RuntimeError: with what has failed.
    """
    if measured.failures:
        raise RuntimeError("; ".join(check.sentence for check in measured.failures))
    return measured


def not_run(names: list[str], because: str) -> Measured:
    """Checks in place of measurements that a gate does not start."""
    return Measured(failures=[holds(name, None, detail=because) for name in names])


class _Worker:
    """A process that measures one part after the other."""

    def __init__(self, parts: Parts, timeouts: Timeouts):
        context = multiprocessing.get_context("fork")
        self.waiting, self.timeouts = list(parts), timeouts
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(parts, theirs))  # a daemon could start no processes
        self.process.start()
        theirs.close()
        self.received = bytearray()  # of a message whose end is still to come
        self.started = time.monotonic()  # the part that runs now

    @property
    def deadline(self) -> float:
        return self.started + self.timeouts.of(self.waiting[0])

    def listen(self, measured: Measured) -> None:
        """Receives what there is of the parts' results, or notices that the process has died.

        It never waits: a check may write to the pipe itself, and leave a message without its end.
        """
        chunk = os.read(self.connection.fileno(), READ_BYTES)
        if not chunk:
            seconds = time.monotonic() - self.started
            self._fail(measured, f"its process ended without a result, {_ending(self._exit_code())}", seconds)
            return
        before = len(self.received)
        self.received += chunk
        while self.waiting and (end := self.received.find(b"\n", before)) >= 0:
            line, before = bytes(self.received[:end]), 0
            del self.received[: end + 1]
            self._take(line, measured)

    def _take(self, line: bytes, measured: Measured) -> None:
        """Takes the result of the part that runs, one line of JSON."""
        name, seconds = self.waiting[0], time.monotonic() - self.started
        try:
            message = json.loads(line)
            is_result = isinstance(message, dict) and ("error" in message or isinstance(message["numbers"], dict))
        except (ValueError, KeyError, RecursionError):
            is_result = False
        if not is_result:
            self._fail(measured, "its process sent something that is no result", seconds)
            return
        if "error" in message:
            self._fail(measured, f"could not be measured, {message['error']}", seconds)
            return
        measured.numbers = merged(measured.numbers, message["numbers"])
        measured.seconds[name] = round(seconds, 3)
        self.waiting.pop(0)
        self.started = time.monotonic()

    def time_out(self, measured: Measured) -> None:
        """Records that the running part took too long; its process is about to be killed."""
        limit = self.timeouts.of(self.waiting[0])
        seconds = time.monotonic() - self.started
        check = Check(
            name=self.waiting[0],
            status="timed out",
            detail=f"killed after {seconds:.1f} s, its time limit is {limit:g} s",
            remedy=f"Set validation.check_timeouts.{self.waiting[0]} to more seconds, or find out why it hangs.",
        )
        self._stop(measured, check, seconds)

    def end(self) -> None:
        """Kills the process and everything it started, even if it is dead and its children live on."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has no group yet, or no longer (PermissionError on macOS)
            self.process.kill()
        self.process.join()
        self.connection.close()

    def _exit_code(self) -> int | None:
        """Exit code of a process that has closed its end of the pipe, and so should be about to end."""
        deadline = time.monotonic() + GRACE_SECONDS
        # join() would ignore its timeout once the pipe is closed.
        while self.process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.process.exitcode

    def _fail(self, measured: Measured, cause: str, seconds: float) -> None:
        self._stop(measured, holds(self.waiting[0], False, detail=cause, remedy=REPAIR), seconds)

    def _stop(self, measured: Measured, check: Check, seconds: float) -> None:
        """Records the failure of the running part; the parts after it are not run."""
        logger.error("%s", check.sentence)
        name, *others = self.waiting
        measured.failures += [check, *not_run(others, f"needs {name}, which failed").failures]
        measured.seconds[name] = round(seconds, 3)
        self.waiting = []


def _measure(groups: Iterator[Parts], timeouts: Timeouts) -> Measured:
    """Runs each group in its own process, and takes the next group when a core is free for it."""
    measured, running, order = Measured(), [], []
    gc.freeze()  # spares every fork from collecting what was read before it
    with _no_one_left(running):
        while True:
            while len(running) < _num_at_once() and (group := next(groups, None)):
                running.append(_Worker(group, timeouts))
                order += group
            if not running:
                break
            patience = max(0.0, min(worker.deadline for worker in running) - time.monotonic())
            ready = wait([worker.connection for worker in running], timeout=patience)
            for worker in running:
                if worker.connection in ready:
                    worker.listen(measured)
                elif time.monotonic() >= worker.deadline:
                    worker.time_out(measured)
            for worker in [worker for worker in running if not worker.waiting]:
                worker.end()
                running.remove(worker)
    measured.failures.sort(key=lambda check: order.index(check.name))
    return measured


@contextmanager
def _no_one_left(running: list[_Worker]) -> Iterator[None]:
    """Ends every measurement when the gate leaves, for whatever reason."""
    try:
        yield
    finally:
        for worker in running:
            worker.end()


def _work(parts: Parts, connection: Connection) -> None:
    """Measures part by part in the new process, and sends each result."""
    os.setsid()  # its own group, so that its children can be killed with it
    die_with_parent(multiprocessing.parent_process().pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name, measure in parts.items():
        try:
            message = {"numbers": to_jsonable_python(measure() or {}, inf_nan_mode="constants")}
        except Exception as error:  # noqa: BLE001  any error becomes a failed check named after the measurement
            logger.exception("%s: could not be measured", name)
            message = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        _write(connection.fileno(), json.dumps(message).encode() + b"\n")
        if "error" in message:
            return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _num_at_once() -> int:
    """One process per core, but at least two, so that a hanging one does not hold up the others."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, num_cores or 1)


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "but it is still running"
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
