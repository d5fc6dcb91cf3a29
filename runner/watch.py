"""Listens to a run while it goes on, and completes its record."""

import json
import logging
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from posttrain import report
from posttrain.pages import html, wording
from posttrain.step.records import StepRecord, read_records, replace_record, write_record
from posttrain.verdict import Verdict
from runner.view import LiveView, PlainView

logger = logging.getLogger(__name__)


@dataclass
class ClusterWatch:
    """Shows what happens on a cluster: that a step ended says Kubeflow, what came of it the run record.

    Of the trials of a sweep both say the record: Kubeflow gives all iterations of a loop the same name.
    """

    storage_root: str
    run_id: str
    view: PlainView | LiveView
    can_read: bool = True
    waiting: set[str] = field(default_factory=set)  # trials that have not succeeded
    shown: dict[str, StepRecord] = field(default_factory=dict)  # of trials, as they stood

    def started(self, step: str) -> None:
        self.view.started(step)

    def ended(self, step: str, succeeded: bool, seconds: float) -> None:
        entry = next(reversed(self.records({step})), None)
        unknown = report.KILLED if self.can_read else "see its log"
        cause = None if succeeded else (entry and entry.error) or unknown
        self._show_end(step, entry, cause, seconds)

    def looked(self) -> None:
        for entry in self.records(self.waiting) if self.waiting else []:
            before = self.shown.get(entry.step)
            if before is None or before.attempt < entry.attempt:
                self.view.started(entry.step)
            elif before.attempt > entry.attempt or before.status == entry.status:
                continue
            self.shown[entry.step] = entry
            if entry.status != "running":
                self._show_end(entry.step, entry, entry.error, entry.seconds)
            if entry.status in ("succeeded", "reused"):
                self.waiting.remove(entry.step)

    def records(self, steps: set[str] | None = None) -> list[StepRecord]:
        """Those of the run so far, or of these steps; none where the storage cannot be read from here, which is told
        once.
        """
        try:
            return read_records(self.storage_root, self.run_id, of=steps) if self.can_read else []
        except (OSError, ImportError) as error:
            self.can_read = False
            logger.warning("no verdict is shown, and the exit code will be 1: %s", wording.line(str(error)))
            return []

    def _show_end(self, step: str, entry: StepRecord | None, cause: str | None, seconds: float) -> None:
        state, text = outcome(entry, cause)
        self.view.ended(step, state, seconds, wording.line(text))


@dataclass
class Watch:
    """Listens to the runner, completes the run record where a step could not, and shows what happened."""

    storage_root: str
    run_id: str
    view: PlainView | LiveView
    running: dict[str, datetime] = field(default_factory=dict)  # step -> when it started
    num_attempts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # of steps that are no part of the result

    def started(self, step: str) -> None:
        self.running[step] = datetime.now(UTC)
        self.num_attempts[step] = self.num_attempts.get(step, 0) + 1
        self.view.started(step)

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        self.view.progress(step, done, total, wording.line(text))

    def finished(self, step: str, exit_code: int, seconds: float, cause: str | None) -> None:
        found = [entry for entry in read_records(self.storage_root, self.run_id) if entry.step == step]
        if cause and (len(found) < self.num_attempts[step] or found[-1].status not in ("failed", "unfinished")):
            found.append(self._record_for(step, found, seconds, cause))
        if cause and step == "report_run":
            self.errors.append(f"{step}: {cause}")
        self.running.pop(step, None)
        state, text = outcome(found[-1] if found else None, cause)
        self.view.ended(step, state, seconds, wording.line(text))

    def interrupt(self) -> None:
        """The run was interrupted: the steps that were running end here."""
        for step, started in list(self.running.items()):
            self.finished(step, -signal.SIGINT, (datetime.now(UTC) - started).total_seconds(), "interrupted")

    def peak_memory(self) -> int:
        """Bytes that the largest trial so far has held; 0 before there was one."""
        entries = read_records(self.storage_root, self.run_id)
        return max([int(entry.measured.get("peak_memory", 0)) for entry in entries], default=0)

    def _record_for(self, step: str, found: list[StepRecord], seconds: float, cause: str) -> StepRecord:
        """The record of a step that was ended, or that failed before or after it kept one itself."""
        failed = {"status": "failed", "seconds": round(seconds, 3), "error": cause}
        if found and found[-1].status == "running":
            entry = found[-1].model_copy(update=failed)
            replace_record(self.storage_root, entry)
            return entry
        entry = StepRecord(
            step=step, attempt=1, run_id=self.run_id, fingerprint="", config={}, inputs={}, outputs={}, measured={},
            started_at=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds"), **failed,
        )  # fmt: skip
        return write_record(self.storage_root, entry)


def outcome(entry: StepRecord | None, cause: str | None) -> tuple[str, str]:
    """State and note of a step for the view."""
    if cause:
        return ("unfinished", entry.error) if entry and entry.status == "unfinished" else ("failed", cause)
    if entry is None:
        return "done", ""
    state = "reused" if entry.status == "reused" else "done"
    if entry.verdict:
        verdict = Verdict.read(json.dumps(entry.verdict))
        if not verdict.passed:
            return "undecided" if verdict.outcome == "undecided" else "stopped", wording.reason(verdict)
        return state, f"{len(verdict.checks)} of {len(verdict.checks)} checks passed"
    if "row" in entry.measured:
        return state, str(entry.measured["status"])  # of a trial
    if "final_loss" in entry.measured:
        return state, f"loss {entry.measured['final_loss']:.4g}"
    if "size_gb" in entry.measured:
        return state, html.size(entry.measured["size_gb"])
    return state, ""
