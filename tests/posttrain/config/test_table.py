"""The table of all settings: nothing twice, and from it each step's settings as they were compiled."""

import json

import pytest

from pipelines.compiler import compile_graph, compile_sweep
from pipelines.package import Package
from posttrain.config import load_config, table
from posttrain.config.sweep import SweepConfig

CONFIG = "configs/pipeline_config.yaml"
SETTINGS = {
    "preflight": {"allowed_prefixes": ["/"], "validation": {"judge": "closed_form"}, "sft": {"lora_r": 8.0}},
    "check_sft": {"allowed_prefixes": ["/"], "validation": {"max_loss": 1.5, "min_answer_accuracy": 0.5}},
    "check_data": {"validation": {"red_team_prompts": "/red.jsonl"}, "sft": {"lora_r": 8}},
    "train_sft": {"sft": {"lora_r": 4}, "training": {"timeout_minutes": 7}},
}


def full(step: str) -> dict:
    """The settings of a step with all defaults, as the graph compiles them."""
    section = table.step_of(step).section.model_validate(SETTINGS[step])
    return table._dumped(section)


def test_a_step_gets_back_what_was_compiled():
    settings = {step: full(step) for step in SETTINGS}
    compiled = json.loads(json.dumps(table.table_of(settings)), parse_int=float)  # as Kubeflow hands it on
    assert table.settings_of(compiled) == settings
    assert [table.reference(one) for one in table.settings_of(compiled).values()] == [
        table.reference(settings[step]) for step in compiled["steps"]
    ]
    assert compiled["shared"]["validation"] == {
        "judge": "closed_form", "max_loss": 1.5, "red_team_prompts": "/red.jsonl"
    }  # fmt: skip
    assert compiled["steps"]["train_sft"]["training"] == {"timeout_minutes": 7}


def test_other_defaults_than_the_graph_was_compiled_with_are_refused():
    compiled = table.table_of({step: full(step) for step in SETTINGS})
    compiled["shared"]["validation"].pop("max_loss")  # so the image's own default counts
    with pytest.raises(ValueError, match="settings are not those"):
        table.settings_of(compiled)


def test_nothing_stands_twice(tmp_path):
    config = load_config(CONFIG)
    compile_graph(config, tmp_path / "line.yaml")
    settings = SweepConfig(space={"sft.lora_r": [8, 16]}, continue_with_best=True)
    compile_sweep(config, settings, tmp_path / "sweep.yaml")
    for name in ("line.yaml", "sweep.yaml"):
        package = Package.read(tmp_path / name)
        text = json.dumps(package.spec)
        marker = "One operation with its arguments. Requests that are not about tasks"  # of validation.output_format
        assert text.count(marker) == 1 + (name == "sweep.yaml")  # compare_trials writes the winner's configuration
        (trial, *_) = [step for step in package.steps if "trial" in step.name] or package.gates
        assert marker in json.dumps(package.settings_of(trial))
