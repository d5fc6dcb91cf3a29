"""How a training leaves before its end: it saves a checkpoint and exits 75, and the next attempt goes on from there.

deadline, SIGTERM -> a checkpoint, exit code 75

A stage leaves before its own deadline, which is `timeout_minutes`; its pod is ended some minutes later. (The idea is
NeMo-RL's.) SIGTERM does the same where there is time for it. On a cluster there is none: a pod is killed about a second
after it, and what counts is the last checkpoint, made every so many steps or minutes.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from posttrain.config import Training
from posttrain.step.run import Unfinished
from posttrain.train import ranks

STARTED_ENV = "POSTTRAIN_STARTED"  # given to the ranks of a stage, which started before they did
# Of this process, nearly: a stage imports this before anything slow.
STARTED = float(os.environ.get(STARTED_ENV, time.monotonic()))

logger = logging.getLogger(__name__)


class LeaveInTime:
    """Has the trainer save every so many minutes; and save and stop when the deadline is near or SIGTERM has come.

    `clock` gives seconds; `started` is its value when the stage began.
    """

    def __init__(self, training: Training, *, started: float = STARTED, clock: Callable[[], float] = time.monotonic):
        self.training, self.clock = training, clock
        self.deadline = started + training.timeout_minutes * 60
        self.saved_at = self.stepped_at = clock()
        self.longest_step = 0.0  # seconds
        self.reason: str | None = None  # why it leaves
        self.is_told = False

    def on_step_end(self, args, state, control) -> None:
        now = self.clock()
        self.longest_step = max(self.longest_step, now - self.stepped_at)
        self.stepped_at = now
        if state.global_step >= state.max_steps:
            return
        is_late = now + self.longest_step >= self.deadline
        is_due = now - self.saved_at >= self.training.checkpoint_every_n_minutes * 60
        is_told, is_late, is_due = ranks.any_of(self.is_told, is_late, is_due)
        if is_told:
            self.reason = "SIGTERM"
        elif is_late:
            self.reason = f"its deadline of {self.training.timeout_minutes} minutes is near"
        elif self.training.leave_at and state.global_step >= self.training.leave_at * state.max_steps:
            self.reason = f"it was asked for {self.training.leave_at:.3g} of its steps"
        if self.reason:
            control.should_save = control.should_training_stop = True
        elif is_due:
            control.should_save = True

    def on_save(self, args, state) -> None:
        self.saved_at = self.clock()

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Takes SIGTERM as a request to leave after the step that runs; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def tell(*_) -> None:
            self.is_told = True

        before = signal.signal(signal.SIGTERM, tell)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def leave(self, state, *, kept_step: int | None) -> None:
        """Raises Unfinished if the training was stopped; `kept_step` is that of the newest checkpoint in storage."""
        if self.reason is None:
            return
        goes_on = f"goes on from step {kept_step}" if kept_step else "starts again: no checkpoint could be stored"
        message = f"left at step {state.global_step}/{state.max_steps}: {self.reason}; the next attempt {goes_on}"
        logger.error(message)
        raise Unfinished(message)
