"""The command line of a step: the compiled configuration, and the parts that a run may change."""

import json

import pytest

from posttrain.config import (
    MAX_RUN_PARAMETERS_BYTES,
    CheckSftStep,
    SftStep,
    check_overrides,
    check_run_parameters,
    parse_step,
)


def test_numbers_survive_kubeflow_which_turns_integers_into_floats():
    compiled = json.loads(SftStep().model_dump_json(), parse_int=float)
    assert parse_step(SftStep, json.dumps(compiled)) == SftStep()
    assert isinstance(parse_step(SftStep, json.dumps(compiled)).sft.lora_r, int)


def test_json_that_is_nested_too_deep_is_an_error_on_one_line():
    for arguments in (('{"a":' * 100_000,), ("{}", '{"a":' * 100_000)):
        with pytest.raises(ValueError, match="JSON with more than 200 levels of lists and objects"):
            parse_step(SftStep, *arguments)


def test_overrides_change_the_stage_and_nothing_else():
    step = parse_step(SftStep, json.dumps({"sft": {"lora_r": 8}}), '{"sft": {"epochs": 1}, "dpo": {"beta": 0.3}}')
    assert (step.sft.lora_r, step.sft.epochs) == (8, 1)


@pytest.mark.parametrize(
    "overrides", [{"validation": {"max_loss": 9}}, {"placement": {}}, {"sft": {"no": 1}}, {"dpo": {"beta": 0}}]
)
def test_a_run_cannot_loosen_a_gate_or_bring_unknown_keys(overrides):
    with pytest.raises(ValueError, match="overrides"):
        parse_step(SftStep, "{}", json.dumps(overrides))
    with pytest.raises(ValueError, match="overrides"):
        check_overrides(overrides)


def test_a_gate_takes_no_overrides_of_its_limits():
    assert (
        parse_step(CheckSftStep, '{"validation": {"max_loss": 1.5}}', '{"sft": {"epochs": 1}}').validation.max_loss
        == 1.5
    )


def test_run_parameters_are_literal_and_small():
    check_run_parameters({"base_model": "org/name", "overrides": {"sft": {"epochs": 1}}})
    with pytest.raises(ValueError, match="model_name.*remove the braces"):
        check_run_parameters({"model_name": "{{$.inputs}}"})
    with pytest.raises(ValueError, match="^model_name: 'acme/support' is not a name"):
        check_run_parameters({"model_name": "acme/support"})
    with pytest.raises(ValueError, match="overrides.*remove the braces"):
        check_run_parameters({"overrides": {"sft": {"x": "{{workflow.name}}"}}})
    with pytest.raises(ValueError, match="at most 8000"):
        check_run_parameters({"base_model": "x" * MAX_RUN_PARAMETERS_BYTES})
