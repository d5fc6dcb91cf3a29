"""Claims of a sweep's workers on its trials: a trial has one worker at a time, and another takes over if it is lost.

    runs/<run id>/claims/trial_3.1.json    the first claim, written anew every few seconds while its worker runs
    runs/<run id>/claims/trial_3.2.json    of the worker that took the trial over: the highest number counts

A worker ends when it finds a claim with a higher number, or could not renew its own for a third of `LEASE_SECONDS` and
one more request. Another worker takes a trial over when it has itself seen its claim unchanged for all of them. So no
two have a trial while both live, whatever their clocks say and however long the storage is away.
"""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from posttrain import storage
from posttrain.step.beside import beside
from posttrain.step.progress import BEAT_SECONDS

LEASE_SECONDS = 600.0  # requests to a storage that does not answer are repeated for about half of them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A claim, as it was last written."""

    slot: str
    number: int
    worker: str = ""  # empty if the file is damaged: its claim lapses
    beat: int = 0  # how often it has been renewed
    is_done: bool = False  # the trial has a result

    @classmethod
    def parse(cls, slot: str, number: int, content: bytes) -> "Claim":
        try:
            written = json.loads(content)
            return cls(slot, number, str(written["worker"]), int(written["beat"]), bool(written["is_done"]))
        except (ValueError, KeyError, TypeError):
            return cls(slot, number)

    @property
    def content(self) -> bytes:
        return json.dumps({"worker": self.worker, "beat": self.beat, "is_done": self.is_done}).encode()


@dataclass(frozen=True)
class Claims:
    """The claims on the trials of one run, as one of its workers sees them."""

    folder: str  # URI
    worker: str
    lease_seconds: float = LEASE_SECONDS
    beat_seconds: float = BEAT_SECONDS

    def taken(self, slots: Iterable[str]) -> Iterator[Claim]:
        """Yields claims on one trial after another, until there is none for this worker: each is to be worked off
        before the next is taken. First come those that nobody has, then those of workers that are lost.
        """
        others = []
        for slot in slots:
            newest = self.newest(slot)
            if newest and newest.worker != self.worker:
                others.append(newest)
            elif claim := self._next(slot, newest):
                yield claim
            else:
                others.append(self.newest(slot))
        yield from self._lapsed(others)

    def newest(self, slot: str) -> Claim | None:
        """Returns the claim on a trial that counts, if there is one."""
        names = (name.rsplit(".", 2) for name in storage.list_files(self.folder))
        numbers = [int(name[1]) for name in names if len(name) == 3 and name[0] == slot and name[1].isdigit()]
        if not numbers:
            return None
        return Claim.parse(slot, max(numbers), storage.read_bytes(self._uri(slot, max(numbers))))

    @contextmanager
    def renewed(self, claim: Claim) -> Iterator[None]:
        """Renews a claim while the block runs, and notes at its end that the trial has a result."""
        with beside(partial(self._renew, claim), name="claim"):
            yield
        storage.write_bytes(self._uri(claim.slot, claim.number), replace(claim, is_done=True).content)

    def _next(self, slot: str, newest: Claim | None) -> Claim | None:
        """Writes the next claim on a trial; returns None if another worker was faster."""
        claim = Claim(slot, newest.number + 1 if newest else 1, self.worker)
        try:
            storage.write_bytes(self._uri(slot, claim.number), claim.content, if_absent=True)
        except FileExistsError:
            return None
        return claim

    def _lapsed(self, others: list[Claim]) -> Iterator[Claim]:
        """Watches the claims of others until each is done or its worker has given a sign of life; yields one in place
        of each that did neither for as long as the lease.
        """
        silent, begun = {claim.slot: claim for claim in others if not claim.is_done}, time.monotonic()
        while silent:
            time.sleep(self.beat_seconds / 5)
            for slot, seen in list(silent.items()):
                if self.newest(slot) != seen:
                    del silent[slot]
                elif time.monotonic() - begun > self.lease_seconds:
                    del silent[slot]
                    if claim := self._next(slot, seen):
                        logger.warning("%s: taken over from %s, which gave no sign of life", slot, seen.worker)
                        yield claim

    def _renew(self, claim: Claim, over: threading.Event) -> None:
        """Renews a claim until `over`. If it is lost, the process ends as on SIGTERM; its next attempt goes on."""
        renewed_at = time.monotonic()
        while not over.wait(self.beat_seconds):
            began, claim = time.monotonic(), replace(claim, beat=claim.beat + 1)
            try:
                storage.write_bytes(self._uri(claim.slot, claim.number), claim.content)
                if storage.exists(self._uri(claim.slot, claim.number + 1)):
                    break
                renewed_at = began
            except OSError as error:
                logger.warning("the claim on %s could not be renewed: %s", claim.slot, error)
                if time.monotonic() - renewed_at > self.lease_seconds / 3:
                    break
        else:
            return
        logger.warning("%s: the claim on this trial is lost, so this worker ends", claim.slot)
        os.kill(os.getpid(), signal.SIGTERM)

    def _uri(self, slot: str, number: int) -> str:
        return storage.join(self.folder, f"{slot}.{number}.json")
