"""Rows that the limits of a configuration need, and limits that no number of rows could decide."""

import pytest

from posttrain.config import Export, PipelineConfig, Stages, Validation, requirements
from posttrain.config.evidence import Need
from posttrain.config.sweep import SweepConfig

# Judged on files, weights, training rows or single numbers: there is no interval that rows would narrow.
WITHOUT_ROWS = {
    "min_train_rows", "max_duplicate_share", "max_near_duplicate_share", "max_near_shared_prompts",
    "max_share_too_long", "max_unmatched_share", "max_new_tokens", "max_gradient_norm", "max_size_deviation",
    "max_start_deviation", "min_distinct_answers", "min_sampled_pairs", "min_pair_yield", "max_pair_length_ratio",
}  # fmt: skip


def config_of(stages: dict | None = None, **validation) -> PipelineConfig:
    return PipelineConfig(stages=Stages.model_validate(stages or {}), validation={"answer_match": "exact"} | validation)


def test_a_line_that_does_not_promote_needs_nothing_for_it():
    asked = requirements.requirements(Stages(), config_of().validation, promote=False)
    assert "check_champion" not in {one.gate for one in asked}


def needed(config: PipelineConfig, gate: str) -> dict[str, int]:
    asked = requirements.requirements(config.stages, config.validation)
    return {one.key: one.num_rows for one in asked if one.gate == gate}


def test_every_limit_has_a_row_in_the_table_or_is_judged_without_rows():
    keys = [*Validation.model_fields, *Export.model_fields]
    limits = {name for name in keys if name.startswith(("min_", "max_"))}
    assert limits == requirements.STATISTICS.keys() | WITHOUT_ROWS
    assert not requirements.STATISTICS.keys() & WITHOUT_ROWS


def test_each_limit_says_how_many_rows_of_what_it_needs():
    config = config_of()
    assert needed(config, "check_sft")["min_format_valid_rate"] == 35
    assert needed(config, "check_alignment")["min_accuracy"] == 9
    assert needed(config, "check_alignment")["max_accuracy_drop"] == 35
    assert needed(config, "check_dpo_merge")["max_merge_kl"] == 6


@pytest.mark.parametrize(
    ("stages", "gates", "absent"),
    [
        (
            {"dpo": {"enabled": False}},
            {"check_sft_data", "check_sft", "check_sft_merge", "check_safety", "check_champion"},
            "min_margin",
        ),
        (
            {"sft": {"enabled": False}},
            {"check_preference_data", "check_dpo_merge", "check_alignment", "check_champion"},
            "max_sft_loss_increase",
        ),
    ],
)
def test_only_gates_of_the_graph_ask_for_rows(stages, gates, absent):
    config = config_of(stages)
    asked = requirements.requirements(config.stages, config.validation)
    assert {one.gate for one in asked} == gates
    assert absent not in {one.key for one in asked}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"custom_checks": ["no_harmful_content"]}, "min_format_valid_rate"),
        ({"custom_checks": ["output_format_valid"]}, "min_harmless_rate"),
        ({"answer_match": "none"}, "min_answer_accuracy"),
        ({}, "max_off_topic_call_rate"),
    ],
)
def test_what_nobody_asks_needs_no_rows(change, key):
    assert key not in needed(config_of(**change), "check_alignment")


def test_benign_prompts_take_the_place_of_held_out_ones():
    asked = requirements.requirements(Stages(), Validation(benign_prompts="b.jsonl"))
    assert [one.of for one in asked if one.key == "max_over_refusal_rate"] == ["benign_prompts"]


def test_too_few_answers_are_refused_with_the_keys_to_change():
    with pytest.raises(ValueError) as caught:
        requirements.check_decidable(config_of(num_generated_answers=16, max_accuracy_drop=0.3))
    for words in (
        "validation.num_generated_answers = 16 is too few: at confidence 0.95",
        "validation.min_format_valid_rate = 0.9 needs 35",
        "set num_generated_answers to at least 35",
        "otherwise lower validation.min_format_valid_rate to 0.8",
        "raise validation.max_repetition_rate to 0.2",
        "or lower validation.confidence",
    ):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value) and "min_stopped_rate" not in str(caught.value)


def test_a_number_of_rows_that_is_asked_for_has_nothing_to_do_with_confidence():
    few = [Need(of="sft_rows", num_rows=4, limits={"min_eval_rows": 4})]
    assert requirements.shortage(few, 2, 0.95) == (
        "validation.min_eval_rows = 4 needs 4", "otherwise lower validation.min_eval_rows to 2",
    )  # fmt: skip


def test_as_many_answers_as_are_needed_are_enough_and_so_is_less_confidence():
    requirements.check_decidable(config_of(num_generated_answers=35))
    requirements.check_decidable(config_of(num_generated_answers=16, confidence=0.8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_stopped_rate": 1.0}, "min_stopped_rate = 1 cannot be decided by any number of rows.*set it below 1"),
        ({"max_repetition_rate": 0.0}, "max_repetition_rate = 0 cannot be decided by any number.*set it above 0"),
    ],
)
def test_a_limit_that_no_data_could_decide_is_refused_once(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        requirements.check_decidable(config_of(**change))
    assert str(caught.value).count("cannot be decided") == 1


def test_a_sweep_needs_as_many_rows_in_each_part():
    sweep = SweepConfig(space={"sft.lora_r": [8, 16]}, objective={"gate": "check_sft"})
    evidence = requirements.evidence_of_sweep(config_of(red_team_prompts="r.jsonl"), sweep)
    parts = {(need.of, need.part) for need in evidence.needs}
    assert {("sft_prompts", "selection"), ("sft_prompts", "unseen"), ("prompts", "unseen")} <= parts
    assert not {("prompts", "selection"), ("sft_prompts", "held_out")} & parts  # trials end with check_sft
    assert ("red_team_prompts", "held_out") in parts  # they are not divided
    alone = sweep.model_copy(update={"continue_with_best": False})
    assert ("prompts", "unseen") not in {
        (need.of, need.part) for need in requirements.evidence_of_sweep(config_of(), alone).needs
    }


def test_the_summary_names_the_limit_that_needs_most():
    lines = requirements.summary(config_of()).splitlines()
    assert "  35 different held-out SFT prompts  min_format_valid_rate 0.9" in lines
    sweep = SweepConfig(space={"sft.lora_r": [8, 16]}, unseen_fraction=0.25)
    assert "about 140 held-out prompts" in requirements.summary_of_sweep(config_of(), sweep)


def test_a_limit_of_exported_files_is_named_with_its_section():
    config = config_of().model_copy(update={"export": Export(formats=["q8_0"], max_export_drop=0.0)})
    with pytest.raises(ValueError, match=r"export\.max_export_drop = 0 cannot be decided"):
        requirements.check_decidable(config)
