"""The matcher of answers, chosen or derived, and its judge."""

import pytest

from posttrain.config import Validation


@pytest.mark.parametrize(
    ("validation", "matcher"),
    [
        ({"output_format": {"kind": "tool_call"}}, "tool_call"),
        ({"output_format": {"kind": "json_schema", "json_schema": {"type": "object"}}}, "json"),
        ({"output_format": {"kind": "regex", "pattern": "yes|no"}}, "exact"),
        ({"answer_match": "number", "output_format": {"kind": "tool_call"}}, "number"),
        ({"answer_match": "none"}, "none"),
        ({"answer_match": "acme.match:same"}, "acme.match:same"),
    ],
)
def test_the_matcher_follows_from_the_form_unless_it_is_named(validation, matcher):
    limits = Validation.model_validate(validation)
    assert (limits.matcher, limits.matching_judge) == (matcher, None)


def test_plain_text_needs_a_matcher_or_a_plain_none():
    with pytest.raises(ValueError, match="plain text is right: give one of exact, contains, .* or set it to none, and"):
        _ = Validation().matcher


@pytest.mark.parametrize("key", ["judge", "judge_model", "red_team_prompts", "benign_prompts"])
def test_harm_is_asked_about_where_anything_of_it_is_set(key):
    value = "closed_form" if key == "judge" else "x"
    assert Validation.model_validate({key: value}).custom_checks == ["output_format_valid", "no_harmful_content"]
    assert Validation().custom_checks == Validation.model_validate({key: None}).custom_checks == ["output_format_valid"]
    assert Validation(custom_checks=["no_harmful_content"]).custom_checks == ["no_harmful_content"]


def test_a_judge_needs_a_model():
    with pytest.raises(ValueError, match="answer_match is judge: give the chat model .* match_options.judge_model"):
        Validation(answer_match="judge")
    limits = Validation(answer_match="judge", match_options={"judge_model": "acme/judge"})
    assert (limits.matcher, limits.matching_judge) == ("judge", "acme/judge")


@pytest.mark.parametrize("name", ["equal", "acme.match", "", "json,exact"])
def test_an_unknown_matcher_is_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match="is not a matcher: give one of exact, contains, choice, number, json, tool_c"):
        Validation(answer_match=name)
