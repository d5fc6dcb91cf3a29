"""Differences between two models on the same rows: the interval, its agreement with McNemar, and the checks on it."""

import math

import pytest
from scipy.stats import binomtest, multinomial, norm

from validators import intervals
from validators.paired import mcnemar, mean_score, paired_difference, proportions_interval, tango

SURE = {"confidence": 0.95}


def scores(gained: int, lost: int, total: int) -> tuple[list[float], list[float]]:
    """Scores of two models of which the first is right on `gained` rows that the second gets wrong, and so on."""
    same = [1.0, 0.0] * total
    rest = same[: total - gained - lost]
    return [1.0] * gained + [0.0] * lost + rest, [0.0] * gained + [1.0] * lost + rest


def test_tango_is_the_published_interval():
    # Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness, 7 against 1 of 21
    assert tango(7, 1, 21, 0.95) == pytest.approx((0.026, 0.517), abs=5e-4)


def test_where_mcnemar_sees_no_difference_the_interval_holds_zero():
    assert mcnemar(7, 1) == pytest.approx(0.0703, abs=5e-5)  # the airways again, in the same article
    assert proportions_interval(7, 1, 21) == pytest.approx((0.0, 0.517), abs=5e-4)


def test_a_difference_is_seen_from_a_p_of_what_the_confidence_leaves():
    assert mcnemar(5, 0) == 0.0625 and mcnemar(3, 3.5) == 1.0  # which would be more
    assert proportions_interval(5, 0, 40, 0.9375)[0] > 0


def test_the_interval_of_a_single_row():
    z = norm.ppf(0.975)
    assert tango(0, 0, 1, 0.95) == pytest.approx((-(z**2) / (1 + z**2), z**2 / (1 + z**2)))
    assert tango(1, 0, 1, 0.95) == pytest.approx(((1 - z**2) / (1 + z**2), 1))


def test_rows_without_a_difference_are_not_infinitely_sure():
    assert proportions_interval(0, 0, 54) == pytest.approx((-0.0664, 0.0664), abs=5e-5)  # z^2 / (n + z^2)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_leaves_zero_out_exactly_where_mcnemar_sees_a_difference(confidence):
    for total in (1, 7, 20, 33):
        for gained in range(total + 1):
            for lost in range(total + 1 - gained):
                low, high = proportions_interval(gained, lost, total, confidence)
                p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
                assert mcnemar(gained, lost) == pytest.approx(p)
                assert (low > 0 or high < 0) == (p < 1 - confidence), (gained, lost, total)
                assert -1 <= low <= (gained - lost) / total <= high <= 1


@pytest.mark.parametrize(("total", "limit"), [(20, 0.0), (20, 0.1), (40, 0.05), (40, 0.2)])
def test_a_true_difference_at_the_limit_passes_no_more_often_than_the_confidence_allows(total, limit):
    """Every outcome of so many rows, weighed by its probability: no simulation."""
    counts = [(g, lost) for g in range(total + 1) for lost in range(total + 1 - g)]
    intervals = [proportions_interval(*count, total) for count in counts]
    for lost in (0.01, 0.05, 0.1, 0.2):
        shares = [lost + limit, lost, 1 - 2 * lost - limit]
        weights = multinomial.pmf([[*count, total - sum(count)] for count in counts], total, shares)
        below = sum(weight for weight, (_, high) in zip(weights, intervals, strict=True) if high < limit)
        above = sum(weight for weight, (low, _) in zip(weights, intervals, strict=True) if low > limit)
        assert below < 0.031 and above < 0.045  # 0.025 is nominal; the second where hardly a row is lost
        assert limit or (below <= 0.025 and above <= 0.025)  # exact there


@pytest.mark.parametrize(
    ("gained", "lost", "total", "relation", "limit", "status"),
    [
        (12, 0, 40, ">", 0.0, "passed"),
        (6, 0, 40, ">", 0.0, "passed"),
        (5, 0, 40, ">", 0.0, "undecided"),  # McNemar: p = 0.0625
        (0, 0, 40, ">", 0.0, "undecided"),
        (0, 12, 40, ">", 0.0, "failed"),
        (0, 0, 64, "<=", 0.1, "passed"),
        (0, 0, 20, "<=", 0.1, "undecided"),
        (2, 2, 64, "<=", 0.1, "passed"),
        (5, 0, 64, "<=", 0.1, "undecided"),
        (20, 0, 64, "<=", 0.1, "failed"),
    ],
)
def test_a_difference_of_shares_is_decided_by_its_whole_interval(gained, lost, total, relation, limit, status):
    check = paired_difference("gain", *scores(gained, lost, total), relation, limit, **SURE, detail="held-out rows")
    assert (check.status, check.value) == (status, (gained - lost) / total)
    assert check.interval == proportions_interval(gained, lost, total)
    assert check.detail.endswith(f"on {total} rows, better on {gained} and worse on {lost}; held-out rows")


