"""Claims a chosen run id: if several runs choose the same one, on any machines, only one gets it.

    runs/<run id>/claims/run.1.json    the first claim
    runs/<run id>/claims/run.2.json    of a run that took the id over: the highest number counts

A run that has a record keeps its id for good: any later run reuses what it finished. One that ended or was killed
before that leaves its id to the next: at once if it could say so, else when its claim is older than `LEASE_SECONDS`.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from posttrain import storage
from posttrain.storage import layout

LEASE_SECONDS = 600.0  # far longer than a run takes to its first record, or than clocks may differ
# What the folder of a run can hold without a record.
WITHOUT_RECORD = re.compile(r"claims/run\.(?P<number>\d+)\.json|graph\.yaml|logs/.*|\.?RUNNING.*")


@dataclass(frozen=True)
class Claim:
    """A claim on a run id, as it was last written."""

    run_folder: str  # URI
    number: int
    owner: str = "another run"
    written_at: float = 0.0  # seconds since 1970
    is_over: bool = False  # its run has ended

    @property
    def uri(self) -> str:
        return storage.join(self.run_folder, f"claims/run.{self.number}.json")

    @property
    def is_free(self) -> bool:
        """Tells whether its run has ended, or gave no sign of life for as long as the lease."""
        return self.is_over or time.time() - self.written_at > LEASE_SECONDS

    def write(self, *, if_absent: bool = False) -> None:
        content = {name: value for name, value in asdict(self).items() if name not in ("run_folder", "number")}
        storage.write_bytes(self.uri, json.dumps(content).encode(), if_absent=if_absent)

    def renew(self) -> None:
        """Says that the run still lives; called when its steps start.

        Raises:
            ValueError: another run has taken the id over meanwhile.
        """
        replace(self, written_at=time.time()).write()
        # Only now: one that takes over writes its claim, and then looks at this one again.
        if _number(storage.list_files(self.run_folder)) != self.number:
            raise ValueError(
                f"{self.run_folder}: another run took this --run-id over while this one was preparing; "
                "start again with another id"
            )


@contextmanager
def claimed(storage_root: str, run_id: str) -> Iterator[Claim]:
    """Has a run id for the length of the block; nothing else is written under it before.

    Raises:
        ValueError: another run has this id, or had it and left a record.
    """
    claim = take(storage_root, run_id)
    try:
        yield claim
    finally:
        with suppress(OSError):  # the lease ends too
            replace(claim, is_over=True, written_at=time.time()).write()


def has_record(names: Iterable[str]) -> bool:
    """Tells whether a run got as far as a record, by the names of the files in its folder."""
    return not all(map(WITHOUT_RECORD.fullmatch, names))


def take(storage_root: str, run_id: str) -> Claim:
    """Writes the next claim on a run id; ValueError if another run has it, or had it and left a record."""
    folder = layout.runs(storage_root, run_id)
    names = storage.list_files(folder)
    earlier = _read(folder, _number(names))
    if has_record(names) or not earlier.is_free:
        raise ValueError(_refusal(storage_root, run_id, earlier))
    claim = Claim(folder, earlier.number + 1, f"process {os.getpid()} on {socket.gethostname()}", time.time())
    try:
        claim.write(if_absent=True)
    except FileExistsError:
        raise ValueError(_refusal(storage_root, run_id, _read(folder, claim.number))) from None
    if _read(folder, earlier.number) != earlier:
        raise ValueError(_refusal(storage_root, run_id, earlier))
    return claim


def _number(names: Iterable[str]) -> int:
    """Returns the number of the claim that counts, by the names of the files in a run's folder; 0 without one."""
    matches = filter(None, map(WITHOUT_RECORD.fullmatch, names))
    return max((int(match["number"]) for match in matches if match["number"]), default=0)


def _read(run_folder: str, number: int) -> Claim:
    """Reads a claim. One that is damaged is as old as can be, and so is number 0."""
    claim = Claim(run_folder, number)
    try:
        written = json.loads(storage.read_bytes(claim.uri)) if number else {}
        return replace(
            claim,
            owner=str(written["owner"]),
            written_at=float(written["written_at"]),
            is_over=written["is_over"] is True,
        )
    except (ValueError, KeyError, TypeError):
        return claim


def _refusal(storage_root: str, run_id: str, earlier: Claim) -> str:
    return (
        f"--run-id {run_id!r} was taken in {storage_root} by {earlier.owner}; choose another id: it reuses what that "
        "run has finished, killed or not. (Killed before its first step, that run leaves the id free after "
        f"{LEASE_SECONDS:.0f} s.)"
    )
