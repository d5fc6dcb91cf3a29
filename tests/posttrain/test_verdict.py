import json
import math

import pytest
from pydantic import ValidationError

from posttrain.verdict import Verdict, above, at_least, at_most, below, finite, holds

SUBJECT = {"model": "0" * 64}


@pytest.mark.parametrize(
    ("build", "passing", "failing"), [(below, 1, 2), (at_most, 2, 3), (above, 3, 2), (at_least, 2, 1)]
)
def test_a_limit_is_kept_or_not(build, passing, failing):
    assert build("x", passing, 2).status == "passed"
    assert build("x", failing, 2).status == "failed"


@pytest.mark.parametrize("build", [below, at_most, above, at_least])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_no_finite_number_fails_closed(build, value):
    check = build("x", value, 2)
    assert (check.status, check.value) == ("failed", None)
    assert f"measured {value}" in check.detail


@pytest.mark.parametrize("truthy", [1, 0.5, "True", None, [1]])
def test_only_true_itself_holds(truthy):
    assert holds("x", truthy).status == "failed"
    assert holds("x", True).status == "passed"


def test_a_verdict_passes_only_if_every_check_did():
    assert Verdict(gate="g", subject=SUBJECT, checks=(holds("a", True), holds("b", True))).passed
    verdict = Verdict(gate="g", subject=SUBJECT, checks=(holds("a", False), holds("b", True), below("c", 3, 2)))
    assert not verdict.passed
    assert [check.name for check in verdict.failed_checks] == ["a", "c"]


def test_an_empty_verdict_is_an_error():
    with pytest.raises(ValidationError):
        Verdict(gate="g", subject=SUBJECT, checks=())


def test_a_stored_passed_is_not_believed():
    written = json.loads(Verdict(gate="g", subject=SUBJECT, checks=(holds("a", False),)).model_dump_json())
    assert written["passed"] is False
    written["passed"] = True
    assert not Verdict.read(json.dumps(written)).passed


def test_a_sentence_says_value_limit_and_remedy():
    assert below("loss", 2.41, 2, remedy="Train longer").sentence == "loss: 2.41, not < 2. Train longer"
    assert below("loss", math.nan, 2).sentence == "loss: no number, not < 2 (measured nan)"
    assert below("loss", 1.5, 2, remedy="Train longer").sentence == "loss: 1.5 < 2"


def test_only_finite_numbers_are_kept():
    assert finite({"a": 1, "b": math.nan, "c": None, "d": math.inf}) == {"a": 1.0}
