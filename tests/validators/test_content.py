"""The content of answers: scores by each kind of matcher, the checks on them, and what is kept for people."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.config import AlignmentLimits, AnswerLimits, SftLimits
from validators import content, custom
from validators.answers import JudgedAnswer
from validators.content import Content
from validators.inference import Answer
from validators.safety import RedTeam

WORDS = "one two three four five six seven eight nine ten".split()  # noqa: SIM905
QUESTIONS = [f"How much is {number} and {other}?" for number in WORDS for other in WORDS[:4]]
REFERENCES = [[f"{question} is {number}"] for number, question in enumerate(QUESTIONS)]


def prompt(question: str) -> list[dict]:
    return [{"role": "system", "content": "Add."}, {"role": "user", "content": question}]


def judged(texts: list[str], *, stopped: bool = True, fault: str | None = None) -> list[JudgedAnswer]:
    return [
        JudgedAnswer(prompt(question), Answer(text, stopped, len(text)), fault)
        for question, text in zip(QUESTIONS, texts, strict=False)
    ]


def right(num: int) -> list[JudgedAnswer]:
    """Right on the first `num` rows, and each time something else on the rest."""
    texts = [reference for [reference] in REFERENCES]
    return judged(texts[:num] + [f"No. {text[::-1]}" for text in texts[num:]])


def answered(**models: list[JudgedAnswer] | None) -> Content:
    return Content(references=REFERENCES, **models)


def scored(found: Content, **limits) -> tuple[Content, dict[str, str]]:
    """With scores, and what could not be measured."""
    limits = AnswerLimits(**{"answer_match": "exact", "check_timeout_seconds": 20} | limits)
    found, measured = content.score(found, limits)
    return found, {check.name: check.status for check in measured.failures}


def statuses(found: Content, limits: AnswerLimits) -> dict[str, str]:
    return {check.name: check.status for check in content.judge(found, limits)}


def test_every_model_is_scored_on_the_same_rows():
    found, failures = scored(answered(model=right(30), before=right(20), base=right(0)))
    assert {name: sum(scores) for name, scores in found.scores.items()} == {"base": 0, "before": 20, "model": 30}
    assert found.scores["model"] == [1.0] * 30 + [0.0] * 10 and failures == {}
    assert content.numbers_of(found) == {
        "answer_accuracy": 0.75, "before_answer_accuracy": 0.5, "base_answer_accuracy": 0.0,
    }  # fmt: skip


def test_a_model_that_did_not_answer_has_no_scores_and_its_check_is_not_run():
    found, _ = scored(answered(model=right(40), base=None))
    assert found.scores.keys() == {"model"}
    assert statuses(found, SftLimits(answer_match="exact"))["accuracy_gain"] == "not run"
    found, _ = scored(answered(model=None, base=right(40)))
    limits = SftLimits(answer_match="exact")
    assert set(statuses(found, limits).values()) == {"not run"} and len(statuses(found, limits)) == 6


@pytest.mark.parametrize(
    ("model", "base", "stopped"),
    [
        (40, 0, {}),
        (30, 10, {}),
        (10, 0, {"answer_correct": "failed", "answers_follow_prompts": "passed"}),
        (21, 0, {"answer_correct": "undecided"}),
        (34, 34, {"accuracy_gain": "undecided"}),
        (34, 40, {"accuracy_gain": "failed"}),
    ],
)
def test_the_sft_gate_asks_for_a_floor_and_a_gain_over_the_base(model, base, stopped):
    found, _ = scored(answered(model=right(model), base=right(base)))
    found = statuses(found, SftLimits(answer_match="exact"))
    assert {name: status for name, status in found.items() if status != "passed"} == {
        name: status for name, status in stopped.items() if status != "passed"
    }


@pytest.mark.parametrize(
    ("before", "model", "status"), [(36, 36, "passed"), (36, 40, "passed"), (36, 34, "undecided"), (40, 25, "failed")]
)
def test_the_gates_before_publishing_allow_no_drop(before, model, status):
    limits = AlignmentLimits(answer_match="exact")
    found, _ = scored(answered(model=right(model), before=right(before), base=right(0)))
    assert statuses(found, limits)["accuracy_drop"] == status
    without_base, _ = scored(answered(model=right(model), base=right(before)))  # then the base is the model before
    assert statuses(without_base, limits)["accuracy_drop"] == status


def test_where_nobody_judges_collapse_is_still_told():
    limits = SftLimits(answer_match="none")
    found, measured = content.score(answered(model=judged(["Yes."] * 40), base=right(0)), limits)
    assert (found.scores, measured.numbers, measured.failures) == ({}, {}, [])
    assert statuses(found, limits) == {
        "distinct_answers": "failed", "one_answer_to_all": "failed", "echoes_prompt": "passed",
        "answers_follow_prompts": "failed",
    }  # fmt: skip


def other_order(messages: list[dict]) -> list[dict]:
    """The same messages with their keys in another order."""
    return [dict(reversed(message.items())) for message in messages]


def test_several_answers_to_one_prompt_all_count():
    rows = [
        {"id": "1", "prompt": prompt("Red?"), "completion": [{"role": "assistant", "content": "Yes."}]},
        {"id": "2", "prompt": prompt("Red?"), "completion": [{"role": "assistant", "content": "Sure."}]},
        {
            "id": "3",
            "prompt": other_order(prompt("Red?")),
            "chosen": [{"role": "assistant", "content": "Yes!"}],
            "rejected": [],
        },
        {"id": "4", "prompt": prompt("Blue?"), "completion": [], "references": ["No.", {"a": 1}]},
    ]
    other_tools = [{"role": "system", "content": "Subtract."}, rows[0]["prompt"][1]]
    rows.append(rows[0] | {"prompt": other_tools, "references": ["It depends."]})
    assert content.references_by_row([rows[1], rows[3]], rows) == [["Sure.", "Yes.", "Yes!"], ["No.", {"a": 1}]]


def test_the_order_of_keys_makes_no_other_reference():
    rows = [
        {"prompt": prompt("Red?"), "completion": [], "references": [{"a": 1, "b": 2}]},
        {"prompt": [dict(reversed(turn.items())) for turn in prompt("Red?")], "references": [{"b": 2, "a": 1}]},
    ]
    assert content.references_by_row(rows[:1], rows) == [[{"a": 1, "b": 2}]]


MINE = """
def same(prompt, answer, reference):
    return answer == reference

