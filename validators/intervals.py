"""Intervals of what a gate measures, and how many more rows would decide if an interval crosses its limit.

counts -> Wilson interval of a share · values per row -> bootstrap interval of their mean or ratio

Checks on numbers with rows behind them are built here, with interval and `more_rows`; others, such as a file's size,
are built by `posttrain.verdict` directly.
"""

import math
from collections.abc import Callable

from posttrain.config.evidence import fewest_rows
from posttrain.verdict import Check, Interval, above, at_least, at_most, below

CONFIDENCE = 0.95
NUM_RESAMPLES = 2_000
SEED = 0  # the same rows give the same interval
MAX_ROWS = 10_000_000  # nobody can follow advice to add more
BUILDERS = {"<": below, "<=": at_most, ">": above, ">=": at_least}


def wilson(count: float, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a share (E. B. Wilson 1927): never outside 0 to 1, and never of width 0."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, total, alpha=1 - confidence, method="wilson")
    return float(low) if count else 0.0, float(high) if count < total else 1.0  # rounding can miss the ends


def ratio_interval(values: list[float], weights: list[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Percentile bootstrap over rows of sum(values) / sum(weights); None if rows are too few, or not all finite."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) < fewest_rows(confidence) or not _sound(values, weights):
        return None
    interval = bootstrap(
        (np.asarray(values, float), np.asarray(weights, float)),
        lambda values, weights, axis: values.sum(axis=axis) / weights.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_interval(values: list[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Percentile bootstrap of the mean."""
    return ratio_interval(values, [1.0] * len(values), confidence)


def share(
    name: str, count: int | None, total: int | None, relation: str, limit: float, *, confidence: float, **words
) -> Check:
    """count / total against a limit, with its Wilson interval. A share of nothing is not measured.

    Args:
        relation: of the share to the limit, for the check to pass: `<`, `<=`, `>` or `>=`.
    """
    if count is None or not total:
        return BUILDERS[relation](name, None, limit, **words)
    words["detail"] = "; ".join(filter(None, [f"{count} of {total}", words.get("detail", "")]))
    return BUILDERS[relation](
        name,
        count / total,
        limit,
        interval=wilson(count, total, confidence),
        more_rows=more_rows_of_share(count, total, limit, confidence),
        num_rows=total,
        **words,
    )


def ratio(
    name: str,
    values: list[float] | None,
    weights: list[float] | None,
    relation: str,
    limit: float,
    *,
    confidence: float,
    **words,
) -> Check:
    """sum(values) / sum(weights) over rows against a limit, with its bootstrap interval.

    Values that are not finite fail. With too few rows for an interval, their spread is unknown and nothing is decided.
    """
    if not values or not weights:
        return BUILDERS[relation](name, None, limit, **words)
    if not _sound(values, weights):
        return BUILDERS[relation](name, math.nan, limit, **words)
    value, interval = sum(values) / sum(weights), ratio_interval(values, weights, confidence)
    if interval is None:
        words["detail"] = "; ".join(filter(None, [f"{len(values)} rows give no interval", words.get("detail", "")]))
        more = fewest_rows(confidence) - len(values)
    else:
        more = more_rows_of_mean(value, interval, len(values), limit)
    return BUILDERS[relation](name, value, limit, interval=interval, more_rows=more, num_rows=len(values), **words)


def mean(name: str, values: list[float] | None, relation: str, limit: float, *, confidence: float, **words) -> Check:
    """The mean over rows against a limit, with its bootstrap interval."""
    return ratio(name, values, values and [1.0] * len(values), relation, limit, confidence=confidence, **words)


def more_rows_of_share(count: int, total: int, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Rows to add until the Wilson interval of the same share excludes the limit; None: no number would do."""

    def decides(num_rows: int) -> bool:
        low, high = wilson(count / total * num_rows, num_rows, confidence)  # not rounded: the interval only narrows
        return not low <= limit <= high

    return more_rows_until(decides, total)


def more_rows_until(decides: Callable[[int], bool], total: int) -> int | None:
    """How many rows more than `total` until `decides(rows)`, which once true stays so; None: no number would do."""
    if decides(total):
        return 0
    low, enough = total, 2 * total
    while not decides(enough):
        low, enough = enough, 2 * enough
        if enough > MAX_ROWS:
            return None
    while enough - low > 1:  # the least number that decides lies between
        middle = (low + enough) // 2
        low, enough = (low, middle) if decides(middle) else (middle, enough)
    return enough - total


def more_rows_of_mean(value: float, interval: Interval, num_rows: int, limit: float) -> int | None:
    """Rows to add until the interval, which narrows with the square root of their number, excludes the limit."""
    low, high = interval
    if not low <= limit <= high:
        return 0
    distance = abs(value - limit)
    width = value - low if limit < value else high - value
    needed = math.inf if distance == 0 else num_rows * (width / distance) ** 2
    return math.ceil(needed - num_rows) + 1 if needed < MAX_ROWS else None


def _sound(values: list[float], weights: list[float]) -> bool:
    """Tells whether every row has a finite value and a positive weight."""
    return all(map(math.isfinite, values)) and all(weight > 0 for weight in weights)
