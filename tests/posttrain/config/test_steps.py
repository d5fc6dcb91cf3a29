"""The sections that steps get."""

import json

import pytest

from posttrain.config import DpoStep, SftStep, parse_step


def test_a_run_cannot_ask_for_micro_batches_that_its_gpus_cannot_share():
    compiled = json.dumps({"training": {"num_processes": 4}})
    assert parse_step(SftStep, compiled, '{"sft": {"gradient_accumulation": 12}}')
    with pytest.raises(ValueError, match=r"sft.gradient_accumulation = 2 cannot be shared by 4 GPUs"):
        parse_step(SftStep, compiled, '{"sft": {"gradient_accumulation": 2}}')


def test_what_decides_a_training_names_its_settings_and_the_number_of_its_processes():
    alone, shared = SftStep(), SftStep(training={"num_processes": 2})
    assert shared.decisive.model_dump() == alone.sft.model_dump() | {"num_processes": 2, "selection": None}
    assert alone.decisive != shared.decisive
    assert alone.decisive == SftStep(training={"timeout_minutes": 1}).decisive


@pytest.mark.parametrize(("step", "section"), [(SftStep, "sft"), (DpoStep, "dpo")])
def test_the_number_of_processes_decides_no_training_that_is_elastic(step, section):
    alone, shared = (step(**{section: {"elastic": True}}, training={"num_processes": number}) for number in (1, 2))
    assert alone.decisive == shared.decisive != step().decisive
