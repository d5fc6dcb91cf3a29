"""Files, `--set` and the files that they name become one configuration, or one line that says what is wrong."""

import pytest

from posttrain.config import load_config


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
        ("validation.custom_checks=[no_such_check]", "'no_such_check' is not a check: give output_format_valid"),
        ("dpo.loss_weights=[1, 2]", "loss_weights has 2 values for 1 loss types"),
        ("pipeline_id={{x}}", "pipeline_id"),
        ("validation", "give section.key=value"),
        ("stages=[{name: sft}]", "stages = \"[{'name': 'sft'}]\""),
        ("sft=5", "sft = '5'"),
        ("stages.sft=5", "stages.sft = '5'"),
        ("pipeline_id.x=1", "'pipeline_id' is a value, not a section"),
        ("sft=" + "[" * 700, "YAML with more than 200 levels of lists and objects"),
    ],
)
def test_bad_values_are_one_line_with_file_and_key(files, setting, words):
    with pytest.raises(ValueError) as caught:
        load_config(files / "pipeline.yaml", [setting])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_problem_names_the_setting_that_made_it_and_not_a_file(files):
    settings = ["validation.max_los=1", "stages.sft={retry_count: -1}", "sft.lora_r=0", "sft.lora_r=-4"]
    with pytest.raises(ValueError) as caught:
        load_config(files / "pipeline.yaml", settings)
    message = str(caught.value)
    assert message.startswith("--set stages.sft: stages.sft.retry_count = '-1'"), message
    assert "; --set sft.lora_r: sft.lora_r = '-4'" in message
    assert "; --set validation.max_los: validation.max_los: unknown key; did you mean max_loss?" in message
    assert "pipeline.yaml" not in message
    (files / "wrong.yaml").write_text("dpo: {bta: 1}\n")
    with pytest.raises(ValueError, match=r"^--set sft.epochs: sft.epochs = .*; .*wrong.yaml: dpo.bta: unknown key"):
        load_config([files / "pipeline.yaml", files / "wrong.yaml"], ["sft.epochs=-1"])


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    with pytest.raises(ValueError, match=r"c\.yaml: is empty: give a mapping of keys to values"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "text",
    ["", "- a list", "a: [unclosed", "a: " + "[" * 700, "stages: [{enabled: true}]",
     "stages: [{name: sft}, {name: sft}]"],
)  # fmt: skip
def test_bad_files_are_named(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validation:\n  max_loss: 1\nsft: {}\nvalidation:\n  max_loss: 9\n", "line 4: 'validation' appears twice"),
        ("placement: {gpu: {cpu: 1, cpu: 8}}", "line 1: 'cpu' appears twice"),
        ("stages:\n- name: sft\n  name: dpo\n", "line 3: 'name' appears twice, first in line 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused_in_every_file(files, tmp_path, text, message):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"cluster.yaml: {message}"):
        load_config([files / "pipeline.yaml", tmp_path / "cluster.yaml"])


def test_a_key_that_stands_twice_is_refused_in_what_the_configuration_names(files):
    (files / "stage.yaml").write_text("lora_r: 8\nlora_r: 64\n")
    with pytest.raises(ValueError, match="stage.yaml: line 2: 'lora_r' appears twice, first in line 1"):
        load_config(files / "pipeline.yaml", ["stages.sft.config_path=stage.yaml"])
    (files / "schema.json").write_text('{"type": "object", "type": "array"}')
    settings = ["validation.output_format.kind=json_schema", "validation.output_format.schema_path=schema.json"]
    with pytest.raises(ValueError, match="schema.json: not a JSON Schema: 'type' appears twice"):
        load_config(files / "pipeline.yaml", settings)
    with pytest.raises(ValueError, match="--set 'sft={epochs: 1, epochs: 2}': line 1: 'epochs' appears twice"):
        load_config(files / "pipeline.yaml", ["sft={epochs: 1, epochs: 2}"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone.yaml: No such file"):
        load_config(tmp_path / "gone.yaml")


def test_a_schema_file_is_read_into_the_configuration(files):
    (files / "schema.json").write_text('{"type": "object"}')
    settings = ["validation.output_format.kind=json_schema", "validation.output_format.schema_path=schema.json"]
    assert load_config(files / "pipeline.yaml", settings).validation.output_format.json_schema == {"type": "object"}
    for damaged in ("{", '{"a":' * 100_000):
        (files / "schema.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"schema\.json: not a JSON Schema"):
            load_config(files / "pipeline.yaml", settings)
