import json

import pytest
import yaml

from posttrain.config import (
    MAX_RUN_PARAMETERS_BYTES,
    CheckSftStep,
    PipelineConfig,
    SftStep,
    Validation,
    check_overrides,
    check_run_parameters,
    load_config,
    parse_step,
)

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


def test_a_file_with_exactly_the_documented_fields_loads(files):
    config = load_config(files / "pipeline.yaml")
    assert config.storage_root == "gs://bucket/output"
    assert (config.sft.learning_rate, config.sft.lora_r, config.sft.lora_alpha) == (2e-4, 8, 32)
    assert config.dpo.beta == 0.2
    assert config.stages.merge.timeout_minutes == 30


def test_a_setting_has_one_value_under_both_of_its_names(files):
    assert load_config(files / "pipeline.yaml", ["storage_root=runs/a"]).storage_root == "runs/a"
    assert load_config(files / "pipeline.yaml", ["output_root=runs/b"]).storage_root == "runs/b"
    (files / "both.yaml").write_text("output_root: a\nstorage_root: b\n")
    with pytest.raises(ValueError, match=r"both\.yaml: output_root and storage_root are one setting: remove one"):
        load_config(files / "both.yaml")


def test_the_shipped_configuration_holds_the_documented_defaults():
    shipped, defaults = load_config("configs/pipeline_config.yaml"), PipelineConfig()
    assert (shipped.sft, shipped.dpo, shipped.stages.merge) == (defaults.sft, defaults.dpo, defaults.stages.merge)
    assert shipped.base_model == defaults.base_model == "unsloth/Qwen2.5-3B-Instruct-bnb-4bit"
    assert (shipped.validation.max_loss, shipped.validation.min_accuracy) == (2.0, 0.7)


def test_a_setting_that_is_ignored_is_said_so(files, caplog):
    load_config(files / "pipeline.yaml", ["stages.merge.config_path=merge.yaml"])
    assert "stages.merge.config_path is ignored" in caplog.text


def test_later_files_lie_on_top_and_name_files_beside_themselves(files, tmp_path):
    cluster = tmp_path / "clusters" / "ours.yaml"
    cluster.parent.mkdir()
    cluster.write_text(
        "storage_root: s3://ours/root\n"
        "stages: [{name: dpo, config_path: dpo_small.yaml, retry_count: 5}]\n"
        "placement: {gpu: {node_selector: {pool: a}}, steps: {train_sft: {memory: 80Gi}}}\n"
    )
    (cluster.parent / "dpo_small.yaml").write_text("beta: 0.3\n")
    config = load_config([files / "pipeline.yaml", cluster], ["placement.gpu.cpu=12"])
    assert (config.sft.lora_r, config.dpo.beta, config.storage_root) == (8, 0.3, "s3://ours/root")
    assert (config.stages.dpo.timeout_minutes, config.stages.dpo.retry_count) == (120, 5)
    assert config.stages.sft.retry_count == 2
    assert (config.placement.gpu.cpu, config.placement.gpu.node_selector) == ("12", {"pool": "a"})
    assert (config.placement.gpu.memory, config.placement.gpu.accelerator_count) == ("48Gi", 1)


def test_a_wrong_key_in_any_file_names_them_all(files, tmp_path):
    (tmp_path / "cluster.yaml").write_text("placement: {gpu: {memroy: 48Gi}}\n")
    with pytest.raises(ValueError, match=r"pipeline\.yaml, .*cluster\.yaml: placement\.gpu\.memroy.*mean memory\?"):
        load_config([files / "pipeline.yaml", tmp_path / "cluster.yaml"])


