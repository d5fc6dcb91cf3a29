"""The table of steps: its rows are what components, graphs and names of steps say."""

import pytest
from google.protobuf import json_format

import components
from pipelines.steps import step_names
from pipelines.sweep import sweep_steps
from posttrain.config import PipelineConfig, Stages, line, load_config
from posttrain.config.sweep import SweepConfig
from tests.pipelines.graph import SHAPES

SPACE = {"sft.lora_r": list(range(1, 13))}  # twelve trials: the names of the first have two digits
HALVING = {"reduction_factor": 2, "num_rungs": 3}


def components_of(step: line.Step) -> tuple[str, ...]:
    return step.components or (step.name,)


def container_of(name: str) -> dict:
    spec = json_format.MessageToDict(getattr(components, name).pipeline_spec)
    (executor,) = spec["deploymentSpec"]["executors"].values()
    return executor["container"]


@pytest.mark.parametrize("step", line.STEPS.values(), ids=line.STEPS)
def test_a_row_says_what_its_components_run_and_where(step):
    for name in components_of(step):
        container = container_of(name)
        assert container["command"][-1] == step.module
        has_torch = "posttrain-train" in container["image"]
        assert has_torch == (step.loads_model or name == "compare_trials")  # which draws, and needs no GPU


def test_every_component_has_a_row():
    assert {name for step in line.STEPS.values() for name in components_of(step)} == set(components.__all__)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_name_of_a_step_is_in_exactly_one_row(shape):
    config = load_config("configs/pipeline_config.yaml", SHAPES[shape])
    gate = "check_sft" if config.stages.sft.enabled else "check_alignment"
    key = "sft.lora_r" if config.stages.sft.enabled else "dpo.lora_r"
    sweep = SweepConfig(
        space={key: SPACE["sft.lora_r"]}, halving=HALVING, objective={"gate": gate, "metric": "answer_correct"}
    )
    for name in sweep_steps(config, sweep):
        assert len([step for step in line.STEPS.values() if step.covers(name)]) == 1, name


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("reject_sft_merge", "reject"),
        ("trial_01", "trials"),
        ("rung_2_rank_3", "trials"),
        ("trials_of_rung_1", "trials"),
        ("compare_rung_1", "compare_trials"),
        ("judge_winner", "judge_winner"),
    ],
)
def test_a_row_may_stand_for_many_steps(name, row):
    assert line.step_of(name).name == row


@pytest.mark.parametrize(
    ("name", "words"),
    [("train_sf", "train_sf: no such step; did you mean train_sft?"), ("", ": no such step; known are: preflight, f")],
)
def test_a_name_without_a_row_is_refused(name, words):
    assert line.find_step(name) is None
    with pytest.raises(ValueError) as caught:
        line.step_of(name)
    assert words in str(caught.value)


def test_kinds_of_steps_are_asked_by_name():
    assert [name for name in ("check_sft", "reject_sft", "checked", "check_") if line.is_gate(name)] == ["check_sft"]
    assert [name for name in ("check_sft", "reject_sft", "reject_") if line.is_rejection(name)] == ["reject_sft"]
    assert line.gate_of("reject_dpo_merge") == "check_dpo_merge"
    assert line.TRAININGS == {"train_sft": "sft", "train_dpo": "dpo"}


def test_a_step_is_in_the_graphs_that_have_its_stages():
    without_dpo = Stages(dpo={"enabled": False})
    assert line.step_of("check_safety").is_in(without_dpo)
    assert not line.step_of("check_safety").is_in(Stages())
    assert not line.step_of("hold_out_preferences").is_in(without_dpo)
    assert step_names(PipelineConfig(stages=without_dpo)) == [
        "preflight", "fetch_model", "prepare_sft_data", "check_sft_data", "train_sft", "check_sft", "merge_sft",
        "check_sft_merge", "check_safety", "publish_model", "check_champion", "promote_model",
    ]  # fmt: skip
    assert step_names(PipelineConfig(promote=False))[-1] == "publish_model"