@pytest.mark.parametrize(("gained", "lost", "total", "limit"), [(5, 0, 40, 0.0), (5, 0, 64, 0.1), (0, 0, 20, 0.1)])
def test_so_many_more_rows_decide_and_half_as_many_do_not(gained, lost, total, limit):
    check = paired_difference("drop", *scores(gained, lost, total), "<=", limit, **SURE)
    assert check.status == "undecided" and check.more_rows

    def decides(num_rows: float) -> bool:
        low, high = proportions_interval(gained * num_rows / total, lost * num_rows / total, num_rows)
        return not low <= limit <= high

    assert decides(total + check.more_rows) and not decides(total + check.more_rows - 1)


def test_a_difference_at_its_limit_is_decided_by_no_number_of_rows():
    check = paired_difference("gain", *scores(0, 0, 40), ">", 0.0, **SURE)
    assert (check.status, check.more_rows) == ("undecided", None)


def test_scores_between_are_bootstrapped_on_their_differences():
    before = [0.1, 0.8] * 20  # far apart: unpaired, a gain of a few hundredths would drown
    after = [score + (0.05 if at % 4 else 0.1) for at, score in enumerate(before)]
    check = paired_difference("gain", after, before, ">", 0.0, **SURE)
    assert check.status == "passed" and 0.05 < check.interval[0] < check.value < check.interval[1] < 0.1


@pytest.mark.parametrize(("total", "status"), [(1, "undecided"), (6, "undecided"), (20, "undecided"), (64, "passed")])
def test_equal_scores_on_few_rows_do_not_prove_that_nothing_was_lost(total, status):
    check = paired_difference("drop", [0.5] * total, [0.5] * total, "<=", 0.1, **SURE)
    assert (check.status, check.value) == (status, 0.0)
    assert check.interval[1] == pytest.approx(1 - 0.025 ** (1 / total))


@pytest.mark.parametrize(("value", "low", "high"), [(0.5, -0.2076, 1.0), (-0.5, -1.0, 0.2076), (0.0, -0.7076, 0.7076)])
def test_equal_differences_are_as_unsure_as_rows_that_were_not_seen_and_no_more_than_all(value, low, high):
    check = paired_difference("gain", [0.5 + value / 2] * 3, [0.5 - value / 2] * 3, ">", 0.1, **SURE)
    assert (check.value, check.interval) == (value, pytest.approx((low, high), abs=5e-5))


def test_one_score_between_makes_all_of_them_scores():
    check = paired_difference("gain", [1.0, 0.5] * 20, [0.0, 0.4] * 20, ">", 0.0, **SURE)
    assert check.value == pytest.approx(0.55) and check.interval[1] < 1
    assert mean_score("right", [1.0, 0.25] * 20, ">=", 0.5, **SURE).detail == "mean score of 40 answers"


def test_of_equal_scores_so_many_more_rows_decide():
    assert paired_difference("drop", [0.5] * 20, [0.5] * 20, "<=", 0.1, **SURE).more_rows == 16  # 0.025 = 0.9^35.01


def test_scores_of_right_and_wrong_alone_are_a_share():
    check = mean_score("right", [1.0] * 9 + [0.0], ">=", 0.5, **SURE, detail="answers")
    assert check == intervals.share("right", 9, 10, ">=", 0.5, **SURE, detail="answers")


def test_a_mean_of_scores_between_has_an_interval_of_its_own():
    check = mean_score("right", [0.5, 0.75] * 20, ">=", 0.5, **SURE, detail="held-out rows")
    assert (check.status, check.value) == ("passed", 0.625)
    assert check.detail == "mean score of 40 answers; held-out rows"
    assert 0.5 < check.interval[0] < 0.625 < check.interval[1] < 0.75


@pytest.mark.parametrize(("scores", "status"), [(None, "not run"), ([], "not run"), ([1.0, 1.1], "failed")])
@pytest.mark.parametrize("relation", ["<=", ">="])
def test_a_mean_of_what_is_no_score_does_not_pass(scores, status, relation):
    assert mean_score("right", scores, relation, 0.5, **SURE).status == status


@pytest.mark.parametrize("sides", [(None, [1.0]), ([1.0], None), ([], [])])
def test_what_one_model_did_not_answer_is_not_measured(sides):
    assert paired_difference("gain", *sides, ">=", -1.0, **SURE).status == "not run"


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.5, -0.1])
def test_a_score_that_is_none_fails(bad):
    assert paired_difference("gain", [bad] + [1.0] * 40, [0.0] * 41, ">=", -1.0, **SURE).status == "failed"


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="gain: 2 scores against 3: both models must answer the same rows"):
        paired_difference("gain", [1.0] * 2, [1.0] * 3, ">", 0.0, **SURE)


def test_more_rows_are_asked_for_while_the_interval_ends_at_its_limit():
    check = paired_difference("gain", *scores(0, 5, 40), ">=", 0.0, **SURE)  # p = 0.0625, as for 5 against 0
    assert (check.status, check.interval[1]) == ("undecided", 0.0)
    assert check.more_rows == paired_difference("drop", *scores(5, 0, 40), "<=", 0.0, **SURE).more_rows > 0
