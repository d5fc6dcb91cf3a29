"""Shows a run on a cluster by its records, and by Kubeflow's status where there is no record yet.

the run's records, states of Kubeflow's tasks -> calls of the view

The records know more: attempts, how far a training has come, why a step ended. And they know it longer: Kubeflow drops
the last steps of a large graph, gives all iterations of a loop the same name, and while its persistence agent is away
it says PENDING of a run to its end.
"""

import logging
import time
from dataclasses import dataclass, field

from pipelines.package import Package
from posttrain import report
from posttrain.config.line import is_rejection
from posttrain.pages import wording
from posttrain.step.progress import Progress
from posttrain.step.records import StepRecord, read_records
from runner.kubeflow import ENDED
from runner.view import LiveView, PlainView
from runner.watch import REJECTED, outcome

OVER_SECONDS = 60.0  # after the exit task has ended, for Kubeflow to notice that the run has
QUIET_SECONDS = 900.0  # without a change of any record, while Kubeflow says PENDING

logger = logging.getLogger(__name__)


@dataclass
class RunRecords:
    """The records of a run that is followed. Those that have ended are read once."""

    storage_root: str
    run_id: str
    ended: dict[str, StepRecord] = field(default_factory=dict)  # by the name of the file
    newest: list[StepRecord] = field(default_factory=list)
    is_away: bool = False

    def read(self) -> list[StepRecord]:
        """Returns the records so far; those of the last look if the storage is away, which is told once."""
        try:
            self.newest = read_records(self.storage_root, self.run_id, ended=self.ended)
            self.is_away = False
        except OSError as error:
            if not self.is_away:
                logger.warning("the records cannot be read, and nothing new is shown: %s", wording.line(str(error)))
            self.is_away = True
        return self.newest


@dataclass
class ClusterWatch:
    """Shows a run on a cluster. It is a `runner.kubeflow.TaskListener`."""

    records: RunRecords
    view: PlainView | LiveView
    num_attempts: dict[str, int] = field(default_factory=dict)  # step -> attempts that it has in its container
    shown: dict[tuple[str, int], tuple[str, Progress | None]] = field(default_factory=dict)  # step, attempt -> as shown
    started_steps: set[str] = field(default_factory=set)
    was_canceled: bool = False
    has_warned: bool = False
    changed_at: float = field(default_factory=time.monotonic)

    def looked(self, state: str) -> bool:
        """Shows what is new in the records; returns whether the run is over although Kubeflow does not know."""
        records = self.records.read()
        last = {record.step: record.attempt for record in records}
        for record in records:
            self._show(record, is_last=last[record.step] == record.attempt)
        if state == "CANCELING" and not self.was_canceled:
            self.was_canceled = True
            self.view.note("Kubeflow says CANCELING: the run is being ended")
        if state == "PENDING" and records and not self.has_warned:
            self.has_warned = True
            self.view.note("Kubeflow says PENDING although steps run: its persistence agent is behind")
        return state not in ENDED and self._is_over(records, state)

    def started(self, step: str) -> None:
        if step not in self.started_steps and not is_rejection(step):
            self.started_steps.add(step)
            self.view.started(step)

    def ended(self, step: str, succeeded: bool, seconds: float) -> None:
        """Shows an end that the records do not tell."""
        attempts = [record for record in self.records.newest if record.step == step]
        if not attempts and not (is_rejection(step) and not succeeded):  # a rejection fails on purpose
            self._show_end(step, None, None if succeeded else report.LOST, seconds)
        elif not attempts:
            return
        elif attempts[-1].status == "running" and not succeeded:
            self._show_lost(attempts[-1])
        elif attempts[-1].error is None and not succeeded:  # such as outputs that could not be uploaded
            self._show_end(step, attempts[-1], "its container failed after the step had ended; see its log", seconds)

    @property
    def is_alive(self) -> bool:
        """Tells whether a step still runs."""
        return any(record.is_alive for record in self.records.newest)

    def _show(self, record: StepRecord, *, is_last: bool) -> None:
        key = (record.step, record.attempt)
        before, now = self.shown.get(key), (record.status, record.progress)
        if before == now or (before and before[0] == "lost" and record.status == "running"):
            if not is_last and record.status == "running":
                self._show_lost(record)
            return
        self.changed_at = time.monotonic()
        self.shown[key] = now
        if before is None:
            self._show_start(record)
        if record.status == "running":
            self._show_progress(record) if is_last else self._show_lost(record)
        else:
            self._show_end(record.step, record, record.error, record.seconds)

    def _show_start(self, record: StepRecord) -> None:
        if is_rejection(record.step):
            return
        if record.attempt > 1 or record.step not in self.started_steps:
            self.started_steps.add(record.step)
            self.view.started(record.step, self._attempt(record))

    def _show_progress(self, record: StepRecord) -> None:
        progress = record.progress
        if progress and progress.total:
            text = ", ".join(filter(None, [progress.text, self._attempt(record)]))
            self.view.progress(record.step, progress.done, progress.total, wording.line(text))

    def _attempt(self, record: StepRecord) -> str:
        """Returns `attempt 2 of 3, from step 1734`; nothing for a first attempt that started at the beginning."""
        allowed = self.num_attempts.get(record.step, 0)
        of = f" of {allowed}" if allowed >= record.attempt else ""  # the whole pod may have been started again
        number = f"attempt {record.attempt}{of}" if record.attempt > 1 else ""
        place = f"from step {record.progress.resumed_at}" if record.progress and record.progress.resumed_at else ""
        return ", ".join(filter(None, [number, place]))

    def _show_lost(self, record: StepRecord) -> None:
        key = (record.step, record.attempt)
        if self.shown.get(key, ("",))[0] != "lost":
            self.shown[key] = ("lost", record.progress)
            self._show_end(record.step, record, report.killed(record), record.seconds)

    def _show_end(self, step: str, record: StepRecord | None, cause: str | None, seconds: float) -> None:
        state, text = outcome(step, record, cause)
        if state != REJECTED:
            self.view.ended(step, state, seconds, wording.line(text))

    def _is_over(self, records: list[StepRecord], state: str) -> bool:
        quiet_seconds = time.monotonic() - self.changed_at
        if self.is_alive:
            return False
        exit_task = [record for record in records if record.step == "report_run" and record.status != "running"]
        if exit_task and quiet_seconds >= OVER_SECONDS:
            return True
        return bool(records) and state == "PENDING" and quiet_seconds >= QUIET_SECONDS


def attempts_of(package: Package) -> dict[str, int]:
    """Returns how many attempts the steps of a graph have."""
    retries = {step.name: step.spec.get("retryPolicy", {}).get("maxRetryCount", 0) for step in package.steps}
    return {name: 1 + number for name, number in retries.items()}
