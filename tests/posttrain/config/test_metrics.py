"""The table of metrics is what the gates measure."""

import dataclasses

import pytest

from posttrain.config import Stages, Validation, metrics
from posttrain.config import limits as c
from posttrain.config.steps import CheckAlignmentStep
from posttrain.config.sweep import SweepConfig
from posttrain.pages.skills import SkillScore
from validators import alignment, content, merge, sft
from validators.answers import JudgedAnswer
from validators.inference import Answer
from validators.observe import Observed, Questions

NUM = 8
PROMPTS = [[{"role": "user", "content": f"question {number}"}] for number in range(NUM)]
REFERENCES = [[f"answer {number}"] for number in range(NUM)]
JUDGED = [JudgedAnswer(one, Answer(text, True, 3), None) for one, [text] in zip(PROMPTS, REFERENCES, strict=True)]
LOGPROBS = [(-1.0, 4)] * NUM
CHECKS = ["output_format_valid", "no_harmful_content"]
PAIRS = [{"prompt": one, "chosen": [{"content": "a"}], "rejected": [{"content": "b"}]} for one in PROMPTS]
ASKED = {
    "red_team_prompts": "r", "off_topic_prompts": "o", "benign_prompts": "b", "noise_floor": True,
    "answer_match": "exact", "custom_checks": CHECKS, "skills": False, "output_format": {"declines_with": "No."},
}  # fmt: skip
SCORES = {name: [1.0] * NUM for name in ("model", "before", "base")}


def named(checks, numbers) -> set[str]:
    return {check.name for check in checks if check.value is not None} | numbers.keys()


def content_of(*models: str) -> content.Content:
    scores = {name: SCORES[name] for name in models}
    return content.Content(references=REFERENCES, **dict.fromkeys(models, JUDGED), scores=scores)


def sft_gate() -> set[str]:
    limits = c.SftLimits(answer_match="exact", custom_checks=CHECKS)
    numbers = sft.Numbers(
        max_gradient_norm=1.0, base_logprobs=LOGPROBS, logprobs=LOGPROBS, answers=JUDGED, num_rows_too_long=0,
        noise_floor_format_valid=0.0,
    )  # fmt: skip
    answered = content_of("model", "base")
    return named(
        [*sft.judge(numbers, limits), *content.judge(answered, limits)],
        sft.numbers_of(numbers) | content.numbers_of(answered),
    )


def last_gate(stages: Stages) -> set[str]:
    limits = c.AlignmentLimits(**ASKED)
    side = Observed(
        chosen=LOGPROBS, rejected=LOGPROBS, sft=LOGPROBS, held_out=JUDGED, red_team=JUDGED, off_topic=JUDGED,
        benign=JUDGED, harms=[None] * NUM, kl=[(0.1, 4)] * NUM,
    )  # fmt: skip
    has_base = stages.sft.enabled and stages.dpo.enabled
    numbers = alignment.Numbers(
        start_loss=0.69 if stages.dpo.enabled else None, model=side, before=side,
        base=Observed(held_out=JUDGED, red_team=JUDGED, harms=[None] * NUM) if has_base else Observed(),
        noise_floor_format_valid=0.0,
    )  # fmt: skip
    if not stages.dpo.enabled:
        without = dict.fromkeys(("chosen", "rejected", "kl"))
        numbers = dataclasses.replace(
            numbers, model=dataclasses.replace(side, **without), before=dataclasses.replace(side, **without)
        )
    questions = Questions(
        pairs=PAIRS if stages.dpo.enabled else [],
        sft_rows=[{"prompt": one} for one in PROMPTS] if stages.sft.enabled else [],
        held_out=PROMPTS, red_team=PROMPTS, off_topic=PROMPTS, benign=PROMPTS,
    )  # fmt: skip
    step = CheckAlignmentStep(validation=limits)
    found = content_of("model", "before", "base") if has_base else content_of("model", "base")
    checks = [
        *alignment.judge(numbers, PAIRS, step=step, questions=questions, has_base=has_base),
        *content.judge(found, limits),
    ]
    return named(checks, alignment.numbers_of(numbers, questions) | content.numbers_of(found))


