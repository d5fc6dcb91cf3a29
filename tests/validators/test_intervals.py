import pytest

from validators.intervals import mean_interval, ratio_interval, share_at_least, wilson


def test_wilson_is_the_published_interval():
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I: 81 of 263 and 0 of 20
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_the_bootstrap_holds_the_mean_and_is_repeatable():
    values = [0.1 * number for number in range(30)]
    low, high = mean_interval(values)
    assert low < sum(values) / 30 < high
    assert mean_interval(values) == (low, high)


def test_a_ratio_weighs_rows_by_their_tokens():
    low, high = ratio_interval([10.0, 10.0, 200.0], [10, 10, 100])
    assert 1.0 <= low < 220 / 120 < high <= 2.0


def test_equal_rows_have_no_spread():
    assert mean_interval([0.5] * 8) == (0.5, 0.5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_no_interval_without_numbers(values):
    assert mean_interval(values) is None


def test_a_share_passes_at_its_limit_and_shows_its_counts():
    check = share_at_least("rate", 18, 20, 0.9, remedy="Do more.", detail="answers")
    assert check.status == "passed"
    assert check.detail == "18 of 20; answers"
    assert check.interval == wilson(18, 20)
    assert share_at_least("rate", 17, 20, 0.9, remedy="").status == "failed"


@pytest.mark.parametrize(("count", "total"), [(None, 20), (0, 0), (None, None), (3, None)])
def test_a_share_of_nothing_fails(count, total):
    assert share_at_least("rate", count, total, 0.0, remedy="").status == "failed"
