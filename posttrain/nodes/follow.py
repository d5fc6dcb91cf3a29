"""Follows the TrainJob of an attempt to its end, and says meanwhile that somebody wants its result.

a TrainJob, the files of its attempt -> how it ended
"""

import logging
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from posttrain import storage
from posttrain.nodes.kubernetes import DELETE_SECONDS, Kubernetes, condition, has_ended
from posttrain.step.beside import beside
from posttrain.step.run import Unfinished
from posttrain.train.order import LEASE, PROGRESS, RENEW_SECONDS, Ending, Order, read_ending

LOOK_SECONDS = 15  # between two looks at the attempt's files, if nothing changes in the TrainJob
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

logger = logging.getLogger(__name__)


class Stopped(Unfinished):
    """Somebody has asked this step to end."""


def follow(api: Kubernetes, name: str, order: Order, *, limit_seconds: float) -> Ending:
    """Returns how an attempt ended, once one of its ranks has said so.

    Raises:
        TimeoutError: its time was up, here or at the TrainJob, before any rank has said how it ended.
        RuntimeError: its pods have ended, or are gone, and none has said how.
    """
    deadline, teller = time.monotonic() + limit_seconds, _Teller(name, order)
    while True:
        ending = read_ending(order)
        teller.tell_progress()
        if ending:
            return ending
        if time.monotonic() >= deadline:
            api.delete(name)
            raise TimeoutError(f"TrainJob {name}: was not done after {limit_seconds / 60:.3g} min, queue included")
        try:
            job = api.get(name)
        except OSError as error:
            logger.warning("TrainJob %s goes on, but cannot be looked at: %s", name, " ".join(str(error).split()))
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            continue
        if has_ended(job):
            return read_ending(order) or _raise_silent(name, job)
        teller.tell_state(job)
        with suppress(OSError):  # then it is looked at again
            api.wait_for_change(job, seconds=LOOK_SECONDS)


def wait_until_ended(api: Kubernetes, name: str, *, patience_seconds: float) -> None:
    """Returns when a TrainJob has no pods that run; after some time it is deleted, and its end awaited once more.

    Raises:
        TimeoutError: it does not end. Two TrainJobs that train the same must not run side by side.
    """
    for is_deleted in (False, True):
        deadline = time.monotonic() + patience_seconds
        while not has_ended(job := api.get(name)):
            if time.monotonic() >= deadline:
                break
            api.wait_for_change(job, seconds=max(1, min(LOOK_SECONDS, round(deadline - time.monotonic()))))
        else:
            return
        if not is_deleted:
            logger.warning("TrainJob %s still runs although its attempt has ended: deleting it", name)
            api.delete(name)
    raise TimeoutError(f"TrainJob {name}: was deleted, but its pods do not end; look at their nodes")


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
        with suppress(OSError, ValueError):  # without it they leave when the lease lapses
            api.delete(name, seconds=DELETE_SECONDS)
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

    def __init__(self, name: str, order: Order):
        self.name, self.order, self.state, self.progress = name, order, "", ""

    def tell_state(self, job: dict) -> None:
        state = "waits in its queue" if condition(job, "Suspended") else "is admitted, or needs no queue"
        if state != self.state:
            self.state = state
            logger.info("TrainJob %s %s", self.name, state)

    def tell_progress(self) -> None:
        try:
            line = storage.read_bytes(self.order.uri(PROGRESS)).decode(errors="replace").strip()
        except OSError:
            return
        if line != self.progress:
            self.progress = line
            logger.info("%s", line)
