"""The number of rows said to be needed decides a limit at a perfect score in the real checks; fewer rows do not."""

import pytest

from posttrain.config import evidence
from validators import intervals, paired
from validators.collapse import following

CONFIDENCES = [0.5, 0.8, 0.95, 0.99]


def passes_floor(num_rows: int, limit: float, confidence: float) -> bool:
    check = intervals.share("x", num_rows, num_rows, ">=", limit, confidence=confidence)
    return check.status == "passed"


def passes_ceiling(num_rows: int, limit: float, confidence: float) -> bool:
    check = intervals.share("x", 0, num_rows, "<=", limit, confidence=confidence)
    same = paired.paired_difference("x", [1.0] * num_rows, [1.0] * num_rows, "<=", limit, confidence=confidence)
    assert check.status == same.status  # a share of nothing, and two models that differ on nothing
    return check.status == "passed"


def passes_gain(num_rows: int, limit: float, confidence: float) -> bool:
    check = paired.paired_difference("x", [1.0] * num_rows, [0.0] * num_rows, ">", limit, confidence=confidence)
    return check.status == "passed"


def passes_bootstrap(num_rows: int, limit: float, confidence: float) -> bool:
    return intervals.mean("x", [0.0] * num_rows, "<=", limit, confidence=confidence).status == "passed"


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize(
    ("statistic", "limit", "passes"),
    [
        *((evidence.FLOOR, limit, passes_floor) for limit in (0.5, 0.7, 0.9, 0.99)),
        *((evidence.CEILING, limit, passes_ceiling) for limit in (0.05, 0.1, 0.3, 0.8)),
        *((evidence.GAIN, limit, passes_gain) for limit in (-0.9, -0.2, 0.0, 0.3, 0.9)),
        (evidence.BOOTSTRAP, 0.1, passes_bootstrap),
    ],
)
def test_so_many_rows_decide_and_one_fewer_does_not(statistic, limit, passes, confidence):
    num_rows = statistic.rows(limit, confidence)
    assert passes(num_rows, limit, confidence) and passes(num_rows + 7, limit, confidence)
    assert num_rows == 1 or not passes(num_rows - 1, limit, confidence)


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_so_many_rows_tell_answers_from_answers_dealt_out_at_random(confidence):
    def low(num_rows: int) -> float:
        texts = [f"{digit * 9} {digit}" for digit in "abcdefghijk"[:num_rows]]
        _, (low, _) = following(texts, texts, confidence)
        return low

    num_rows = evidence.PERMUTATION.rows(0.05, confidence)
    assert low(num_rows) > 0.05
    assert num_rows == 2 or low(num_rows - 1) <= 0.05


@pytest.mark.parametrize(("statistic", "limit"), [(evidence.FLOOR, 1.0), (evidence.CEILING, 0.0), (evidence.GAIN, 1.0)])
def test_what_no_interval_reaches_no_number_of_rows_decides(statistic, limit):
    assert statistic.rows(limit, 0.95) is None


def test_a_limit_that_everything_keeps_needs_one_row():
    assert evidence.FLOOR.rows(0.0, 0.95) == evidence.CEILING.rows(1.0, 0.95) == evidence.GAIN.rows(-1.0, 0.95) == 1


@pytest.mark.parametrize("statistic", [evidence.FLOOR, evidence.CEILING, evidence.GAIN])
@pytest.mark.parametrize("num_rows", [7, 16, 64, 500])
def test_the_tightest_limit_is_one_that_so_many_rows_decide(statistic, num_rows):
    tightest = statistic.tightest(num_rows, 0.95)
    assert statistic.rows(tightest, 0.95) <= num_rows
    tighter = tightest - 0.02 if statistic is evidence.CEILING else tightest + 0.02
    needed = statistic.rows(tighter, 0.95)
    assert needed is None or needed > num_rows