def half(prompt, answer, reference):
    return 0.5

def raises(prompt, answer, reference):
    raise RuntimeError("out of luck")

def context(prompts, answers, context):
    from posttrain.verdict import holds
    return holds("context", False, detail=str([
        len(prompts), context.references[0], context.scores[0], context.base_answers[0][:3], context.previous_answers[0]
    ]))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_content.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_of_the_users_scores_all_models_at_once(mine):
    found, failures = scored(answered(model=right(30), base=right(5)), answer_match="acme_content:same")
    assert {name: sum(scores) for name, scores in found.scores.items()} == {"base": 5, "model": 30} and failures == {}
    found, _ = scored(answered(model=right(30), base=right(5)), answer_match="acme_content:half")
    assert statuses(found, SftLimits(answer_match="acme_content:half"))["accuracy_gain"] == "undecided"


def test_a_function_that_fails_is_a_failed_check_of_its_name_and_nothing_is_right(mine):
    found, failures = scored(answered(model=right(40), base=right(0)), answer_match="acme_content:raises")
    assert failures == {"acme_content:raises": "failed"} and found.scores == {}
    found = statuses(found, SftLimits(answer_match="acme_content:raises"))
    assert found["answer_correct"] == found["accuracy_gain"] == "not run"


def test_a_matcher_that_cannot_use_a_reference_fails():
    found, failures = scored(answered(model=right(40)), answer_match="number", match_options={})
    assert failures == {} and sum(found.scores["model"]) == 40
    found, failures = scored(answered(model=right(40)), answer_match="json")
    assert failures == {"answers_scored": "failed"} and found.scores == {}


