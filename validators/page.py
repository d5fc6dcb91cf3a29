"""Renders a verdict as a page that a person can sign off: self-contained HTML without scripts, light and dark.

verdict, the answers that it was found on -> HTML, with those side by side that failed, and the worst in full
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrain.pages import abilities, defaults, skills
from posttrain.pages.answers import AnsweredPrompt, columns_of, worst_first
from posttrain.pages.html import environment
from posttrain.verdict import Check, Verdict

TEMPLATES = Path(__file__).parent / "templates"

NUM_SIDE_BY_SIDE = 15  # held-out prompts
NUM_WORST = 5  # answers in full
WIDTH = 240  # of a scale
MARGIN = 8  # on both sides, for the dot


@dataclass(frozen=True, slots=True)
class Scale:
    """Positions of a check's parts on a scale from 0 to `WIDTH`."""

    limit: float
    allowed: tuple[float, float]
    value: float | None
    interval: tuple[float, float] | None


def html(verdict: Verdict, answers: Iterable[AnsweredPrompt] = ()) -> str:
    """The page of a verdict, with every text in it escaped."""
    answers = list(answers)
    passed = [check for check in verdict.checks if check.status == "passed"]
    asked = worst_first(row for row in answers if row.source == "held-out prompt")
    titles = abilities.titles(verdict)
    return _template().render(
        verdict=verdict, stopped=verdict.failed_checks, passed=passed, side_by_side=asked[:NUM_SIDE_BY_SIDE],
        num_asked=len(asked), weak=defaults.weaker([verdict]), abilities=abilities.abilities(verdict),
        titles=titles, numbers=skills.others(verdict.numbers), columns=columns_of(asked, titles),
        worst=worst(answers),
        skills=[skills.cells(score) for score in skills.scores(verdict.numbers)],
    )  # fmt: skip


def worst(answers: list[AnsweredPrompt]) -> list[AnsweredPrompt]:
    """Wrong answers alone: one of each kind of fault before a second of any."""
    kinds: dict[tuple[str, str], list[AnsweredPrompt]] = {}
    for row in worst_first(row for row in answers if row.model and row.is_wrong):
        kinds.setdefault((row.source, row.model.mark), []).append(row)
    ranked = [(rank, row) for rows in kinds.values() for rank, row in enumerate(rows)]
    return [row for _, row in sorted(ranked, key=lambda item: item[0])][:NUM_WORST]


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
