import math

import pytest

from validators.intervals import (
    fewest_rows,
    mean,
    mean_interval,
    more_rows_of_mean,
    more_rows_of_share,
    more_rows_until,
    ratio,
    ratio_interval,
    share,
    wilson,
)

SURE = {"confidence": 0.95}


def test_wilson_is_the_published_interval():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_bootstrap_holds_the_mean_and_is_repeatable():
    values = [0.1 * number for number in range(30)]
    low, high = mean_interval(values)
    assert low < sum(values) / 30 < high
    assert mean_interval(values) == (low, high)


def test_the_bootstrap_is_near_the_normal_interval_of_many_rows():
    values = [math.sin(number) for number in range(1000)]
    middle = sum(values) / 1000
    error = 1.96 * math.sqrt(sum((value - middle) ** 2 for value in values) / 999 / 1000)
    assert mean_interval(values) == pytest.approx((middle - error, middle + error), abs=0.1 * error)


def test_a_ratio_weighs_rows_by_their_tokens():
    values, weights = [10.0, 10.0, 200.0] * 2, [10, 10, 100] * 2
    low, high = ratio_interval(values, weights)
    assert 1.0 <= low < 220 / 120 < high <= 2.0
    check = ratio("loss", values, weights, "<", 3.0, **SURE)
    assert (check.value, check.status) == (220 / 120, "passed")


def test_more_rows_make_the_interval_narrow_enough():
    assert more_rows_of_mean(0.5, (0.25, 0.75), 20, 0.625) == 61  # a half as wide from 80 rows on, and one to be sure
    assert more_rows_of_mean(0.5, (0.25, 1.0), 20, 0.375) == 61
    assert more_rows_of_mean(0.5, (0.25, 0.75), 20, 0.125) == 0
    assert more_rows_of_mean(0.5, (0.25, 0.75), 20, 0.5) is None


def test_equal_rows_have_no_spread():
    assert mean_interval([0.5] * 8) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0] * 5, [1.0] * 8 + [math.nan], [1.0] * 8 + [math.inf]])
def test_no_interval_without_numbers(values):
    assert mean_interval(values) is None


@pytest.mark.parametrize(
    "intervals", [lambda sure: wilson(40, 50, sure), lambda sure: mean_interval([*range(30)], sure)]
)
def test_more_confidence_is_a_wider_interval(intervals):
    half, usual, sure = (intervals(confidence) for confidence in (0.5, 0.95, 0.99))
    assert sure[0] < usual[0] < half[0] < half[1] < usual[1] < sure[1]


def test_confidence_decides():
    def statuses(check):
        return [check(confidence).status for confidence in (0.5, 0.99)]

    assert statuses(lambda sure: share("rate", 47, 50, ">=", 0.9, confidence=sure)) == ["passed", "undecided"]
    values = [0.0, 1.0] * 20
    assert statuses(lambda sure: mean("gain", values, ">", 0.4, confidence=sure)) == ["passed", "undecided"]


@pytest.mark.parametrize(
    ("count", "relation", "limit", "status"),
    [
        (50, ">=", 0.9, "passed"),
        (47, ">=", 0.9, "undecided"),
        (43, ">=", 0.9, "undecided"),
        (30, ">=", 0.9, "failed"),
        (0, "<=", 0.1, "passed"),
        (3, "<=", 0.1, "undecided"),
        (20, "<=", 0.1, "failed"),
        (0, ">=", 0.0, "passed"),
        (50, "<=", 1.0, "passed"),
    ],
)
def test_a_share_is_decided_by_its_whole_interval(count, relation, limit, status):
    check = share("rate", count, 50, relation, limit, **SURE, detail="answers", remedy="Do more.")
    assert (check.status, check.value) == (status, count / 50)
    assert check.interval == wilson(count, 50)
    assert check.detail == f"{count} of 50; answers"
    assert (check.more_rows is not None) == (status == "undecided")


@pytest.mark.parametrize("edge", [0, 1])
def test_an_interval_that_ends_at_its_limit(edge):
    limit = wilson(40, 50)[edge]
    at_limit = share("rate", 40, 50, (">=", "<=")[edge], limit, **SURE)
    strictly = share("rate", 40, 50, (">", "<")[edge], limit, **SURE)
    assert (at_limit.status, strictly.status) == ("passed", "undecided")


@pytest.mark.parametrize("relation", [">=", "<=", ">", "<"])
def test_means_without_spread_at_their_limit(relation):
    check = mean("gain", [0.5] * 8, relation, 0.5, **SURE)
    assert check.status == ("passed" if "=" in relation else "failed")


@pytest.mark.parametrize(("count", "total"), [(None, 20), (0, 0), (None, None), (3, None)])
def test_a_share_of_nothing_is_not_measured(count, total):
    assert share("rate", count, total, ">=", 0.0, **SURE).status == "not run"


@pytest.mark.parametrize("values", [None, []])
def test_a_mean_of_nothing_is_not_measured(values):
    assert mean("gain", values, ">", 0.0, **SURE).status == "not run"


