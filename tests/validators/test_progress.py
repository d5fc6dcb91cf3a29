"""How far a measurement has come, and how long the rest will take."""

import logging

from validators import progress
from validators.progress import Progress


def test_the_time_left_follows_from_the_time_that_rows_took(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rows = Progress("base", "answered", 48, "prompts")
    for seconds in (10.0, 0.5, 9.5):  # the second is too soon after the first
        now += seconds
        rows.advance(16)
    assert caplog.messages == [
        "base: answered 16 of 48 prompts, about 20 s left",
        "base: answered 48 of 48 prompts",
    ]


def test_a_line_comes_once_a_second_and_at_the_end(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    rows = Progress("base", "answered", 50, "prompts")
    for seconds, num_rows in ((1.0, 40), (0.875, 1), (0.0625, 9)):
        now += seconds
        rows.advance(num_rows)
    assert caplog.messages == ["base: answered 40 of 50 prompts, about 1.0 s left", "base: answered 50 of 50 prompts"]
