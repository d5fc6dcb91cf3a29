import pytest

from pipelines.compiler import check_gates_can_judge, compile_graph
from posttrain.config import OutputFormat, PipelineConfig, Stages, Validation
from posttrain.config.unjudged import unjudged

JUDGED = Validation(
    answer_match="exact",
    judge="closed_form",
    red_team_prompts="red_team.jsonl",
    output_format=OutputFormat(declines_with="No."),
)


def changed(**values) -> PipelineConfig:
    return PipelineConfig(validation=JUDGED.model_copy(update=values))


def test_a_check_with_a_judge_is_fine_and_so_is_none():
    check_gates_can_judge(changed())
    check_gates_can_judge(changed(judge="model", judge_model="meta-llama/Llama-Guard-3-1B"))
    check_gates_can_judge(
        PipelineConfig(validation=Validation(answer_match="none", custom_checks=["output_format_valid"]))
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"judge": None}, "validation.judge is empty: give closed_form"),
        ({"judge": "model"}, "validation.judge_model is empty: give the address"),
        ({"red_team_prompts": None}, "validation.red_team_prompts is empty: give the address"),
        ({"output_format": OutputFormat()}, "validation.output_format.declines_with is empty: give the sentence"),
        (
            {"judge": "model", "judge_model": "o/g", "output_format": OutputFormat()},
            "declines_with is empty: give the sentence",
        ),
    ],
)
def test_no_harmful_content_needs_something_to_judge_by(change, named):
    with pytest.raises(ValueError, match=named) as caught:
        check_gates_can_judge(changed(**change))
    assert "remove no_harmful_content from custom_checks" in str(caught.value) and "\n" not in str(caught.value)


def test_all_that_is_missing_is_named_at_once():
    chosen = Validation(custom_checks=["no_harmful_content"])
    with pytest.raises(
        ValueError,
        match="answer_match is auto.*judge is empty.*; validation.red_team_prompts is empty.*declines_with is empty",
    ):
        check_gates_can_judge(PipelineConfig(validation=chosen))


def test_five_keys_compile_and_what_nobody_judges_is_said(tmp_path):
    keys = ("base_model", "sft_dataset", "preference_dataset", "storage_root")
    config = PipelineConfig(
        **{key: f"my-{key.replace('_', '-')}" for key in keys}, validation=Validation(answer_match="none")
    )
    compile_graph(config, tmp_path / "graph.yaml")
    content, harm = unjudged(config.validation)
    assert content.startswith("nobody judges whether an answer is right (validation.answer_match is none)")
    assert "no_harmful_content" in harm and "red_team_prompts" in harm


@pytest.mark.parametrize("some", [{"judge": "closed_form"}, {"red_team_prompts": "red_team.jsonl"}])
def test_half_of_what_judges_harm_is_refused(some):
    with pytest.raises(ValueError, match="custom_checks has no_harmful_content, but"):
        check_gates_can_judge(PipelineConfig(validation=some))


def test_only_a_merged_model_can_be_judged():
    stages = Stages.model_validate({"merge": {"enabled": False}, "dpo": {"enabled": False}})
    with pytest.raises(ValueError, match="stages.merge.enabled is false"):
        check_gates_can_judge(PipelineConfig(stages=stages, validation=JUDGED))


def test_plain_text_is_refused_unless_somebody_says_when_it_is_right_or_that_nobody_does():
    with pytest.raises(
        ValueError, match="answer_match is auto, which cannot tell when an answer in plain text is right"
    ):
        check_gates_can_judge(changed(answer_match="auto"))


@pytest.mark.parametrize(("match", "sentences"), [("none", 1), ("exact", 0), ("acme.match:same", 0)])
def test_plain_text_that_nobody_compares_is_said(match, sentences):
    check_gates_can_judge(changed(answer_match=match))
    assert len(unjudged(changed(answer_match=match).validation)) == sentences


def test_general_skills_that_nobody_asks_are_said():
    (sentence,) = unjudged(changed(answer_match="exact", skills=False).validation)
    assert sentence.startswith("nobody judges whether the model has lost general skills (validation.skills is false)")
    tasks = {"lm_eval_tasks": ["arc_easy"], "lm_eval_data": "tasks"}
    assert unjudged(changed(answer_match="exact", skills=False, **tasks).validation) == []
