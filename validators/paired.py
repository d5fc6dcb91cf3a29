"""Compares two models on the same rows: by how much do their scores differ, and could chance alone explain it?

scores of one model, scores of the other, row by row -> interval of the mean difference, and a check on it

Scores of 0 and 1 are judged as counts: only the rows on which the models differ say anything. The interval is Tango's
score interval (T. Tango, Statistics in Medicine 17 (1998) 891-908), which Fagerland, Lydersen and Laake (Statistics in
Medicine 33 (2014) 2850-2875) recommend for paired proportions: it holds its confidence against any limit, and rows on
which no model differs do not make it infinitely sure. Against 0 it says what McNemar's exact test says, that is the
binomial test of the rows on which the models differ: where that test sees no difference, the interval holds 0. Both
halves are needed. The exact test knows no other limit than 0, and Tango's interval alone calls 4 rows against 0 a
difference, which the exact test (p = 0.125) does not. Over every outcome of 20 and 40 rows either end is wrong in at
most 3 % of all cases where 2.5 % are nominal, or 4.5 % where one model hardly ever does worse; against 0 in 1.9 %.

Other scores are judged by the paired bootstrap of `validators.intervals`.
"""

import math

from posttrain.verdict import Check, Interval
from validators import intervals

NUM_HALVINGS = 60  # of [-1, 1]: below the precision of a float


def paired_difference(
    name: str,
    scores: list[float] | None,
    minus: list[float] | None,
    relation: str,
    limit: float,
    *,
    confidence: float,
    **words,
) -> Check:
    """The mean of `scores` minus the mean of `minus`, on the same rows and in the same order, against a limit.

    Scores outside [0, 1], NaN among them, fail. No rows are not measured.

    Raises:
        ValueError: the two lists are of different lengths, so they cannot be of the same rows.
    """
    if not scores or not minus:
        return intervals.BUILDERS[relation](name, None, limit, **words)
    if len(scores) != len(minus):
        raise ValueError(f"{name}: {len(scores)} scores against {len(minus)}: both models must answer the same rows")
    if not all(0 <= score <= 1 for score in (*scores, *minus)):
        return intervals.BUILDERS[relation](name, math.nan, limit, **words)
    words["detail"] = "; ".join(filter(None, [_counted(scores, minus), words.get("detail", "")]))
    if all(score in (0, 1) for score in (*scores, *minus)):
        return _of_counts(name, scores, minus, relation, limit, confidence=confidence, **words)
    return _of_scores(name, scores, minus, relation, limit, confidence=confidence, **words)


def mean_score(
    name: str, scores: list[float] | None, relation: str, limit: float, *, confidence: float, **words
) -> Check:
    """The mean of scores from 0 to 1 against a limit: of right and wrong a share with Wilson's interval.

    Scores outside [0, 1], NaN among them, fail. No rows are not measured.
    """
    if not scores:
        return intervals.BUILDERS[relation](name, None, limit, **words)
    if not all(0 <= score <= 1 for score in scores):
        return intervals.BUILDERS[relation](name, math.nan, limit, **words)
    if all(score in (0, 1) for score in scores):
        return intervals.share(name, int(sum(scores)), len(scores), relation, limit, confidence=confidence, **words)
    words["detail"] = "; ".join(filter(None, [f"mean score of {len(scores)} answers", words.get("detail", "")]))
    return _of_scores(name, scores, [0.0] * len(scores), relation, limit, confidence=confidence, **words)


