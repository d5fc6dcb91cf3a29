"""The run record: one JSON file per attempt of a step, `<storage_root>/runs/<run id>/<step>.<attempt>.json`."""

import logging
import re
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from posttrain import storage
from posttrain.config import masking
from posttrain.step.code import Code
from posttrain.step.progress import LEASE_SECONDS, Progress
from posttrain.storage import layout
from posttrain.verdict import Verdict

NUM_RUNS = 20  # the newest by name; no records of older runs are read
RECORD = re.compile(r"(?P<step>[^/]+)\.(?P<attempt>\d+)\.json")  # name of a record's file
# running: stays in the record of a step that was killed. unfinished: the next attempt continues it.
Status = Literal["running", "succeeded", "reused", "failed", "unfinished"]

logger = logging.getLogger(__name__)


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
    num_gpus: int = 0  # that it could use
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
    record = _masked(record)
    while True:
        try:
            storage.write_bytes(_name(storage_root, record), record.model_dump_json(indent=2).encode(), if_absent=True)
            return record
        except FileExistsError:
            record = record.model_copy(update={"attempt": record.attempt + 1})


def replace_record(storage_root: str, record: StepRecord) -> None:
    """Overwrites the record of an attempt."""
    storage.write_bytes(_name(storage_root, record), _masked(record).model_dump_json(indent=2).encode())


def _masked(record: StepRecord) -> StepRecord:
    """Takes secrets out of an error's text and of what was measured. The rest is bound by digests, and holds none."""
    error = record.error and masking.mask(record.error)
    return record.model_copy(update={"error": error, "measured": masking.masked(record.measured)})


def _name(storage_root: str, record: StepRecord) -> str:
    return layout.runs(storage_root, record.run_id, f"{record.step}.{record.attempt}.json")


def recent_records(storage_root: str) -> list[StepRecord]:
    """Reads the records of the newest runs, in the order in which their steps started."""
    names = storage.list_files(layout.runs(storage_root))
    runs = sorted({run for run, _, name in (name.partition("/") for name in names) if RECORD.fullmatch(name)})
    records = [record for run in runs[-NUM_RUNS:] for record in read_records(storage_root, run)]
    return sorted(records, key=lambda record: record.started_at)


def read_records(
    storage_root: str,
    run: str,
    *,
    of: Container[str] | None = None,
    ended: dict[str, StepRecord] | None = None,
    is_proof: bool = False,
) -> list[StepRecord]:
    """Reads the records of a run, or of the steps in `of`, sorted by start; attempts of a step by their number.

    A file that is no record, because it is damaged or somebody else's, is left out with a warning.

    Args:
        ended: records by the name of their file that are not read again, because their attempt is over; it is filled.
        is_proof: something is published or verified by these records: a damaged one may be a gate's that stopped the
            run, and is an error.

    Raises:
        ValueError: with `is_proof`, a file with the name of a record is none.
    """
    folder, ended = layout.runs(storage_root, run), {} if ended is None else ended
    matches = {name: RECORD.fullmatch(name) for name in storage.list_files(folder)}
    names = [name for name, match in matches.items() if match and (of is None or match["step"] in of)]
    records = []
    for name in names:
        uri = storage.join(folder, name)
        try:
            record = ended.get(name) or parse_record(uri, storage.read_bytes(uri), run=run)
        except ValueError as error:
            if is_proof:
                raise
            logger.warning("skipped: %s", error)
            continue
        records.append(record)
        if record.status != "running":
            ended[name] = record
    return _in_order(records)


def parse_record(uri: str, content: bytes, *, run: str) -> StepRecord:
    """Parses the content of a record's file; ValueError if it is damaged, or not the record that its name says."""
    try:
        record = StepRecord.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if content else "is empty"
        raise ValueError(f"{uri}: is not a record: {problem}; remove it, and run again what it recorded") from None
    name = f"{record.step}.{record.attempt}.json"
    if (record.run_id, name) != (run, uri.rpartition("/")[2]):
        raise ValueError(f"{uri}: is the record {name} of run {record.run_id}; remove it, or put it back where it was")
    return record


def _in_order(records: list[StepRecord]) -> list[StepRecord]:
    """Sorts by start, but never an attempt before an earlier one of its step: clocks differ between machines."""
    keys: dict[tuple[str, int], tuple[str, str, int]] = {}
    for step in {record.step for record in records}:
        attempts = sorted((record for record in records if record.step == step), key=lambda record: record.attempt)
        starts = accumulate((record.started_at for record in attempts), max)
        keys |= {
            (step, done.attempt): (start, step, done.attempt) for done, start in zip(attempts, starts, strict=True)
        }
    return sorted(records, key=lambda record: keys[record.step, record.attempt])
