"""A pipeline configuration with a file for each of its stages."""

import pytest

AS_ASKED_FOR = """
pipeline_id: task-api-v1.0
base_model: unsloth/Qwen2.5-3B-Instruct-bnb-4bit
output_root: gs://bucket/output
stages:
  - {name: sft, enabled: true, config_path: sft.yaml, timeout_minutes: 180, retry_count: 2}
  - {name: merge, enabled: true, config_path: null, timeout_minutes: 30, retry_count: 1}
  - {name: dpo, enabled: true, config_path: dpo.yaml, timeout_minutes: 120, retry_count: 2}
validation:
  max_loss: 2.0
  min_accuracy: 0.7
  check_nan: true
  custom_checks: [output_format_valid, no_harmful_content]
gpu_memory_fraction: 0.9
checkpoint_every_n_steps: 100
save_intermediate: true
upload_to_hub: false
hub_repo_id: null
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "pipeline.yaml").write_text(AS_ASKED_FOR)
    (tmp_path / "sft.yaml").write_text("learning_rate: 2e-4\nlora_r: 8\n")
    (tmp_path / "dpo.yaml").write_text("beta: 0.2\n")
    return tmp_path
