"""The run record: one JSON file per attempt of a step, `<storage_root>/runs/<run id>/<step>.<attempt>.json`."""

import re
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel

from posttrain import storage
from posttrain.step.code import Code
from posttrain.step.progress import LEASE_SECONDS, Progress
from posttrain.storage import layout
from posttrain.verdict import Verdict

RECORD = re.compile(r"(?P<step>[^/]+)\.\d+\.json")  # name of a record's file
# running: stays in the record of a step that was killed. unfinished: the next attempt continues it.
Status = Literal["running", "succeeded", "reused", "failed", "unfinished"]


class StepRecord(BaseModel):
    """One attempt of one step, as written to the run record. Paths are left out: they mean nothing elsewhere."""

    step: str
    attempt: int
    run_id: str
    status: Status
    started_at: str  # UTC, ISO 8601
    seconds: float
    work_seconds: float = 0.0  # the step's work alone; the rest went into digests, copies and records
    cpu_seconds: float = 0.0  # with those of all processes that it started
    peak_memory: int = 0  # bytes, of its largest process
    fingerprint: str
    code: Code | None = None
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> SHA-256
    outputs: dict[str, str]  # name -> SHA-256
    measured: dict[str, Any]
    kept: str = ""  # where the outputs are kept, below the storage root
    verdict: dict[str, Any] | None = None  # as the gate wrote it: that is what the output's digest binds
    error: str | None = None
    progress: Progress | None = None  # so far, of a training or a gate that runs, or at its end

    @property
    def written_at(self) -> datetime:
        """When the record was last written; that of a running step is written every few seconds."""
        return datetime.fromisoformat(self.started_at) + timedelta(seconds=self.seconds)

    @property
    def is_alive(self) -> bool:
        """Tells whether the step runs: its record says so, and was written lately."""
        age = datetime.now(UTC) - self.written_at
        return self.status == "running" and age < timedelta(seconds=LEASE_SECONDS)

    @property
    def judged(self) -> Verdict | None:
        """The verdict of a gate that reached one; ValidationError if it is not one."""
        return Verdict.of(self.verdict) if self.verdict else None


def write_record(storage_root: str, record: StepRecord) -> StepRecord:
    """Writes a record under the next free attempt number and returns it; no earlier attempt is overwritten."""
    while True:
        try:
            storage.write_bytes(_name(storage_root, record), record.model_dump_json(indent=2).encode(), if_absent=True)
            return record
        except FileExistsError:
            record = record.model_copy(update={"attempt": record.attempt + 1})


def replace_record(storage_root: str, record: StepRecord) -> None:
    """Overwrites the record of an attempt."""
    storage.write_bytes(_name(storage_root, record), record.model_dump_json(indent=2).encode())


def _name(storage_root: str, record: StepRecord) -> str:
    return layout.runs(storage_root, record.run_id, f"{record.step}.{record.attempt}.json")


def read_records(
    storage_root: str, run: str, *, of: Container[str] | None = None, ended: dict[str, StepRecord] | None = None
) -> list[StepRecord]:
    """Reads the records of a run, or of the steps in `of`, sorted by start.

    `ended` are records by the name of their file that are not read again, because their attempt is over; it is filled.
    """
    folder, ended = layout.runs(storage_root, run), {} if ended is None else ended
    matches = {name: RECORD.fullmatch(name) for name in storage.list_files(folder)}
    names = [name for name, match in matches.items() if match and (of is None or match["step"] in of)]
    new = {name: storage.read_bytes(storage.join(folder, name)) for name in names if name not in ended}
    read = {name: StepRecord.model_validate_json(text) for name, text in new.items()}
    records = [ended.get(name) or read[name] for name in names]
    ended |= {name: record for name, record in read.items() if record.status != "running"}
    return sorted(records, key=lambda record: (record.started_at, record.step, record.attempt))
