"""Ends a training early: it saves a checkpoint and exits with 75, and the next attempt resumes from there.

deadline, SIGTERM, a lapsed lease -> a checkpoint, exit code 75

A stage stops before its own deadline, `timeout_minutes`; its pod would be ended some minutes later. (The idea is
NeMo-RL's.) SIGTERM stops it in the same way where there is time. On a cluster there is none: a pod is killed about a
second after SIGTERM, and the next attempt resumes from the last periodic checkpoint.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from posttrain.config import STARTED_ENV, Training
from posttrain.pages import wording
from posttrain.step.run import Unfinished
from posttrain.train import ranks

# A container and the ranks of a training have their clock from outside. Else close to the start of this process: a
# stage imports this module before anything slow.
STARTED = float(os.environ.get(STARTED_ENV, time.monotonic()))

NUM_TIMED_STEPS = 5  # after the first of an attempt, by which the end is foretold

logger = logging.getLogger(__name__)


class LeaveInTime:
    """Makes the trainer save every few minutes, and save and stop when the deadline is near or SIGTERM arrives.

    `clock` returns seconds; `started` is its value when the stage began. `has_lapsed` tells whether nobody waits for
    the result any more; it answers at once.
    """

    def __init__(
        self,
        training: Training,
        *,
        started: float = STARTED,
        limit_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        has_lapsed: Callable[[], bool] = lambda: False,
    ):
        self.training, self.clock, self.has_lapsed = training, clock, has_lapsed
        self.deadline = started + (training.timeout_minutes * 60 if limit_seconds is None else limit_seconds)
        self.saved_at = self.stepped_at = clock()
        self.longest_step = 0.0  # seconds
        self.first_step: tuple[int, float] | None = None  # of this attempt: its number, and when it ended
        self.reason: str | None = None  # why the training stops early
        self.got_sigterm = False

    def on_step_end(self, args, state, control) -> None:
        now = self.clock()
        self.longest_step = max(self.longest_step, now - self.stepped_at)
        self.stepped_at = now
        self._tell_end(state, now)
        if state.global_step >= state.max_steps or control.should_training_stop:  # it ends by itself
            return
        is_late = now + self.longest_step >= self.deadline
        is_due = now - self.saved_at >= self.training.checkpoint_every_n_minutes * 60
        got_sigterm, has_lapsed, is_late, is_due = ranks.any_of(self.got_sigterm, self.has_lapsed(), is_late, is_due)
        if got_sigterm:
            self.reason = "SIGTERM"
        elif has_lapsed:
            self.reason = "its lease has lapsed: the step that started it is gone"
        elif is_late:
            self.reason = f"the time limit is near (timeout_minutes: {self.training.timeout_minutes})"
        elif self.training.leave_at and state.global_step >= self.training.leave_at * state.max_steps:
            self.reason = f"{self.training.leave_at:.3g} of its steps are done (leave_at)"
        if self.reason:
            control.should_save = control.should_training_stop = True
        elif is_due:
            control.should_save = True

    def _tell_end(self, state, now: float) -> None:
        """Logs once, after the first steps of an attempt, when the training will end, and whether that is in time."""
        if self.first_step is None:  # it has warmed up
            self.first_step = (state.global_step, now)
        num_steps, since = state.global_step - self.first_step[0], now - self.first_step[1]
        if num_steps != NUM_TIMED_STEPS:
            return
        left, limit = since / num_steps * (state.max_steps - state.global_step), self.deadline - now
        words = (
            f"about {wording.duration(left)} left, and {wording.duration(limit)} to the time limit "
            f"(timeout_minutes: {self.training.timeout_minutes})"
        )
        if left <= limit:
            logger.info(words)
            return
        logger.warning(
            "%s: this attempt will save a checkpoint and exit, and the next one will resume from it; raise "
            "timeout_minutes, or make sure that there are enough attempts",
            words,
        )

    def on_save(self, args, state) -> None:
        self.saved_at = self.clock()

    @contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Turns SIGTERM into a request to stop after the current step, and SIGHUP, unless it is ignored as under nohup.

        Only a main thread can receive signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(*_) -> None:
            self.got_sigterm = True

        numbers = [signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_stopped(self, state, *, stored_step: int | None) -> None:
        """Raises Unfinished if the training was stopped early; `stored_step` is the newest checkpoint in storage."""
        if self.reason is None:
            return
        resume = f"resumes from step {stored_step}" if stored_step else "starts over: no checkpoint was stored"
        message = f"stopped at step {state.global_step}/{state.max_steps}: {self.reason}; the next attempt {resume}"
        logger.error(message)
        raise Unfinished(message)
