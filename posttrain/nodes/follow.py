"""Follows the TrainJob of an attempt to its end, and meanwhile renews its lease.

a TrainJob, the files of its attempt -> how it ended
"""

import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count

from posttrain import storage
from posttrain.nodes.kubernetes import (
    DELETE_SECONDS,
    Kubernetes,
    Object,
    T,
    condition,
    has_ended,
    is_over,
    until_answered,
    wait_of,
)
from posttrain.step.beside import beside
from posttrain.step.run import Unfinished
from posttrain.train.order import LEASE, PROGRESS, RENEW_SECONDS, Ending, Order, read_ending

LOOK_SECONDS = 15  # between two looks at the attempt's files, if nothing changes in the TrainJob
END_SECONDS = 1.0  # between two looks at pods that are to end
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

logger = logging.getLogger(__name__)


class Stopped(Unfinished):
    """Somebody has asked this step to end."""


def follow(api: Kubernetes, name: str, order: Order, *, start_seconds: float, limit_seconds: float) -> Ending:
    """Returns how an attempt ended, once one of its ranks has said so.

    Raises:
        TimeoutError: its ranks have not met in time, or its time was up, before any has said how it ended.
        RuntimeError: its pods have ended, or are gone, and none has said how.
    """
    began, teller = time.monotonic(), _Teller(api, name, order)
    while True:
        ending = read_ending(order)
        teller.tell_progress()
        if ending:
            return ending
        left = began + (limit_seconds if teller.progress else start_seconds) - time.monotonic()
        if left <= 0:
            delete_if_possible(api, name)
            raise TimeoutError(teller.lateness(limit_seconds if teller.progress else start_seconds))
        try:
            job = api.get(name)
        except OSError as error:
            logger.warning("TrainJob %s goes on, but cannot be looked at: %s", name, " ".join(str(error).split()))
            time.sleep(min(LOOK_SECONDS, left))
            continue
        if has_ended(job):
            return read_ending(order) or _raise_silent(name, job)
        teller.tell_state(job)
        with suppress(OSError):  # then it is looked at again
            api.wait_for_change(job, seconds=LOOK_SECONDS)


def wait_until_ended(api: Kubernetes, name: str, *, patience_seconds: float) -> None:
    """Returns when no pod of a TrainJob runs; after some time it is deleted, and its end awaited once more.

    A node that was lost cannot report that its pods have ended: those that had their time to save count as ended. They
    could not go on without their peers, and write under names that only their own attempt has.

    Raises:
        TimeoutError: it does not end. Two TrainJobs that train the same must not run side by side.
    """
    for is_deleted in (False, True):
        deadline = time.monotonic() + patience_seconds
        while not has_ended(job := _asked(api.get, name)) or (pods := _running_pods(api, name)):
            if time.monotonic() >= deadline:
                break
            time.sleep(END_SECONDS)
        else:
            return
        if has_ended(job) and all(pod["metadata"].get("deletionTimestamp") for pod in pods):
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            logger.warning("pods of TrainJob %s should have ended, but their nodes do not say so: %s", name, names)
            return
        if not is_deleted:
            logger.warning("TrainJob %s still runs although its attempt has ended: deleting it", name)
            _asked(api.delete, name)
    raise TimeoutError(f"TrainJob {name}: was deleted, but its pods do not end; look at their nodes")


def delete_if_possible(api: Kubernetes, name: str, **options: float) -> None:
    """Deletes a TrainJob. If that cannot be done, its pods leave when their lease lapses."""
    try:
        api.delete(name, **options)
    except (OSError, ValueError) as error:
        logger.error("not deleted, so its pods save and leave when their lease lapses: %s", error)


def _asked(call: Callable[[str], T], name: str) -> T:
    return until_answered(partial(call, name))


def _running_pods(api: Kubernetes, name: str) -> list[Object]:
    return [pod for pod in _asked(api.pods_of, name) if not is_over(pod)]


@contextmanager
def keeping_lease(order: Order) -> Iterator[None]:
    """Renews the lease of an attempt while the block runs: its workers leave when nobody does."""
    holder, numbers = secrets.token_hex(4), count()

    def renew() -> None:
        storage.write_bytes(order.uri(LEASE), f'{{"holder": "{holder}", "number": {next(numbers)}}}'.encode())

    def keep(over: threading.Event) -> None:
        while not over.wait(RENEW_SECONDS):
            try:
                renew()
            except OSError as error:
                logger.warning("the lease of the workers could not be renewed: %s", error)

    renew()
    with beside(keep, name="lease"):
        yield


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Lets signals wait until the block has ended: a TrainJob is not created by halves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deleting_when_stopped(api: Kubernetes, name: str) -> Iterator[None]:
    """Deletes the TrainJob at SIGTERM: its pods then save a checkpoint in the time that their runtime gives them.

    Raises:
        Stopped: it has been deleted.
    """

    def stop(*_) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # one is enough
        raise Stopped(f"stopped on SIGTERM; TrainJob {name} is deleted, and the next attempt resumes what it has saved")

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        delete_if_possible(api, name, seconds=DELETE_SECONDS)
        logger.error("%s", stopped)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_silent(name: str, job: dict | None) -> Ending:
    """Raises the error of an attempt none of whose ranks has said how it ended."""
    if job is None:
        raise RuntimeError(f"TrainJob {name}: somebody has deleted it")
    failed = condition(job, "Failed") or {}
    text = f"TrainJob {name}: {failed.get('message') or 'ended'}"
    if failed.get("reason") == "DeadlineExceeded":
        raise TimeoutError(f"{text}; its workers were ended before they could save")
    raise RuntimeError(f"{text}; a worker died without an error: evicted, out of memory, or its node was lost")


class _Teller:
    """Logs what is new, and nothing twice."""

    def __init__(self, api: Kubernetes, name: str, order: Order):
        self.api, self.name, self.order = api, name, order
        self.state = self.progress = self.waits = ""

    def tell_state(self, job: Object) -> None:
        is_suspended = bool(condition(job, "Suspended"))
        state = "waits in its queue" if is_suspended else "is admitted, or needs no queue"
        if state != self.state:
            self.state = state
            logger.info("TrainJob %s %s", self.name, state)
        if not is_suspended and not self.progress:
            self.tell_waits()

    def tell_waits(self) -> None:
        """Logs why pods do not start, if Kubernetes says so."""
        try:
            reasons = {pod["metadata"]["name"]: wait_of(pod) for pod in self.api.pods_of(self.name)}
        except (OSError, ValueError):
            return
        waits = "; ".join(f"pod {name} waits: {reason}" for name, reason in reasons.items() if reason)
        if waits and waits != self.waits:
            logger.warning("%s", waits)
        self.waits = waits

    def tell_progress(self) -> None:
        try:
            line = storage.read_bytes(self.order.uri(PROGRESS)).decode(errors="replace").strip()
        except OSError:
            return
        if line != self.progress:
            self.progress = line
            logger.info("%s", line)

    def lateness(self, seconds: float) -> str:
        """Says what was not done in time."""
        minutes = f"{seconds / 60:.3g} min"
        if self.progress:
            return f"TrainJob {self.name}: was not done after {minutes}, queue included"
        waits = f"; {self.waits}" if self.waits else ""
        return f"TrainJob {self.name}: its processes had not met after {minutes} (queue_minutes){waits}"