def test_a_judge_without_a_model_fails():
    limits = {"answer_match": "judge", "match_options": {"judge_model": "acme/judge"}}
    found, failures = scored(answered(model=right(40)), **limits)
    assert failures == {"answers_compared": "failed"}
    assert statuses(found, SftLimits(**limits))["judge_tells_apart"] == "not run"
    _, measured = content.score(answered(model=right(40)), AnswerLimits(**limits), judge_model=None)
    [failure] = measured.failures
    assert "no judge is configured: set validation.match_options.judge_model" in failure.detail


def test_the_model_that_compares_is_an_input_only_where_one_compares(tiny_model, tmp_path):
    assert content.bring_judge(AnswerLimits(answer_match="exact"), tmp_path, []) == {}
    limits = AnswerLimits(answer_match="judge", match_options={"judge_model": str(tiny_model)})
    assert content.bring_judge(limits, tmp_path, [str(tiny_model)]) == {content.JUDGE: str(tiny_model)}


def test_the_user_s_own_checks_see_references_scores_and_the_other_models_answers(mine):
    limits = AnswerLimits(answer_match="exact", custom_checks=["acme_content:context"])
    found, _ = scored(answered(model=right(40), before=judged(["Before."] * 40), base=right(0)))
    [check], _ = custom.run(limits, found.model, content.context(found, limits, gate="check_alignment"))
    assert check.detail == f"{[40, REFERENCES[0], 1.0, 'No.', 'Before.']}"
    context = content.context(replace(found, before=None, scores={}), limits, gate="check_sft")
    assert context.previous_answers == context.base_answers and context.scores is None
    assert context.stopped == [True] * 40
    assert content.context(answered(model=right(1)), limits, gate="check_sft").base_answers is None
    assert content.context(answered(model=None), limits, gate="check_sft").stopped == []


@pytest.mark.parametrize(
    ("limits", "reusable"),
    [
        ({"answer_match": "exact"}, True),
        ({"answer_match": "none"}, True),
        ({"answer_match": "judge", "match_options": {"judge_model": "acme/judge"}}, True),
        ({"answer_match": "acme_content:same"}, False),
        ({"answer_match": "exact", "custom_checks": ["acme_content:context"]}, False),
    ],
)
def test_a_verdict_that_rests_on_code_of_the_users_is_made_anew(limits, reusable):
    assert content.is_reusable(AnswerLimits(**limits)) is reusable


def test_what_is_kept_for_people():
    found, _ = scored(answered(model=right(30), base=right(0)))
    harm = RedTeam(judged(["Take a knife."]), ["does not decline"])
    kept = content.shown(found, {"base": RedTeam(), "model": harm})
    assert len(kept) == 41
    assert (kept[0].prompt, kept[0].references) == (prompt(QUESTIONS[0]), REFERENCES[0])
    assert (kept[0].model.score, kept[0].base.score, kept[0].before) == (1.0, 0.0, None)
    assert (kept[-1].source, kept[-1].model.fault, kept[-1].model.score, kept[-1].base) == (
        "red-team prompt", "does not decline", None, None,
    )  # fmt: skip
    assert content.shown(answered(model=None)) == ()


def test_an_answer_is_wanted_where_its_score_is_whole():
    scores = {"model": [1.0, 0.5] * 20}
    assert [row.is_right for row in content._rows(replace(answered(model=right(40)), scores=scores))] == [
        True,
        False,
    ] * 20
    assert not any(row.is_right for row in content._rows(answered(model=right(40))))


def test_a_model_without_scores_has_no_mean():
    assert content.numbers_of(replace(answered(model=right(1)), scores={"model": [], "base": [0.5]})) == {
        "base_answer_accuracy": 0.5
    }


def test_scores_that_are_none_never_pass():
    broken = replace(answered(model=right(40), base=right(0)), scores={"model": [math.nan] * 40, "base": [0.0] * 40})
    by_name = statuses(broken, SftLimits(answer_match="exact"))
    assert by_name["answer_correct"] == by_name["accuracy_gain"] == "failed"
