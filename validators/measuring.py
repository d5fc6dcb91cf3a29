"""Takes measurements in processes of their own, each with a time limit: one that raises, hangs or dies hides no other.

name -> function that gives numbers by name · timeouts -> the numbers, how long each took, and a check for each that
gave none

Cheap measurements that need nothing of each other go `side_by_side`; those that share a model go `in_order` in one
process, and the first that fails ends it. What a measurement gives travels as JSON: numbers, strings, lists, mappings,
dataclasses of these.

The processes are forked: they begin at once and see what the gate has read. So a gate loads no torch before it
measures: a fork does not inherit a thread pool or a GPU.
"""

import ctypes
import gc
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from posttrain.verdict import Check, holds

logger = logging.getLogger(__name__)

Measure = Callable[[], dict[str, Any] | None]
Parts = dict[str, Measure]
Numbers = TypeVar("Numbers")  # a gate's frozen dataclass
REPAIR = "Repair what raised."
GRACE_SECONDS = 1.0  # from closing its end of the pipe to the end of a process


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a measurement may take, by its name."""

    default: float
    by_name: dict[str, float] = field(default_factory=dict)

    def of(self, name: str) -> float:
        return self.by_name.get(name, self.default)


@dataclass
class Measured:
    """What measurements gave. A number that is in none of them is missing, and its check does not pass."""

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
    """Each measurement in its own process, as many at once as there are cores.

    `more` gives the last ones. It is called when a core is free for them: what all of them need is made ready while
    others measure.
    """
    return _measure(({name: measure} for some in (lambda: parts, more) for name, measure in some().items()), timeouts)


def in_order(parts: Parts, timeouts: Timeouts) -> Measured:
    """One after the other in one process, which can hold a model; what follows a failure is not run."""
    return _measure(iter([parts] if parts else []), timeouts)


def not_run(names: list[str], because: str) -> Measured:
    """What stands for measurements that a gate does not begin."""
    return Measured(failures=[holds(name, None, detail=because) for name in names])


class _Worker:
    """A process that measures one part after the other, and what it has told so far."""

    def __init__(self, parts: Parts, timeouts: Timeouts):
        context = multiprocessing.get_context("fork")
        self.waiting, self.timeouts = list(parts), timeouts
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(parts, theirs))  # a daemon could start no processes
        self.process.start()
        theirs.close()
        self.started = time.monotonic()  # the part that runs now

    @property
    def deadline(self) -> float:
        return self.started + self.timeouts.of(self.waiting[0])

    def listen(self, found: Measured) -> None:
        """Takes one part's result, or sees that the process has died."""
        name, seconds = self.waiting[0], time.monotonic() - self.started
        try:
            told = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):  # the second: it died while it told
            self._fail(found, f"its process ended without a word, {_ending(self._exit_code())}", seconds)
            return
        if "error" in told:
            self._fail(found, f"could not be measured, {told['error']}", seconds)
            return
        found.numbers = merged(found.numbers, told["numbers"])
        found.seconds[name] = round(seconds, 3)
        self.waiting.pop(0)
        self.started = time.monotonic()

    def time_out(self, found: Measured) -> None:
        self.end()
        limit = self.timeouts.of(self.waiting[0])
        seconds = time.monotonic() - self.started
        check = Check(
            name=self.waiting[0],
            status="timed out",
            detail=f"ended after {seconds:.1f} s, its time limit is {limit:g} s",
            remedy="Raise validation.check_timeouts for it, or see why it hangs.",
        )
        self._stop(found, check, seconds)

    def end(self) -> None:
        """Ends the process and all that it has started, also where it has died and they live on."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # no group: not yet, or no longer; the second on macOS
            self.process.kill()
        self.process.join()
        self.connection.close()

    def _exit_code(self) -> int | None:
        """That of a process that has closed its end of the pipe, which as a rule means that it ends now."""
        deadline = time.monotonic() + GRACE_SECONDS
        # Not join(): once the pipe is closed it heeds no timeout.
        while self.process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.process.exitcode

    def _fail(self, found: Measured, cause: str, seconds: float) -> None:
        self._stop(found, holds(self.waiting[0], False, detail=cause, remedy=REPAIR), seconds)

    def _stop(self, found: Measured, check: Check, seconds: float) -> None:
        """The part that ran has failed: what was to come after it does not run."""
        logger.error("%s", check.sentence)
        name, *others = self.waiting
        found.failures += [check, *not_run(others, f"{name} did not give what it needs").failures]
        found.seconds[name] = round(seconds, 3)
        self.waiting = []


def _measure(groups: Iterator[Parts], timeouts: Timeouts) -> Measured:
    """Each group in its own process. The next one is asked for when a core is free for it."""
    found, running, order = Measured(), [], []
    gc.freeze()  # what was read before the forks is no garbage: no process looks through it again, not even at its end
    with _no_one_left(running):
        while True:
            while len(running) < _num_at_once() and (group := next(groups, None)):
                running.append(_Worker(group, timeouts))
                order += group
            if not running:
                break
            patience = max(0.0, min(worker.deadline for worker in running) - time.monotonic())
            told = wait([worker.connection for worker in running], timeout=patience)
            for worker in running:
                if worker.connection in told:
                    worker.listen(found)
                elif time.monotonic() >= worker.deadline:
                    worker.time_out(found)
            for worker in [worker for worker in running if not worker.waiting]:
                worker.end()
                running.remove(worker)
    found.failures.sort(key=lambda check: order.index(check.name))
    return found


@contextmanager
def _no_one_left(running: list[_Worker]) -> Iterator[None]:
    """Whatever happens to the gate, no measurement goes on without it."""
    try:
        yield
    finally:
        for worker in running:
            worker.end()


def _work(parts: Parts, connection: Connection) -> None:
    """In the new process: measures and tells, part by part."""
    os.setsid()  # a group of its own: a time limit ends its children too
    _die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for name, measure in parts.items():
        try:
            told = {"numbers": to_jsonable_python(measure() or {}, inf_nan_mode="constants")}
        except Exception as error:  # noqa: BLE001  whatever breaks one measurement becomes a failed check of its name
            logger.exception("%s: could not be measured", name)
            told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        connection.send_bytes(json.dumps(told).encode())
        if "error" in told:
            return


def _die_with_parent() -> None:
    """A gate that is killed takes its measurements with it. On Linux alone; elsewhere they end with their work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != multiprocessing.parent_process().pid:  # it was killed before that line
        os._exit(1)


def _num_at_once() -> int:
    """A process for each core, but two at least: one that hangs should not hold up the others."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, num_cores or 1)


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "and then went on"
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"
