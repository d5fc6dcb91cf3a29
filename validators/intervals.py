"""95 % intervals of what a gate measures, so that a reader sees how much a number can be trusted.

counts -> Wilson interval of a share · values per row -> bootstrap interval of their mean or ratio
"""

import math

from posttrain.verdict import Check, Interval, at_least

ALPHA = 0.05  # 95 % intervals
NUM_RESAMPLES = 2_000
SEED = 0  # the same rows give the same interval


def wilson(count: int, total: int) -> Interval:
    """Score interval of a share (E. B. Wilson 1927): never outside 0 to 1, and never of width 0."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(count, total, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def ratio_interval(values: list[float], weights: list[float]) -> Interval | None:
    """Percentile bootstrap over rows of sum(values) / sum(weights). None where rows or finite values are too few."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(values) < 2 or not all(map(math.isfinite, values)) or not all(weight > 0 for weight in weights):
        return None
    found = bootstrap(
        (np.asarray(values, float), np.asarray(weights, float)),
        lambda values, weights, axis: values.sum(axis=axis) / weights.sum(axis=axis),
        paired=True, vectorized=True, method="percentile", confidence_level=1 - ALPHA, n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def mean_interval(values: list[float]) -> Interval | None:
    """Percentile bootstrap of the mean."""
    return ratio_interval(values, [1.0] * len(values))


def share_at_least(
    name: str, count: int | None, total: int | None, limit: float, *, remedy: str, detail: str = ""
) -> Check:
    """Passes if count / total >= limit, with the share's interval. Nothing counted fails."""
    if count is None or not total:
        return at_least(name, None, limit, remedy=remedy, detail=detail)
    words = "; ".join(filter(None, [f"{count} of {total}", detail]))
    return at_least(name, count / total, limit, remedy=remedy, detail=words, interval=wilson(count, total))
