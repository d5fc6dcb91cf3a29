import json
import math

import pytest
from pydantic import ValidationError

from posttrain.verdict import Check, Verdict, above, at_least, at_most, below, finite, holds, none_wrong, rows_more

SUBJECT = {"model": "0" * 64}


@pytest.mark.parametrize(
    ("build", "passing", "failing"), [(below, 1, 2), (at_most, 2, 3), (above, 3, 2), (at_least, 2, 1)]
)
def test_a_limit_is_kept_or_not(build, passing, failing):
    assert build("x", passing, 2).status == "passed"
    assert build("x", failing, 2).status == "failed"


@pytest.mark.parametrize("build", [below, at_most, above, at_least])
@pytest.mark.parametrize(
    ("value", "status", "detail"),
    [
        (math.nan, "failed", "measured nan; tokens"),
        (math.inf, "failed", "measured inf; tokens"),
        (-math.inf, "failed", "measured -inf; tokens"),
        (None, "not run", "not measured; tokens"),
    ],
)
def test_no_finite_number_does_not_pass(build, value, status, detail):
    check = build("x", value, 2, detail="tokens", interval=(1.0, 3.0), more_rows=5)
    assert (check.status, check.value, check.detail) == (status, None, detail)
    assert (check.interval, check.more_rows) == (None, None)


@pytest.mark.parametrize(
    ("build", "interval", "status"),
    [
        (below, (0.5, 1.9), "passed"),
        (below, (0.5, 2.0), "undecided"),
        (at_most, (0.5, 2.0), "passed"),
        (at_most, (0.5, 2.1), "undecided"),
        (above, (0.5, 1.9), "failed"),
        (above, (0.5, 2.1), "undecided"),
        (at_least, (0.5, 1.9), "failed"),
        (at_least, (0.5, 2.0), "undecided"),
    ],
)
def test_an_interval_decides_only_as_a_whole(build, interval, status):
    check = build("x", 1.0, 2, interval=interval, more_rows=7)
    assert check.status == status
    assert check.more_rows == (7 if status == "undecided" else None)


@pytest.mark.parametrize("value", [1, 0.5, "True", [1], False, 0, ""])
def test_only_true_itself_holds(value):
    assert holds("x", value).status == "failed"
    assert holds("x", True).status == "passed"
    assert holds("x", None).status == "not run"


@pytest.mark.parametrize(("wrong", "status"), [([], "passed"), (["a"], "failed"), (None, "not run")])
def test_a_list_of_what_is_wrong_must_have_been_made_and_be_empty(wrong, status):
    assert none_wrong("x", wrong, "mend it").status == status


def test_what_is_wrong_is_named():
    assert none_wrong("x", list("abcd"), "Mend it.").sentence == "x (4: a, b, c). Mend it."


def test_a_verdict_passes_only_if_every_check_did():
    assert Verdict(gate="g", subject=SUBJECT, checks=(holds("a", True), holds("b", True))).passed
    verdict = Verdict(gate="g", subject=SUBJECT, checks=(holds("a", False), holds("b", True), below("c", 3, 2)))
    assert not verdict.passed
    assert [check.name for check in verdict.failed_checks] == ["a", "c"]


TIMED_OUT = Check(name="t", status="timed out")
UNDECIDED = below("u", 1.0, 2, interval=(0.5, 2.5))


@pytest.mark.parametrize(
    ("checks", "outcome"),
    [
        ((holds("a", True),), "passed"),
        ((holds("a", True), UNDECIDED), "undecided"),
        ((UNDECIDED,), "undecided"),
        ((UNDECIDED, holds("b", False)), "failed"),
        ((UNDECIDED, holds("n", None)), "failed"),
        ((holds("a", True), TIMED_OUT), "failed"),
        ((holds("a", True), holds("n", None)), "failed"),
    ],
)
def test_outcome(checks, outcome):
    verdict = Verdict(gate="g", subject=SUBJECT, checks=checks)
    assert verdict.outcome == outcome
    assert verdict.passed is (outcome == "passed")