def test_the_scores_of_skills_are_what_the_table_says():
    numbers = {"base": 0.5, "base_low": 0.4, "base_high": 0.6, "model": 0.5, "low": 0.4, "high": 0.6, "chance": 0.0}
    score = SkillScore(name="gsm8k", num_rows=9, num_lost=0, num_gained=0, informative=True, **numbers)
    known = metrics.measured_by(
        "check_safety", Stages(), Validation(skills=False, lm_eval_tasks=["gsm8k:flexible"], lm_eval_data="d")
    )
    assert score.numbers().keys() - {"skill_gsm8k"} == {name for name in known if name.startswith("skill_")}
    assert "skill_arithmetic_num_lost" in metrics.measured_by("check_safety", Stages(), Validation())


def stages_of(**enabled: bool) -> Stages:
    return Stages.model_validate({name: {"enabled": is_on} for name, is_on in enabled.items()})


def test_the_sft_gate_measures_what_the_table_says():
    assert sft_gate() == set(metrics.measured_by("check_sft", Stages(), Validation(**ASKED)))


@pytest.mark.parametrize(
    ("stages", "gate"),
    [
        (stages_of(), "check_alignment"),
        (stages_of(dpo=False), "check_safety"),
        (stages_of(sft=False), "check_alignment"),
    ],
)
def test_the_last_gate_measures_what_the_table_says(stages, gate):
    assert last_gate(stages) == set(metrics.measured_by(gate, stages, Validation(**ASKED)))


def test_the_merge_gates_measure_what_the_table_says():
    values = {
        field.name: 1 if "int" in str(field.type) else 1.0
        for field in dataclasses.fields(merge.Numbers)
        if str(field.type).startswith(("int", "float"))
    }
    rows = {"kl_of_rows": [0.0] * NUM, "num_agreeing_of_rows": [3] * NUM, "loss_difference_of_rows": [0.0] * NUM}
    numbers = merge.Numbers(**values, **rows, num_positions_of_rows=[3] * NUM, num_answer_tokens_of_rows=[3] * NUM)
    measured = named(merge.judge(numbers, c.MergeLimits()), merge.numbers_of(numbers))
    assert measured == set(metrics.measured_by("check_sft_merge", Stages(), Validation()))


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"answer_match": "none"}, "answer_correct"),
        ({"custom_checks": ["no_harmful_content"]}, "output_format_valid"),
        ({"custom_checks": ["output_format_valid"]}, "harmless_rate"),
        ({"off_topic_prompts": None}, "off_topic_call_rate"),
        ({"noise_floor": False}, "noise_floor_format_valid"),
    ],
)
def test_what_is_not_asked_is_not_measured(change, missing):
    assert missing in metrics.measured_by("check_alignment", Stages(), Validation(**ASKED))
    assert missing not in metrics.measured_by("check_alignment", Stages(), Validation(**ASKED | change))


def refused(sweep: dict, validation: Validation) -> str:
    settings = SweepConfig.model_validate({"space": {"sft.lora_r": [8, 16]}} | sweep)
    with pytest.raises(ValueError) as caught:
        metrics.check_measured(Stages(), validation, settings, ["check_sft"])
    return str(caught.value)


def test_a_line_must_measure_what_its_sweep_compares():
    unjudged = Validation(answer_match="none")
    words = refused({"objective": {"metric": "answer_correct", "direction": "maximize"}}, unjudged)
    assert words.startswith("objective.metric: 'answer_correct' is not measured by check_sft in this line")
    words = refused({"constraints": [{"gate": "check_alignment", "metric": "reward_margin", "min": 0}]}, unjudged)
    assert words.startswith("constraints[0].gate: 'check_alignment' is not in a trial, which ends with check_sft")


def test_a_check_of_the_users_own_is_a_metric_if_the_gates_run_it():
    own = {"constraints": [{"metric": "acme.checks:short", "min": 1}]}
    assert "'acme.checks:short' is not measured" in refused(own, Validation())
    settings = SweepConfig.model_validate({"space": {"sft.lora_r": [8, 16]}} | own)
    validation = Validation(custom_checks=["acme.checks:short"])
    metrics.check_measured(Stages(), validation, settings, ["check_sft"])
