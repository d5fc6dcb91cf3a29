"""Logs how far a long measurement has come, for people and for the runner's view.

number of rows done -> `base: answered 16 of 48 prompts, about 20 s left`, at most once a second
"""

import logging
import time

from posttrain.pages.wording import duration

SECONDS_BETWEEN_LINES = 1.0

logger = logging.getLogger(__name__)


class Progress:
    """Counts rows, and tells the time that is left from the time that those before took."""

    def __init__(self, who: str, verb: str, total: int, things: str):
        self.who, self.verb, self.total, self.things = who, verb, total, things
        self.done = 0
        self.started_at = self.logged_at = time.monotonic()

    def advance(self, num_rows: int) -> None:
        """Counts rows that are done. The last of them are always logged."""
        self.done += num_rows
        now = time.monotonic()
        if self.done < self.total and now - self.logged_at < SECONDS_BETWEEN_LINES:
            return
        self.logged_at = now
        logger.info(
            "%s: %s %d of %d %s%s", self.who, self.verb, self.done, self.total, self.things, self._time_left(now)
        )

    def _time_left(self, now: float) -> str:
        if self.done >= self.total:
            return ""
        seconds = (now - self.started_at) / self.done * (self.total - self.done)
        return f", about {duration(max(round(seconds), 1))} left"
