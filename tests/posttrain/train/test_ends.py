import os
import signal
from types import SimpleNamespace

import pytest

from posttrain.config import Training
from posttrain.step.run import Unfinished
from posttrain.train.ends import LeaveInTime

TRAINING = Training(timeout_minutes=10, checkpoint_every_n_minutes=2)


class Steps:
    """Ends optimizer steps at times of its own choice, in seconds from the start of the stage."""

    def __init__(self, training: Training = TRAINING, **others):
        self.now, self.state = 0.0, SimpleNamespace(global_step=0, max_steps=1000)
        self.leave = LeaveInTime(training, started=0.0, clock=lambda: self.now, **others)

    def end(self, now: float) -> tuple[bool, bool]:
        """Tells whether the trainer saves, and whether it stops."""
        self.now = now
        self.state.global_step += 1
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        self.leave.on_step_end(None, self.state, control)
        if control.should_save:
            self.leave.on_save(None, self.state)
        return control.should_save, control.should_training_stop


def test_saves_every_so_many_minutes():
    steps = Steps()
    saved = [now for now in range(10, 400, 10) if steps.end(now)[0]]
    assert saved == [120, 240, 360]


def test_leaves_while_one_more_step_would_still_have_fitted():
    steps = Steps()
    steps.end(20)
    steps.end(60)  # the longest step: 40 s
    assert [now for now in range(70, 700, 10) if steps.end(now)[1]][0] == 560
    with pytest.raises(Unfinished) as left:
        steps.leave.raise_if_stopped(steps.state, stored_step=51)
    assert left.value.code == 75
    assert str(left.value).endswith(
        "the time limit is near (timeout_minutes: 10); the next attempt resumes from step 51"
    )


def test_says_when_nothing_could_be_stored():
    steps = Steps()
    steps.end(599)
    with pytest.raises(Unfinished, match="the next attempt starts over: no checkpoint was stored"):
        steps.leave.raise_if_stopped(steps.state, stored_step=None)


def test_a_training_that_is_done_stays():
    steps = Steps()
    steps.state.max_steps = 1
    assert steps.end(599) == (False, False)
    steps.leave.raise_if_stopped(steps.state, stored_step=None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_is_a_request_and_only_inside(number):
    steps, before = Steps(), signal.getsignal(number)
    with steps.leave.on_sigterm():
        os.kill(os.getpid(), number)
        assert steps.end(1) == (True, True)
    assert signal.getsignal(number) is before
    with pytest.raises(Unfinished, match="stopped at step 1/1000: SIGTERM"):
        steps.leave.raise_if_stopped(steps.state, stored_step=1)


def test_another_limit_counts_instead_of_that_of_the_stage():
    steps = Steps(limit_seconds=300)
    assert [now for now in range(10, 700, 10) if steps.end(now)[1]][0] == 290


def test_it_leaves_when_nobody_waits_for_the_result():
    steps = Steps(has_lapsed=lambda: steps.now >= 50)
    assert not steps.end(40)[1] and steps.end(50) == (True, True)
    with pytest.raises(Unfinished, match="stopped at step 2/1000: its lease has lapsed: the step that started it is"):
        steps.leave.raise_if_stopped(steps.state, stored_step=2)


def test_foretells_its_end_once_and_warns_if_that_is_after_the_time_limit(caplog):
    caplog.set_level("INFO")
    for seconds, expected in ((0.5, "about 8 min 17 s left, and 9 min 38 s"), (1, "about 16 min 34 s left")):
        steps = Steps()
        for number in range(9):
            steps.end(20 + number * seconds)  # the first step took 20 s, and does not count
        (record,) = caplog.records
        assert record.getMessage().startswith(expected)
        assert (record.levelname == "WARNING") == ("timeout_minutes, or" in record.getMessage()) == (seconds == 1)
        caplog.clear()
