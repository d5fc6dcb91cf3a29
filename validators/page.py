"""Renders a verdict as a page that a person can sign off: self-contained HTML without scripts, light and dark.

verdict, the worst generated answers -> HTML
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from posttrain.pages.html import environment
from posttrain.verdict import Check, Verdict

TEMPLATES = Path(__file__).parent / "templates"

WIDTH = 240  # of a scale
MARGIN = 8  # on both sides, for the dot


class ShownAnswer(BaseModel):
    """A generated answer as the page shows it. Every field is untrusted text."""

    model_config = ConfigDict(frozen=True)

    source: str  # held-out prompt, red-team prompt
    prompt: str
    text: str
    fault: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Positions of a check's parts on a scale from 0 to `WIDTH`."""

    limit: float
    allowed: tuple[float, float]
    value: float | None
    interval: tuple[float, float] | None


def html(verdict: Verdict, answers: tuple[ShownAnswer, ...] = ()) -> str:
    """The page of a verdict, with every text in it escaped."""
    passed = [check for check in verdict.checks if check.status == "passed"]
    return _template().render(verdict=verdict, answers=answers, stopped=verdict.failed_checks, passed=passed)


def scale_of(check: Check) -> Scale | None:
    """The scale of a check: 0 to 1 for a share, else the span of its numbers, its limit and 0; None if empty."""
    if check.limit is None or check.status == "timed out":
        return None
    shown = [number for number in (check.limit, check.value, *(check.interval or ())) if number is not None]
    is_share = check.relation == ">=" and check.interval is not None and all(0 <= number <= 1 for number in shown)
    low, high = (0.0, 1.0) if is_share else (min(0.0, *shown), max(0.0, *shown))
    if not (low < high and math.isfinite(2 * (high - low))):
        return None
    high += 0 if is_share else (high - low) * 0.15  # room behind the last number

    def at(number: float) -> float:
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (number - low) / (high - low), 1)

    limit = at(check.limit)
    return Scale(
        limit=limit,
        allowed=(0, limit) if check.relation in ("<", "<=") else (limit, WIDTH),
        value=None if check.value is None else at(check.value),
        interval=(at(check.interval[0]), at(check.interval[1])) if check.interval else None,
    )


@cache
def _template():
    env = environment(TEMPLATES)
    env.filters["scale"] = scale_of
    return env.get_template("verdict.html")
