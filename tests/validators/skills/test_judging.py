"""Judging general skills, on plain scores."""

import math

import pytest

from posttrain.config.limits import AlignmentLimits, SkillLimits
from posttrain.pages import skills as pages
from posttrain.verdict import Check
from validators import intervals
from validators.answers import JudgedAnswer
from validators.inference import Answer
from validators.skills import judging, suites
from validators.skills.judging import Scored
from validators.skills.leg import Skills

LIMITS = SkillLimits(max_skill_drop=0.2)


def rows(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    """Scores of base and model with these counts."""
    base = [1.0] * (both + lost) + [0.0] * (gained + neither)
    return base, [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither


def judged(*counts: int, name: str = "arithmetic", chance: float = 0.0, limits=LIMITS) -> dict[str, Check]:
    base, model = ({name: Scored(scores=some, chance=chance)} for some in rows(*counts))
    return {check.name: check for check in judging.checks(base, model, limits, confidence=0.95)}


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ((24, 0, 0, 16), "passed"),  # unchanged
        ((20, 4, 2, 14), "passed"),
        ((18, 6, 2, 14), "undecided"),
        ((10, 16, 1, 13), "failed"),
        ((0, 24, 0, 16), "failed"),
        ((24, 0, 16, 0), "passed"),  # better
        ((40, 0, 0, 0), "passed"),
    ],
)
def test_forty_rows_and_the_default_limit(counts, status):
    by_check = judged(*counts)
    assert by_check["skill_arithmetic"].status == status and by_check["skills_informative"].status == "passed"


def test_sixteen_rows_are_enough_for_an_unchanged_model():
    assert judged(10, 0, 0, 6)["skill_arithmetic"].status == "passed"
    assert judged(10, 0, 0, 5)["skill_arithmetic"].status == "undecided"


def test_an_undecided_suite_says_which_setting_asks_more_rows():
    check = judged(18, 6, 2, 14)["skill_arithmetic"]
    assert 40 <= check.more_rows <= 60 and "raise validation.skill_rows" in check.remedy
    assert judged(54, 18, 6, 42)["skill_arithmetic"].status == "passed"  # the same of 120 rows
    assert "Training took" not in check.remedy  # 0.1 keeps the limit: nothing is to be mended


def test_an_undecided_suite_beyond_its_rows_says_so():
    check = judged(14, 9, 2, 15)["skill_arithmetic"]  # 0.175 is too near to 0.2
    assert check.status == "undecided" and check.more_rows is None
    assert check.remedy == "All 120 rows that there are would not decide, if the value stays."
    breaks = judged(14, 9, 0, 17)["skill_arithmetic"]
    assert breaks.status == "undecided" and "Training took this skill away" in breaks.remedy
    task = judged(20, 6, 2, 12, name="lm_eval_sums")["skill_lm_eval_sums"]
    assert "All 40 rows that there are" in task.remedy


def test_a_suite_may_need_all_of_its_rows_and_no_more():
    assert judged(2, 22, 8, 8)["skill_arithmetic"].more_rows == 80  # of 120
    assert judged(9, 15, 3, 73)["skill_arithmetic"].more_rows is None  # it would take 121


def test_what_is_lost_comes_with_its_remedy():
    check = judged(0, 24, 0, 16)["skill_arithmetic"]
    assert check.value == 0.6 and check.limit == 0.2 and check.interval[0] > 0.4
    assert "validation.skills" in check.remedy and "mean 0.6 against 0 on 40 rows" in check.detail


@pytest.mark.parametrize(
    ("counts", "chance"),
    [
        ((10, 0, 0, 30), 0.25),  # as good as guessing
        ((14, 0, 0, 26), 0.25),  # not surely better
        ((4, 0, 0, 3), 0.3),  # far better, on too few rows to be sure
        ((8, 0, 0, 32), 0.0),  # better than nothing, but a loss of all of it would keep the limit
        ((0, 0, 0, 40), 0.0),
        ((8, 32, 0, 0), 0.9),
    ],
)
def test_a_base_at_chance_is_not_informative_and_never_passed(counts, chance):
    by_check = judged(*counts, chance=chance)
    assert set(by_check) == {"skills_informative"}
    assert (
        by_check["skills_informative"].status == "failed"
        and "not informative: arithmetic" in by_check["skills_informative"].detail
    )


def test_a_suite_that_says_nothing_is_named_beside_the_others():
    base, model = rows(24, 0, 0, 16)
    both = {"arithmetic": Scored(scores=base), "choice": Scored(scores=[0.0] * 40, chance=0.25)}
    by_check = judging.checks(both, both, LIMITS, confidence=0.95)
    assert [check.name for check in by_check] == ["skills_informative", "skill_arithmetic"]
    assert by_check[0].detail == "arithmetic; not informative: choice (base 0%)"
    known = judging.scores(both, both, LIMITS, confidence=0.95)
    assert [score.informative for score in known] == [True, False]


