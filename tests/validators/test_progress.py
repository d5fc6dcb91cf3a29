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