def test_what_says_most_about_why_comes_first():
    checks = (holds("n", None), UNDECIDED, holds("a", True), holds("f", False), TIMED_OUT)
    verdict = Verdict(gate="g", subject=SUBJECT, checks=checks)
    assert [check.name for check in verdict.failed_checks] == ["f", "t", "u", "n"]


@pytest.mark.parametrize("status", ["PASS", "pass", "", None, True])
def test_another_status_is_refused(status):
    with pytest.raises(ValidationError):
        Check(name="x", status=status)


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": 9.0}, {"value": None}, {"value": 1.0, "interval": (0.5, 2.5)}, {"value": 1.0, "relation": ""},
        {"value": 1.0, "limit": None},
    ],
)  # fmt: skip
def test_a_check_cannot_say_that_it_passed_where_its_number_says_otherwise(wrong):
    sound = {"name": "loss", "status": "passed", "value": 1.0, "limit": 2.0, "relation": "<", "interval": (0.5, 1.5)}
    assert Check(**sound).status == "passed"
    with pytest.raises(ValueError, match="loss"):
        Check(**sound | wrong)
    forged = Verdict(gate="g", subject={}, checks=[Check(**sound)]).model_dump(mode="json")
    forged["checks"] = [sound | wrong]
    with pytest.raises(ValueError, match="loss"):
        Verdict.read(json.dumps(forged))


def test_an_empty_verdict_is_an_error():
    with pytest.raises(ValidationError):
        Verdict(gate="g", subject=SUBJECT, checks=())


def test_a_stored_passed_is_not_believed():
    written = json.loads(Verdict(gate="g", subject=SUBJECT, checks=(holds("a", False),)).model_dump_json())
    assert written["passed"] is False
    written["passed"] = True
    assert not Verdict.read(json.dumps(written)).passed
    assert not Verdict.of(written).passed


def test_a_verdict_is_the_same_when_read_again():
    checks = (UNDECIDED, TIMED_OUT, holds("n", None), holds('"quoted" <b>\n', True))
    verdict = Verdict(gate="g", subject=SUBJECT, checks=checks, numbers={"n": 1.5}, seconds={"loss": 2.0})
    assert Verdict.read(verdict.model_dump_json()) == Verdict.of(verdict.model_dump(mode="json")) == verdict
    written = json.loads(verdict.model_dump_json())
    assert (written["schema_version"], written["outcome"]) == (1, "failed")
    with pytest.raises(ValidationError):
        Verdict.read(json.dumps(written | {"schema_version": 2}))


def test_an_undecided_sentence_says_how_many_rows_would_decide():
    check = at_least("rate", 0.94, 0.9, interval=(0.838, 0.979), more_rows=1234, remedy="Hold out more.")
    assert check.sentence == (
        "rate: 0.94, limit >= 0.9: the interval 0.838 to 0.979 crosses the limit. "
        "About 1,234 more rows would decide, if the value stays: raise data.eval_fraction, or add rows."
    )


def test_an_undecided_share_is_told_in_percent_with_the_rows_that_it_has_and_needs():
    check = at_least(
        "format", 1.0, 0.9, interval=(0.862, 1.0), more_rows=11, num_rows=24, detail="24 of 24; within 64 tokens",
        remedy="Train longer.",
    )  # fmt: skip
    assert check.sentence == (
        "format: 24 of 24 (100 %), limit >= 90 %: the interval 86.2 to 100 % crosses the limit (within 64 tokens). "
        "24 rows cannot decide; about 35 would, if the value stays: raise data.eval_fraction, or add rows."
    )
    prompts = below("harm", 0.0, 0.1, interval=(0.0, 0.3), more_rows=4, num_rows=1, more_rows_by="add prompts")
    assert prompts.remedy == "1 row cannot decide; about 5 would, if the value stays: add prompts."


def test_an_undecided_check_advises_more_than_rows_only_if_its_value_breaks_the_limit():
    check = at_least("rate", 0.88, 0.9, interval=(0.838, 0.979), more_rows=1234, remedy="Train longer.")
    assert check.remedy.endswith(
        "would decide, if the value stays: raise data.eval_fraction, or add rows. Train longer."
    )
    never = at_least("rate", 0.9, 0.9, interval=(0.8, 0.95))
    assert never.sentence == (
        "rate: 0.9, limit >= 0.9: the interval 0.8 to 0.95 crosses the limit. "
        "The value is so close to the limit that no number of rows would decide."
    )
    below_limit = at_least("rate", 0.86, 0.9, interval=(0.8, 0.95), more_rows=9)
    assert below_limit.sentence.startswith(
        "rate: 0.86, limit >= 0.9: the interval 0.8 to 0.95 crosses the limit. About 9 more"
    )


