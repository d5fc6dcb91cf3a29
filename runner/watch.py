"""Shows the progress of a run on this machine, and completes its record where a step could not.

events of the runner, the run record -> calls of the view, records
"""

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from posttrain.config.line import is_rejection
from posttrain.pages import html, wording
from posttrain.step.records import StepRecord, read_records, replace_record, write_record
from runner.view import LiveView, PlainView

REJECTED = "rejected"  # state of a rejection that did its work: the line of its gate tells all of it
CAUSE_INTERRUPTED = "interrupted"  # error of a step that was running when the run was interrupted


@dataclass
class Watch:
    """Shows a run on this machine, and completes the run record where a step could not."""

    storage_root: str
    run_id: str
    view: PlainView | LiveView
    running: dict[str, datetime] = field(default_factory=dict)  # step -> when it started
    num_attempts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # from steps that are not part of the result

    def started(self, step: str) -> None:
        self.running[step] = datetime.now(UTC)
        self.num_attempts[step] = self.num_attempts.get(step, 0) + 1
        if not is_rejection(step):
            self.view.started(step)

    def tried_again(self, step: str, text: str) -> None:
        seconds = (datetime.now(UTC) - self.running[step]).total_seconds()
        self.view.ended(step, "unfinished", seconds, wording.line(text))
        self.started(step)

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        self.view.progress(step, done, total, wording.line(text))

    def finished(self, step: str, exit_code: int, seconds: float, cause: str | None) -> None:
        records = [record for record in read_records(self.storage_root, self.run_id) if record.step == step]
        has_own = len(records) >= self.num_attempts[step] and records[-1].status in ("failed", "unfinished")
        if cause and not has_own:
            records.append(self._record_failure(step, records, seconds, cause))
        if cause and step == "report_run":
            self.errors.append(f"{step}: {cause}")
        self.running.pop(step, None)
        state, text = outcome(step, records[-1] if records else None, cause)
        if state != REJECTED:
            self.view.ended(step, state, seconds, wording.line(text))

    def interrupt(self, steps: Iterable[str]) -> None:
        """Ends the steps that were running; where none was, records the next of `steps` as the interrupted one."""
        if not self.running:
            recorded = {record.step for record in read_records(self.storage_root, self.run_id)}
            for step in [step for step in steps if step not in recorded][:1]:
                self._record_failure(step, [], 0.0, CAUSE_INTERRUPTED)
        for step, started in list(self.running.items()):
            seconds = (datetime.now(UTC) - started).total_seconds()
            self.finished(step, -signal.SIGINT, seconds, CAUSE_INTERRUPTED)

    def peak_memory(self) -> int:
        """Returns the bytes that the largest trial so far has needed; 0 before the first."""
        records = read_records(self.storage_root, self.run_id)
        return max([int(record.measured.get("peak_memory", 0)) for record in records], default=0)

    def _record_failure(self, step: str, records: list[StepRecord], seconds: float, cause: str) -> StepRecord:
        """Writes the record of a step that was ended, or that failed before or after it wrote one itself."""
        failed = {"status": "failed", "seconds": round(seconds, 3), "error": cause}
        if records and records[-1].status == "running":
            record = records[-1].model_copy(update=failed)
            replace_record(self.storage_root, record)
            return record
        started = datetime.now(UTC) - timedelta(seconds=seconds)
        record = StepRecord(
            step=step,
            attempt=1,
            run_id=self.run_id,
            started_at=started.isoformat(timespec="milliseconds"),
            fingerprint="",
            config={},
            inputs={},
            outputs={},
            measured={},
            **failed,
        )
        return write_record(self.storage_root, record)


def outcome(step: str, record: StepRecord | None, cause: str | None) -> tuple[str, str]:
    """Returns state and note of a step for the view."""
    if is_rejection(step) and record and (record.error or "").startswith("Rejected"):
        return REJECTED, ""
    if cause:
        return ("unfinished", record.error) if record and record.status == "unfinished" else ("failed", cause)
    if record is None:
        return "done", ""
    state = "reused" if record.status == "reused" else "done"
    if record.verdict:
        verdict = record.judged
        if not verdict.passed:
            return "undecided" if verdict.outcome == "undecided" else "stopped", wording.reason(verdict)
        return state, f"{len(verdict.checks)} of {len(verdict.checks)} checks passed"
    if "row" in record.measured:  # a trial
        return state, str(record.measured["status"])
    if "final_loss" in record.measured:
        return state, f"training loss {record.measured['final_loss']:.4g}"
    if "num_sampled_pairs" in record.measured:
        return state, "{num_sampled_pairs} pairs of {num_prompts} prompts".format(**record.measured)
    if "size_gb" in record.measured:
        return state, html.size(record.measured["size_gb"])
    return state, ""