def test_a_task_without_its_metric_fails():
    good = {"arithmetic": Scored(scores=[1.0] * 40), "lm_eval_sums": Scored(scores=[1.0] * 40)}
    bad = good | {"lm_eval_sums": Scored(error="ended without its metric acc")}
    for base, model in ((good, bad), (bad, good)):
        found = {check.name: check for check in judging.checks(base, model, LIMITS, confidence=0.95)}
        assert found["skill_lm_eval_sums"].status == "failed" and "metric acc" in found["skill_lm_eval_sums"].detail
        assert found["skill_arithmetic"].status == "passed"


def test_scores_between_0_and_1_are_judged_by_their_mean():
    base, model = [0.5 + 0.01 * (at % 10) for at in range(40)], [0.1 + 0.01 * (at % 7) for at in range(40)]
    by_check = judging.checks(
        {"lm_eval_f1": Scored(scores=base)}, {"lm_eval_f1": Scored(scores=model)}, LIMITS, confidence=0.95
    )
    assert by_check[1].status == "failed" and by_check[1].value == pytest.approx(0.42, abs=0.03)


def test_the_interval_of_a_mean_score_is_not_that_of_a_share_and_few_rows_have_none():
    some = [0.0, 0.4, 0.8, 1.0] * 10
    for scores, interval in ((some, intervals.mean_interval(some, 0.95)), ([0.7, 0.9], (0.0, 1.0))):
        both = {"lm_eval_f1": Scored(scores=scores)}
        [score] = judging.scores(both, both, LIMITS, confidence=0.95)
        assert (score.low, score.high) == (score.base_low, score.base_high) == interval
    assert not score.informative


def test_scores_that_are_no_numbers_do_not_pass():
    broken = {"arithmetic": Scored(scores=[math.nan] * 40)}
    good = {"arithmetic": Scored(scores=[1.0] * 40)}
    assert judging.checks(good, broken, LIMITS, confidence=0.95)[1].status == "failed"


def test_what_was_not_asked_is_not_run():
    some = {"arithmetic": Scored(scores=[1.0] * 40)}
    for base, model in ((None, some), (some, None), (None, None)):
        [check] = judging.checks(base, model, LIMITS, confidence=0.95)
        assert (check.name, check.status) == ("skills_informative", "not run")
        assert judging.scores(base, model, LIMITS, confidence=0.95) == []


def answer(fault: str | None, *turns: str) -> JudgedAnswer:
    prompt = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    return JudgedAnswer(prompt, Answer("text", True, 1), fault)


def test_the_page_gets_what_the_base_could_do():
    prompts = [[message["content"] for message in row.prompt] for row in suites.load("memory", 3).rows]
    base = {"memory": [answer(fault, *turns) for fault, turns in zip((None, "is wrong", None), prompts, strict=True)]}
    model = {
        "memory": [answer(fault, *turns) for fault, turns in zip(("is wrong", "is wrong", None), prompts, strict=True)]
    }
    failed = Check(name="skill_memory", status="failed")
    [shown] = judging.lost(base, model, [failed, Check(name="skills_informative", status="passed")])
    assert shown.prompt[0]["content"] == prompts[0][0] and shown.references == [
        suites.load("memory", 1).rows[0].reference
    ]
    assert shown.model.fault == "memory: wrong, where the base is right" and shown.base.mark == "right"
    assert judging.lost(base, model, []) == []
    assert judging.lost(None, model, [failed]) == judging.lost(base, None, [failed]) == []


def test_scores_of_answers_know_the_chance_of_their_rows():
    scored = judging.scored({"choice": [answer(None, "a"), answer("is wrong", "b")]})
    assert scored == {"choice": Scored(scores=[1.0, 0.0], chance=suites.load("choice", 2).chance)}


def test_a_score_survives_the_numbers_of_a_verdict():
    base, model = rows(18, 6, 2, 14)
    both = [{"arithmetic": Scored(scores=some, chance=0.1)} for some in (base, model)]
    [score] = judging.scores(*both, LIMITS, confidence=0.95)
    assert pages.scores(score.numbers() | {"start_loss": 0.7, "skill": 1.0}) == [score]
    assert pages.others(score.numbers() | {"start_loss": 0.7}) == {"start_loss": 0.7}
    assert pages.cells(score) == ("arithmetic", "60% (45 to 74)", "50% (35 to 65)", "6 lost, 2 gained")
    assert (score.num_rows, score.num_lost, score.num_gained, score.chance) == (40, 6, 2, 0.1)


def test_a_model_that_was_not_asked_everything_has_no_scores():
    asked = AlignmentLimits(skills=["choice"], lm_eval_tasks=["sums"], lm_eval_data="tasks")
    answers, tasks = {"choice": [answer(None, "a")]}, {"sums": Scored(scores=[1.0])}
    assert Skills(answers=answers).scored(asked) is None and Skills(tasks=tasks).scored(asked) is None
    assert set(Skills(answers=answers, tasks=tasks).scored(asked)) == {"choice", "lm_eval_sums"}
