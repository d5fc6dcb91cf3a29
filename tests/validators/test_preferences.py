import math

import pytest

from posttrain.config import AlignmentLimits
from validators import preferences as p

ROWS = [(-20.0, 10)] * 20
LIMITS = AlignmentLimits()


def stopping(chosen: list, rejected: list, limits: AlignmentLimits = LIMITS) -> list[str]:
    """Names of the checks that do not pass on a model whose answers were all at -20 nats before."""
    gains = p.gains_of((ROWS[: len(chosen)], ROWS[: len(chosen)]), (chosen, rejected))
    checks = [*p.learned_checks(gains, limits, beta=0.1), p.chosen_drop_check(gains, chosen, limits)]
    return [check.name for check in checks if check.status != "passed"]


def moved(nats: float, num: int = 20) -> list:
    return [(-20.0 + nats, 10)] * num


def test_a_model_that_learned_passes():
    assert stopping(moved(1), moved(-5)) == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (moved(1, 13) + moved(-6, 7), moved(-5), ["reward_accuracy", "reward_accuracy_above_chance"]),
        (moved(-5.5), moved(-20), ["chosen_drop"]),
        (moved(0.01), moved(-0.01), ["preference_shift"]),
        (moved(-1), moved(1), ["reward_accuracy", "reward_accuracy_above_chance", "reward_margin", "preference_shift"]),
        (moved(1, 6), moved(-5, 6), ["reward_accuracy"]),
    ],
)
def test_each_check_can_stop(chosen, rejected, expected):
    assert stopping(chosen, rejected) == expected


def test_a_model_that_did_not_move_prefers_nothing():
    accuracy, *_ = p.learned_checks(p.gains_of((ROWS, ROWS), (ROWS, ROWS)), LIMITS, beta=0.1)
    assert (accuracy.value, accuracy.status) == (0.0, "failed")


def test_the_margin_can_stop_alone():
    assert stopping(moved(1), moved(-5), AlignmentLimits(min_margin=0.7)) == ["reward_margin"]


def test_few_pairs_are_undecided_and_say_how_many_more_would_do():
    gains = p.gains_of((ROWS[:3], ROWS[:3]), (moved(1, 3), moved(-5, 3)))
    accuracy = p.learned_checks(gains, LIMITS, beta=0.1)[0]
    assert accuracy.status == "undecided" and accuracy.more_rows > 3


@pytest.mark.parametrize(
    ("loss", "status"), [(math.log(2), "passed"), (0.6, "failed"), (math.nan, "failed"), (None, "not run")]
)
def test_training_starts_at_ln_2(loss, status):
    assert p.start_check(loss, LIMITS).status == status


def test_limits_on_kl_and_sft_loss():
    assert p.start_kl_check([(1.0, 10)] * 20, LIMITS).status == "passed"
    assert p.start_kl_check([(9.0, 10)] * 20, LIMITS).status == "failed"
    assert p.sft_loss_check(ROWS, moved(-0.5), LIMITS).status == "passed"
    assert p.sft_loss_check(ROWS, moved(-2), LIMITS).status == "failed"
    assert p.sft_loss_check(ROWS, moved(math.nan), LIMITS).status == "failed"


def test_what_was_not_measured_is_not_run():
    for gains in (p.gains_of((None, None), (ROWS, ROWS)), p.gains_of((ROWS, ROWS), (None, ROWS))):
        checks = [*p.learned_checks(gains, LIMITS, beta=0.1), p.chosen_drop_check(gains, ROWS, LIMITS)]
        checks += [p.start_kl_check(None, LIMITS), p.sft_loss_check(None, ROWS, LIMITS)]
        assert {check.status for check in checks} == {"not run"}
