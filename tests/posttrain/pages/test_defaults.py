"""Limits that are weaker than the defaults."""

import pytest

from posttrain.config import Validation
from posttrain.pages import defaults
from posttrain.verdict import Verdict, above, at_least, at_most, below


@pytest.mark.parametrize(
    ("check", "default"),
    [
        (at_least("answer_correct", 0.6, 0.4), 0.5),
        (at_least("answer_correct", 0.6, 0.5), None),
        (at_least("answer_correct", 0.6, 0.6), None),
        (below("held_out_loss", 1.0, 3.0), 2.0),
        (below("held_out_loss", 1.0, 1.5), None),
        (above("accuracy_gain", 0.1, -0.5), 0.0),
        (at_least("length_ratio_shorter", 0.9, 1 / 3), 1 / 1.5),
        (at_least("length_ratio_shorter", 0.9, 1 / 1.5), None),
        (at_most("a_check_of_the_user", 1.0, 100.0), None),
    ],
)
def test_a_limit_is_weaker_in_the_direction_of_its_check(check, default):
    assert defaults.stricter_default(check) == default


def test_every_key_is_one_of_the_configuration():
    assert set(defaults.KEYS.values()) <= Validation.model_fields.keys()
    assert all(isinstance(defaults._default(name), float) for name in defaults.KEYS)


def test_each_weak_limit_is_listed_once_and_the_confidence_with_them():
    gates = [
        Verdict(gate=gate, subject={}, checks=(at_least("answer_correct", 0.6, 0.4),), confidence=0.8)
        for gate in ("check_sft", "check_alignment")
    ]
    assert defaults.weaker(gates) == [("confidence", "0.8", "0.95"), ("answer_correct", "≥ 0.4", "≥ 0.5")]