def test_a_sentence_says_value_limit_and_remedy():
    assert below("loss", 2.41, 2, remedy="Train longer").sentence == "loss: 2.41, not < 2. Train longer"
    assert below("loss", math.nan, 2).sentence == "loss: no number, not < 2 (measured nan)"
    assert below("loss", 1.5, 2, remedy="Train longer").sentence == "loss: 1.5 < 2"


def test_only_finite_numbers_are_kept():
    assert finite({"a": 1, "b": math.nan, "c": None, "d": math.inf}) == {"a": 1.0}


@pytest.mark.parametrize("numbers", [{"value": 3.0, "interval": (0.5, 1.0)}, {"value": 1.0, "interval": (0.5, 3.0)}])
def test_neither_the_value_nor_a_part_of_its_interval_may_break_the_limit_of_what_passed(numbers):
    with pytest.raises(ValueError, match="is not <= 2.0, so it has not passed"):
        Check(name="loss", status="passed", limit=2.0, relation="<=", **numbers)


@pytest.mark.parametrize(("answer_match", "is_unjudged"), [("none", True), ("exact", False), (None, False)])
def test_content_is_unjudged_where_nothing_compared_the_answers(answer_match, is_unjudged):
    verdict = Verdict(gate="check_sft", subject={}, checks=(below("loss", 1.0, 2.0),), answer_match=answer_match)
    assert verdict.content_is_unjudged is is_unjudged
    assert (verdict.schema_version, verdict.confidence) == (1, 0.95)


def test_an_undecided_check_without_an_interval_has_a_sentence_too():
    assert Check(name="loss", status="undecided", value=1.0, limit=2.0, relation="<").sentence == "loss: 1 < 2"
    passed = Check(name="loss", status="passed", value=1.0, limit=2.0, relation="<", interval=(0.5, 1.5))
    assert passed.sentence == "loss: 1 < 2"


def test_missing_rows_are_counted_in_words():
    assert [rows_more(number) for number in (1, 2, 1200)] == ["1 more row", "2 more rows", "1,200 more rows"]


@pytest.mark.parametrize("name", ["Verdict", "Check"])
def test_a_word_that_nobody_knows_is_refused(name):
    values = {"Verdict": {"gate": "g", "subject": {}, "checks": [below("a", 1.0, 2.0)]}, "Check": {"name": "a"}}
    kinds = {"Verdict": Verdict, "Check": Check}
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        kinds[name](**values[name], status="passed", more="words")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_of_a_verdict_are_finite(number):
    with pytest.raises(ValueError, match="finite number"):
        Check(name="loss", status="failed", value=number)
    with pytest.raises(ValueError, match="finite number"):
        Verdict(gate="check_sft", subject={}, checks=(below("loss", 1.0, 2.0),), numbers={"loss": number})


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(ValueError, match="confidence"):
        Verdict(gate="check_sft", subject={}, checks=(below("loss", 1.0, 2.0),), confidence=confidence)


def test_an_undecided_share_says_how_many_of_how_many():
    check = at_least("rate", 2 / 3, 0.5, detail="2 of 3; a, b", interval=(0.2, 0.94), more_rows=9, num_rows=2)
    assert check.sentence.startswith("rate: 2 of 3 (66.7 %), limit >= 50 %: the interval 20 to 94 % crosses the limit")
    assert "2 rows cannot decide; about 11 would" in check.sentence


@pytest.mark.parametrize(("value", "interval"), [(3.0, (0.5, 1.0)), (1.0, (2.5, 3.0))])
def test_a_value_outside_its_own_interval_decides_nothing_where_the_two_disagree(value, interval):
    assert below("loss", value, 2.0, interval=interval).status == "undecided"