def test_set_wins_over_files(files):
    config = load_config(
        files / "pipeline.yaml", ["sft.lora_r=4", "stages.dpo.enabled=false", "validation.max_loss=1e-4"]
    )
    assert (config.sft.lora_r, config.stages.dpo.enabled, config.validation.max_loss) == (4, False, 1e-4)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("validation.max_los=1", "validation.max_los: unknown key; did you mean max_loss?"),
        ("stages.sft.colour=red", "stages.sft.colour: unknown key; known are: enabled, config_path"),
        ("validation.check_nan=false", "validation.check_nan"),
        ("sft.learning_rate=-1", "sft.learning_rate = '-1'"),
        ("sft.learning_rate=.nan", "sft.learning_rate = 'nan'"),
        ("stages.sft.config_path=gone.yaml", "stages.sft.config_path: 'gone.yaml' is neither beside"),
        ("stages.merge.enabled=false", "merge is off but dpo is on"),
        ("upload_to_hub=true", "hub_repo_id is empty"),
        ("validation.custom_checks=[no_such_check]", "'no_such_check' is no check: give output_format_valid"),
        ("dpo.loss_weights=[1, 2]", "loss_weights has 2 values for 1 loss types"),
        ("pipeline_id={{x}}", "pipeline_id"),
        ("validation", "give section.key=value"),
        ("pipeline_id.x=1", "'pipeline_id' is a value, not a section"),
    ],
)
def test_bad_values_are_one_line_with_file_and_key(files, setting, words):
    with pytest.raises(ValueError) as caught:
        load_config(files / "pipeline.yaml", [setting])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "- a list", "a: [unclosed", "stages: [{enabled: true}]", "stages: [{name: sft}, {name: sft}]"]
)
def test_bad_files_are_named(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.yaml: No such file"):
        load_config(tmp_path / "gone.yaml")


def test_numbers_survive_kubeflow_which_turns_integers_into_floats():
    compiled = json.loads(SftStep().model_dump_json(), parse_int=float)
    assert parse_step(SftStep, json.dumps(compiled)) == SftStep()
    assert isinstance(parse_step(SftStep, json.dumps(compiled)).sft.lora_r, int)


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
    with pytest.raises(ValueError, match="model_name.*remove it"):
        check_run_parameters({"model_name": "{{$.inputs}}"})
    with pytest.raises(ValueError, match="overrides.*remove it"):
        check_run_parameters({"overrides": {"sft": {"x": "{{workflow.name}}"}}})
    with pytest.raises(ValueError, match="at most 8000"):
        check_run_parameters({"base_model": "x" * MAX_RUN_PARAMETERS_BYTES})


def test_prefixes_default_to_the_bucket_of_the_storage_root():
    assert PipelineConfig(storage_root="gs://a/b/c").prefixes == ["gs://a/", "hf://"]
    assert PipelineConfig(storage_root="runs").prefixes == ["/", "hf://"]
    assert PipelineConfig(allowed_prefixes=["gs://only/"]).prefixes == ["gs://only/"]


def test_a_schema_file_is_read_into_the_configuration(files):
    (files / "schema.json").write_text('{"type": "object"}')
    settings = ["validation.output_format.kind=json_schema", "validation.output_format.schema_path=schema.json"]
    assert load_config(files / "pipeline.yaml", settings).validation.output_format.json_schema == {"type": "object"}
    (files / "schema.json").write_text("{")
    with pytest.raises(ValueError, match=r"schema\.json: not a JSON Schema"):
        load_config(files / "pipeline.yaml", settings)


def test_a_configuration_survives_yaml(files):
    config = load_config(files / "pipeline.yaml")
    assert PipelineConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


FOUR_GPUS = "placement.steps={train_sft: {accelerator_count: 4}}"


def test_micro_batches_that_gpus_cannot_share_are_refused(files):
    assert load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=8"])
    words = r"pipeline.yaml: sft.gradient_accumulation = 6 cannot be shared by 4 GPUs: give a multiple of 4"
    with pytest.raises(ValueError, match=words):
        load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=6"])
    assert load_config(files / "pipeline.yaml", [FOUR_GPUS, "sft.gradient_accumulation=6", "stages.sft.enabled=false"])


def test_a_run_cannot_ask_for_micro_batches_that_its_gpus_cannot_share():
    compiled = json.dumps({"training": {"num_processes": 4}})
    assert parse_step(SftStep, compiled, '{"sft": {"gradient_accumulation": 12}}')
    with pytest.raises(ValueError, match=r"sft.gradient_accumulation = 2 cannot be shared by 4 GPUs"):
        parse_step(SftStep, compiled, '{"sft": {"gradient_accumulation": 2}}')


def test_what_decides_a_training_names_its_settings_and_the_number_of_its_processes():
    alone, shared = SftStep(), SftStep(training={"num_processes": 2})
    assert shared.decisive.model_dump() == alone.sft.model_dump() | {"num_processes": 2}
    assert alone.decisive != shared.decisive
    assert alone.decisive == SftStep(training={"timeout_minutes": 1}).decisive


def test_a_base_in_four_bits_is_not_sharded(files):
    with pytest.raises(ValueError, match=r"sft: load_in_4bit with parallelism fsdp is not supported.*use ddp"):
        load_config(files / "pipeline.yaml", ["sft.load_in_4bit=true", "sft.parallelism=fsdp"])


@pytest.mark.parametrize(
    ("validation", "matcher"),
    [
        ({"output_format": {"kind": "tool_call"}}, "tool_call"),
        ({"output_format": {"kind": "json_schema", "json_schema": {"type": "object"}}}, "json"),
        ({"output_format": {"kind": "regex", "pattern": "yes|no"}}, "exact"),
        ({"answer_match": "number", "output_format": {"kind": "tool_call"}}, "number"),
        ({"answer_match": "none"}, "none"),
        ({"answer_match": "acme.match:same"}, "acme.match:same"),
    ],
)
def test_the_matcher_follows_from_the_form_unless_it_is_named(validation, matcher):
    limits = Validation.model_validate(validation)
    assert (limits.matcher, limits.matching_judge) == (matcher, None)


def test_plain_text_needs_a_matcher_or_a_plain_none():
    with pytest.raises(ValueError, match="plain text is right: give one of exact, contains, .* or set it to none, and"):
        _ = Validation().matcher


def test_a_judge_needs_a_model():
    with pytest.raises(ValueError, match="answer_match is judge: give the chat model .* match_options.judge_model"):
        Validation(answer_match="judge")
    limits = Validation(answer_match="judge", match_options={"judge_model": "acme/judge"})
    assert (limits.matcher, limits.matching_judge) == ("judge", "acme/judge")


@pytest.mark.parametrize("name", ["equal", "acme.match", "", "json,exact"])
def test_an_unknown_matcher_is_refused_with_those_that_are_known(name):
    with pytest.raises(ValueError, match="is not a matcher: give one of exact, contains, choice, number, json, tool_c"):
        Validation(answer_match=name)