def proportions_interval(
    gained: float, lost: float, total: float, confidence: float = intervals.CONFIDENCE
) -> Interval:
    """Interval of (gained - lost) / total, the difference of two paired shares: Tango's, agreeing with McNemar's test.

    Args:
        gained: rows that are right in the first list and wrong in the second; `lost`: the other way round.
    """
    low, high = tango(gained, lost, total, confidence)
    if mcnemar(gained, lost) > 1 - confidence:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def tango(gained: float, lost: float, total: float, confidence: float) -> Interval:
    """Tango's score interval alone: the differences that lie fewer than z standard errors from the counts."""
    from scipy.stats import norm

    z, difference = float(norm.ppf((1 + confidence) / 2)), (gained - lost) / total

    def root(low: float, high: float, wanted: float) -> float:
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if _score(gained, lost, total, middle) > wanted else (low, middle)
        return (low + high) / 2

    return root(-1.0, difference, z), root(difference, 1.0, -z)


def mcnemar(gained: float, lost: float) -> float:
    """Two-sided p of McNemar's exact test: the binomial test of 1/2 on the rows on which two models differ.

    Counts need not be whole (`more_rows` asks for fractions of rows): the binomial sum is a beta function.
    """
    from scipy.special import betainc

    few, many = sorted((gained, lost))
    if many == few:
        return 1.0
    return min(1.0, 2 * float(betainc(many, few + 1, 0.5)))


def _score(gained: float, lost: float, total: float, difference: float) -> float:
    """Tango's score statistic: how many standard errors the counts lie above this difference."""
    a, b = 2 * total, (2 * total - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    share_lost = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # likeliest one under this difference
    variance = total * (2 * share_lost + difference * (1 - difference))
    above = gained - lost - total * difference
    if variance <= 1e-12:  # no spread is left: every row differs, or none does
        return 0.0 if abs(above) < 1e-9 else math.copysign(math.inf, above)
    return above / math.sqrt(variance)


def _of_counts(
    name: str, scores: list[float], minus: list[float], relation: str, limit: float, *, confidence: float, **words
) -> Check:
    """The difference of two shares of right rows."""
    pairs, total = [*zip(scores, minus, strict=True)], len(scores)
    gained, lost = sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)

    def decides(num_rows: int) -> bool:
        grown = num_rows / total
        return _is_outside(limit, proportions_interval(gained * grown, lost * grown, num_rows, confidence))

    return intervals.BUILDERS[relation](
        name, (gained - lost) / total, limit, interval=proportions_interval(gained, lost, total, confidence),
        more_rows=intervals.more_rows_until(decides, total), **words,
    )  # fmt: skip


def _of_scores(
    name: str, scores: list[float], minus: list[float], relation: str, limit: float, *, confidence: float, **words
) -> Check:
    """The mean difference of scores between 0 and 1. A bootstrap of rows that all differ alike knows no spread: then
    the interval is as wide as rows that were not seen may be many, which is Clopper and Pearson's bound of 0 rows.
    """
    differences = [one - other for one, other in zip(scores, minus, strict=True)]
    if len(set(differences)) > 1:
        return intervals.mean(name, differences, relation, limit, confidence=confidence, **words)
    value, total = differences[0], len(differences)

    def around(num_rows: int) -> Interval:
        unseen = 1 - ((1 - confidence) / 2) ** (1 / num_rows)  # share of rows that may be otherwise, by up to 2
        return max(-1.0, value - unseen), min(1.0, value + unseen)

    def decides(num_rows: int) -> bool:
        return _is_outside(limit, around(num_rows))

    return intervals.BUILDERS[relation](
        name, value, limit, interval=around(total), more_rows=intervals.more_rows_until(decides, total), **words
    )


def _is_outside(limit: float, interval: Interval) -> bool:
    low, high = interval
    return not low <= limit <= high


def _counted(scores: list[float], minus: list[float]) -> str:
    """`mean 0.8 against 0.6 on 50 rows, better on 12 and worse on 2`."""
    pairs = [*zip(scores, minus, strict=True)]
    better, worse = sum(one > other for one, other in pairs), sum(one < other for one, other in pairs)
    means = (f"{sum(column) / len(column):.4g}" for column in (scores, minus))
    return f"mean {' against '.join(means)} on {len(scores)} rows, better on {better} and worse on {worse}"
