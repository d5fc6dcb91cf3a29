"""How many rows a limit needs before its gate can decide: with fewer, not even a perfect score passes.

limit, confidence -> number of rows at a perfect score, or the tightest limit that so many rows can decide

A gate passes a value only if its whole interval keeps the limit. At a perfect score the bounds of the intervals in
`validators` have closed forms, with z the normal quantile of the confidence: n right of n are at least n / (n + z²)
(Wilson), none wrong of n at most z² / (n + z²) (Wilson, and Tango for two models that differ on no row), and a gain on
every row is at least (n - z²) / (n + z²) (Tango). Whatever is resampled needs `fewest_rows`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.section import Count, Section

# What is counted: rows and different prompts that a data set holds out, prompts of a file that a gate asks, rows of a
# bundled suite.
Of = Literal[
    "sft_rows", "sft_prompts", "preference_rows", "prompts", "red_team_prompts", "off_topic_prompts", "benign_prompts",
    "skill_rows",
]  # fmt: skip
Part = Literal["held_out", "selection", "unseen"]  # all held-out rows, or a sweep's two parts of them


class Need(Section):
    """A number of rows below which these limits cannot be decided."""

    of: Of
    part: Part = "held_out"
    num_rows: Count
    limits: dict[str, float]  # keys of validation with their values


class Evidence(Section):
    """Numbers of rows that the gates of a graph need, and the settings they follow from."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    eval_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of prompts held out
    # in a sweep: share of the held-out prompts that only judge the winner
    unseen_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    needs: list[Need] = []


@dataclass(frozen=True)
class Statistic:
    """A kind of interval, as it is at a perfect score."""

    rows: Callable[[float, float], int | None]  # limit, confidence -> rows needed; None: no number would do
    tightest: Callable[[int, float], float] | None = None  # rows, confidence -> the tightest limit that they can decide
    remedy: Literal["lower", "raise", ""] = ""  # what makes the limit less tight


def fewest_rows(confidence: float) -> int:
    """Rows that a bootstrap needs. It never leaves the range of its rows, so that with fewer, as in the sign test,
    chance alone puts the whole interval on one side of the truth more often than the confidence allows.
    """
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def _squared_z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2) ** 2


def _rows_for_floor(limit: float, confidence: float) -> int | None:
    if limit >= 1:
        return None
    return max(1, math.ceil(_squared_z(confidence) * limit / (1 - limit)))


def _rows_for_ceiling(limit: float, confidence: float) -> int | None:
    if limit <= 0:
        return None
    return max(1, math.ceil(_squared_z(confidence) * (1 - limit) / limit))


def _rows_for_gain(limit: float, confidence: float) -> int | None:
    """Rows for a gain that must exceed the limit. Only from `fewest_rows` on does McNemar's test see a difference."""
    if limit >= 1:
        return None
    num_rows = max(1, math.floor(_squared_z(confidence) * (1 + limit) / (1 - limit)) + 1)
    return max(num_rows, fewest_rows(confidence)) if limit >= 0 else num_rows


def _rows_for_permutation(limit: float, confidence: float) -> int:
    """Rows of which so few orders leave every answer in its place that chance does not explain it."""
    if limit < 0:
        return 1  # answers in another order are no nearer than these
    return next(num_rows for num_rows in range(2, 30) if math.factorial(num_rows) >= 2 / (1 - confidence))


def _floor(num_rows: int, confidence: float) -> float:
    return _rounded_down(num_rows / (num_rows + _squared_z(confidence)))


def _gain(num_rows: int, confidence: float) -> float:
    squared_z = _squared_z(confidence)
    return _rounded_down((num_rows - squared_z) / (num_rows + squared_z))


def _ceiling(num_rows: int, confidence: float) -> float:
    return round(1 - _floor(num_rows, confidence), 2)


def _rounded_down(share: float) -> float:
    return math.floor(100 * share) / 100


FLOOR = Statistic(_rows_for_floor, _floor, "lower")  # a share, at least the limit
CEILING = Statistic(_rows_for_ceiling, _ceiling, "raise")  # a share, or a decrease of one, at most the limit
GAIN = Statistic(_rows_for_gain, _gain, "lower")  # an increase of a share, above the limit
BOOTSTRAP = Statistic(lambda _, confidence: fewest_rows(confidence))  # a mean or a ratio, on either side of the limit
PERMUTATION = Statistic(_rows_for_permutation)  # how far answers follow their prompts
COUNT = Statistic(lambda limit, _: max(1, math.ceil(limit)), lambda num_rows, _: num_rows, "lower")  # rows themselves
