"""The whole configuration: defaults, prefixes, and checks across its sections."""

import pytest
import yaml

from posttrain.config import PipelineConfig, load_config


def test_the_shipped_configuration_holds_the_documented_defaults():
    shipped, defaults = load_config("configs/pipeline_config.yaml"), PipelineConfig()
    assert (shipped.sft, shipped.dpo, shipped.stages.merge) == (defaults.sft, defaults.dpo, defaults.stages.merge)
    assert shipped.base_model == defaults.base_model == "unsloth/Qwen2.5-3B-Instruct-bnb-4bit"
    assert (shipped.validation.max_loss, shipped.validation.min_accuracy) == (2.0, 0.7)


def test_prefixes_default_to_the_bucket_of_the_storage_root():
    assert PipelineConfig(storage_root="gs://a/b/c").prefixes == ["gs://a/", "hf://"]
    assert PipelineConfig(storage_root="runs").prefixes == ["/", "hf://"]
    assert PipelineConfig(allowed_prefixes=["gs://only/"]).prefixes == ["gs://only/"]


def test_a_configuration_survives_yaml(files):
    config = load_config(files / "pipeline.yaml")
    assert PipelineConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize("setting", ["model_name=acme/support", "model_name='my model'", "model_name=-x"])
def test_a_model_name_that_is_no_name_is_refused(files, setting):
    with pytest.raises(ValueError, match="pipeline.yaml.*model_name: .* is not a name; use up to 96 letters"):
        load_config(files / "pipeline.yaml", [setting])
    with pytest.raises(ValueError, match="pipeline_id: .* is not a name"):
        load_config(files / "pipeline.yaml", [f"pipeline_id={'a' * 97}"])


FOUR_GPUS = "placement.steps={train_sft: {accelerator_count: 4}}"


def test_micro_batches_that_gpus_cannot_share_are_refused(files):
    assert load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=8"])
    words = r"pipeline.yaml: sft.gradient_accumulation = 6 cannot be shared by 4 GPUs: give a multiple of 4"
    with pytest.raises(ValueError, match=words):
        load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=6"])
    assert load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=6", "stages.sft.enabled=false"])
