"""Settings of the leg on general skills."""

import pytest

from posttrain.config import AlignmentLimits, load_config
from posttrain.config.limits import SKILLS


def test_all_suites_are_asked_unless_the_configuration_says_otherwise():
    assert AlignmentLimits().suites == SKILLS and AlignmentLimits().skill_rows == 40
    assert AlignmentLimits(skills=["reading", "choice"]).suites == ("reading", "choice")
    assert AlignmentLimits(skills=False).suites == ()


def test_yaml_turns_them_off(tmp_path):
    path = tmp_path / "pipeline.yaml"
    path.write_text("validation: {skills: off, answer_match: none}\n")
    assert load_config(path).validation.suites == ()
    assert load_config(path, ["validation.skills=[memory]"]).validation.suites == ("memory",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skills": ["poetry"]}, "'poetry' is not a suite: give some of arithmetic, reading"),
        ({"skills": []}, "is empty or names a suite twice"),
        ({"skills": ["choice", "choice"]}, "names a suite twice"),
        ({"max_skill_drop": 0}, "greater than 0"),
        ({"lm_eval_tasks": ["sums"]}, "lm_eval_tasks needs lm_eval_data"),
        ({"lm_eval_tasks": ["sums:acc", "sums:f1"], "lm_eval_data": "d"}, "names a task twice"),
    ],
)
def test_what_means_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AlignmentLimits(**settings)


@pytest.mark.parametrize(("confidence", "drop", "needed"), [(0.95, 0.2, 16), (0.95, 0.1, 35), (0.8, 0.2, 7)])
def test_rows_that_could_never_pass_are_refused(confidence, drop, needed):
    from validators.paired import proportions_interval

    limits = {"confidence": confidence, "max_skill_drop": drop}
    assert AlignmentLimits(skill_rows=needed, **limits)
    assert (
        proportions_interval(0, 0, needed, confidence)[1]
        <= drop
        < proportions_interval(0, 0, needed - 1, confidence)[1]
    )
    with pytest.raises(ValueError, match=f"give {needed} at least, or skills: false"):
        AlignmentLimits(skill_rows=needed - 1, **limits)
    assert AlignmentLimits(skill_rows=1, skills=False, **limits)
