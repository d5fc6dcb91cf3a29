"""The record of a step while it runs: how far it is, and that it lives."""

import logging
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from posttrain.step import progress
from posttrain.step.progress import Progress, beating, progress_of


@pytest.mark.parametrize(
    ("line", "expected", "words"),
    [
        ("INFO step 12/40 loss 0.5", Progress(done=12, total=40, text="loss 0.5"), "step 12/40"),
        ("INFO step 1/9", Progress(done=1, total=9), "step 1/9"),
        (
            "INFO base: answered 16 of 48 prompts, about 2 min 05 s left",
            Progress(done=16, total=48, text="prompts answered by base, about 2 min 05 s left"),
            "16/48 prompts answered by base",
        ),
        (
            "INFO model: measured 8 of 8 rows",
            Progress(done=8, total=8, text="rows measured by model"),
            "8/8 rows measured by model",
        ),
        ("INFO passed: answer_correct: 16 of 48 rows", None, None),
    ],
)  # fmt: skip
def test_progress_is_read_from_the_lines_of_a_step(line, expected, words):
    parsed = progress_of(line)
    assert parsed == expected
    assert (parsed and parsed.words) == words


def test_a_training_tells_the_time_that_is_left_from_its_steps_since_the_first():
    times = iter([100.0, 101.0, 102.0, 106.0, 107.0, 200.0])
    pace = progress.Pace(clock=lambda: next(times))
    texts = [pace.extended(Progress(done=done, total=40, text="loss 0.5")).text for done in (10, 11, 12, 13, 40, 1)]
    assert texts == ["loss 0.5"] * 3 + ["loss 0.5, about 54 s left"] + ["loss 0.5"] * 2
    of_gate = Progress(done=9, total=40, text="rows measured by model")
    assert pace.extended(of_gate) == of_gate


@pytest.fixture
def beats(monkeypatch):
    """Beats every 20 ms, and what was noted at each."""
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.0)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    return []


def wait_for(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_beat_has_the_newest_progress_and_where_the_attempt_went_on(beats):
    writes = []
    with beating(beats.append, lambda: writes.append(1)):
        logging.info("resuming from checkpoint gs://b/checkpoints/train_sft/f/step-00000300/run-1-abcd")
        logging.info("step 301/400 loss 0.5")
        wait_for(lambda: writes and beats[-1] and beats[-1].total)
        logging.info("step 400/400 loss 0.4")
    assert beats[-1] == Progress(done=400, total=400, text="loss 0.4", resumed_at=300)
    assert progress.FILE_ENV not in os.environ


def test_a_measurement_in_a_fork_and_a_rank_of_its_own_process_leave_theirs_too(beats):
    rank = "import logging; from posttrain.step import run; run.configure_logging(); logging.info('step 7/9 loss 1')"
    with beating(beats.append, lambda: None):
        fork = multiprocessing.get_context("fork").Process(
            target=logging.info, args=("base: answered 16 of 48 prompts",)
        )
        fork.start()
        fork.join()
        wait_for(lambda: beats and beats[-1] and beats[-1].done == 16)
        subprocess.run([sys.executable, "-c", rank], check=True)
        wait_for(lambda: beats[-1].done == 7)


def test_storage_that_is_away_costs_a_beat_and_not_the_step(beats, caplog):
    def write() -> None:
        if len(beats) < 3:
            raise OSError("503")

    with beating(beats.append, write):
        wait_for(lambda: len(beats) > 4)
    assert [entry.levelname for entry in caplog.records] == ["WARNING", "WARNING"]


def test_a_training_begins_anew_unless_it_says_otherwise():
    assert progress_of("step 1/2").resumed_at == 0
