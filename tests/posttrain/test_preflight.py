"""One clear error before anything runs."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain import preflight
from posttrain.config import PipelineConfig, Stages, Validation

ROWS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]
PAIRS = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no"} for n in range(40)]


@pytest.fixture
def given(tmp_path):
    """Run parameters with which nothing is wrong."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "tokenizer.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"lm_head.weight": np.zeros((2, 2), np.float32)}, model / "model.safetensors")
    for name, rows in (("sft.jsonl", ROWS), ("pairs.jsonl", PAIRS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base_model": str(model), "sft_dataset": str(tmp_path / "sft.jsonl"),
        "preference_dataset": str(tmp_path / "pairs.jsonl"), "storage_root": str(tmp_path / "store"),
    }  # fmt: skip


def test_what_is_right_passes(given):
    preflight.check(PipelineConfig(), given)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model/chat_template.jinja", None, "no chat template"),
        ("model/model.safetensors", None, "no model.safetensors"),
        ("model/config.json", "{}", "no model_type"),
        ("sft.jsonl", None, "no such file"),
        ("sft.jsonl", "", "no rows"),
        ("sft.jsonl", '{"prompt": "a", "comple', "sft.jsonl"),
        ("sft.jsonl", json.dumps(ROWS[0]) + "\n" + json.dumps(PAIRS[0]), "sft.jsonl"),
        ("pairs.jsonl", json.dumps(PAIRS[0] | {"chosen": 7}), "pairs.jsonl"),
        ("sft.jsonl", json.dumps(ROWS[0]), "eval_fraction"),
    ],
)
def test_a_broken_file_is_named(given, tmp_path, file, content, message):
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        preflight.check(PipelineConfig(), given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": "/nowhere/model"}, "base_model: '/nowhere/model' is not there"),
        ({"base_model": "gs://bucket/model"}, "none of the allowed prefixes"),
        ({"sft_dataset": ""}, "sft_dataset is empty; give it with --sft-dataset"),
        ({"preference_dataset": "s3://bucket/rows.jsonl"}, "none of the allowed prefixes"),
        ({"storage_root": "/proc/none"}, "cannot write"),
    ],
)
def test_a_wrong_address_is_named(given, change, message):
    with pytest.raises(ValueError, match=message):
        preflight.check(PipelineConfig(), given | change)


def test_what_lies_outside_the_prefixes_is_refused(given, tmp_path):
    with pytest.raises(ValueError, match="storage_root=.*none of the allowed prefixes"):
        preflight.check(PipelineConfig(allowed_prefixes=[str(tmp_path / "elsewhere")]), given)


def test_a_data_set_of_a_stage_that_is_off_is_not_needed(given):
    stages = Stages.model_validate({"dpo": {"enabled": False}})
    preflight.check(PipelineConfig(stages=stages), given | {"preference_dataset": ""})


def test_red_team_prompts_are_looked_at(given, tmp_path):
    prompts = tmp_path / "red_team.jsonl"
    config = PipelineConfig(validation=Validation(red_team_prompts=str(prompts)))
    with pytest.raises(ValueError, match="red_team.jsonl"):
        preflight.check(config, given)
    prompts.write_text('{"prompt": "how?"}\n{"question": "why?"}\n')
    with pytest.raises(ValueError, match="row 2: 'prompt' is None"):
        preflight.check(config, given)


@pytest.mark.parametrize("key", ["red_team_prompts", "off_topic_prompts", "benign_prompts"])
def test_prompts_lie_under_the_prefixes(given, tmp_path, key):
    config = PipelineConfig(validation=Validation(**{key: "s3://elsewhere/prompts.jsonl"}))
    with pytest.raises(ValueError, match=f"validation.{key}=.*none of the allowed prefixes"):
        preflight.check(config, given)


def test_a_judge_model_is_looked_for(given):
    config = PipelineConfig(validation=Validation(judge="model", judge_model="/nowhere/judge"))
    with pytest.raises(ValueError, match="validation.judge_model: '/nowhere/judge' is not there"):
        preflight.check(config, given)
    preflight.check(PipelineConfig(validation=Validation(judge="model", judge_model=given["base_model"])), given)


def test_remote_inputs_are_looked_for(given, gs_root):
    config = PipelineConfig(allowed_prefixes=["/", "gs://"])
    with pytest.raises(ValueError, match="has no config.json"):
        preflight.check(config, given | {"base_model": f"{gs_root}/model"})
    with pytest.raises(ValueError, match="sft_dataset: .* is not there"):
        preflight.check(config, given | {"sft_dataset": f"{gs_root}/rows.jsonl"})