@pytest.mark.parametrize(
    ("values", "weights"), [([1.0] * 8, None), (None, [1.0] * 8), ([1.0] * 8, []), ([], [1.0] * 8)]
)
def test_a_ratio_to_nothing_is_not_measured(values, weights):
    assert ratio("loss", values, weights, "<", 3.0, **SURE).status == "not run"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mean_without_a_number_fails(bad):
    check = mean("gain", [1.0] * 8 + [bad], ">", 0.0, **SURE)
    assert (check.status, check.value, check.detail) == ("failed", None, "measured nan")


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_a_handful_of_rows_decides_nothing_however_alike_they_are(num_rows, limit):
    check = mean("gain", [1.0] * num_rows, ">", limit, **SURE, detail="nats")
    assert (check.status, check.value, check.interval, check.more_rows) == ("undecided", 1.0, None, 6 - num_rows)
    assert check.detail == f"{num_rows} rows give no interval; nats"
    assert mean("gain", [1.0] * 6, ">", limit, **SURE).status == ("passed" if limit == 0 else "failed")


@pytest.mark.parametrize(("confidence", "num_rows"), [(0.5, 2), (0.8, 4), (0.95, 6), (0.99, 8)])
def test_rows_that_agree_by_chance_are_rarer_than_the_confidence_allows(confidence, num_rows):
    assert fewest_rows(confidence) == num_rows
    assert 2 * 0.5**num_rows <= 1 - confidence + 1e-9 < 4 * 0.5**num_rows


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0]])
def test_rows_of_no_weight_fail(weights):
    assert ratio("loss", [1.0, 1.0], weights, "<", 9.0, **SURE).status == "failed"


@pytest.mark.parametrize(
    ("count", "total", "limit"), [(47, 50, 0.9), (43, 50, 0.9), (3, 40, 0.1), (6, 6, 0.8), (9, 16, 0.5)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_so_many_more_rows_decide_a_share_and_fewer_do_not(count, total, limit, confidence):
    more = more_rows_of_share(count, total, limit, confidence)

    def decides(num_rows: int) -> bool:
        low, high = wilson(count / total * num_rows, num_rows, confidence)
        return not low <= limit <= high

    assert more > 0 and decides(total + more)
    assert not any(map(decides, range(total, total + more)))


def test_six_of_six_needs_ten_more_to_lie_above_four_in_five():
    assert more_rows_of_share(6, 6, 0.8) == 10
    assert wilson(15, 15)[0] < 0.8 < wilson(16, 16)[0]


def test_a_share_at_its_limit_is_never_decided():
    check = share("rate", 45, 50, ">=", 0.9, **SURE)
    assert (check.status, check.more_rows) == ("undecided", None)
    assert check.remedy == "The value is so close to the limit that no number of rows would decide."


@pytest.mark.parametrize("edge", [0, 1])
def test_a_limit_at_the_edge_of_the_interval_needs_more_rows(edge):
    assert more_rows_of_share(40, 50, wilson(40, 50)[edge]) > 0


@pytest.mark.parametrize(("num_rows", "more"), [(2_500_000, None), (2_499_999, 7_499_998)])
def test_nobody_is_advised_to_add_ten_million_rows(num_rows, more):
    assert more_rows_of_mean(0.5, (0.25, 0.75), num_rows, 0.625) == more


@pytest.mark.parametrize("total", range(1, 60))
def test_all_of_a_sample_is_an_interval_that_ends_at_1(total):
    assert wilson(total, total)[1] == 1 and wilson(0, total)[0] == 0


def test_so_many_more_rows_decide_a_mean():
    values = [0.0, 1.0] * 20
    check = mean("gain", values, ">", 0.4, **SURE)
    assert check.status == "undecided"
    enough = (values * 40)[: len(values) + check.more_rows + 10]  # ten more, for the luck of the resampling
    assert mean("gain", enough, ">", 0.4, **SURE).status == "passed"
    half = (values * 40)[: len(values) + check.more_rows // 2]
    assert mean("gain", half, ">", 0.4, **SURE).status == "undecided"


@pytest.mark.parametrize(
    ("limit", "more"),
    [(0.125, 0), (0.25, 1), (0.375, 121), (0.5, None), (0.75, 321), (1.25, 1), (1.5, 0), (0.5 + 2**-12, None)],
)
def test_an_interval_narrows_with_the_square_root_of_the_rows_on_the_side_of_its_limit(limit, more):
    assert more_rows_of_mean(0.5, (0.25, 1.25), 40, limit) == more


@pytest.mark.parametrize(
    ("total", "enough", "more"),
    [*((10, enough, enough - 10) for enough in (10, 11, 12, 19, 20, 21, 25, 39, 40, 41, 1000)), (10, math.inf, None),
     (2_500_000, 10_000_000, 7_500_000), (2_500_001, 10_000_001, None)],
)  # fmt: skip
def test_the_least_number_of_rows_that_decides(total, enough, more):
    assert more_rows_until(lambda num_rows: num_rows >= enough, total) == more
