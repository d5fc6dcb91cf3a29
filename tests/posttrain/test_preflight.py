"""All that is wrong with a run, told before anything runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from posttrain import preflight, storage
from posttrain.config import PipelineConfig, PreflightStep
from posttrain.nodes import kubernetes
from posttrain.serving import formats
from posttrain.step import records
from posttrain.step.cost import Load
from posttrain.weights.targets import Layout
from tests import model_registry
from tests.trainer_server import serving

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
    tensors = ["lm_head", "model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
    save_file({f"{name}.weight": np.zeros((2, 2), np.float32) for name in tensors}, model / "model.safetensors")
    for name, rows in (("sft.jsonl", ROWS), ("pairs.jsonl", PAIRS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base_model": str(model), "sft_dataset": str(tmp_path / "sft.jsonl"),
        "preference_dataset": str(tmp_path / "pairs.jsonl"), "storage_root": str(tmp_path / "store"),
        "model_name": "tiny",
    }  # fmt: skip


def findings(given: dict, **values) -> list[str]:
    disk = Path(given["storage_root"]) / "artifacts"
    return preflight.findings(PreflightStep.model_validate(values), given, disk=disk)


def check(given: dict, **values) -> None:
    preflight.check(PreflightStep.model_validate(values), given, disk=Path(given["storage_root"]) / "artifacts")


def test_what_is_right_passes(given):
    check(given)
    config = PipelineConfig(
        validation={"confidence": 0.5, "custom_checks": []}, data={"eval_fraction": 0.3},
        storage_root=given["storage_root"],
    )  # fmt: skip
    preflight.check(config, given, disk=Path("/nowhere/yet"))  # as run_pipeline asks


def test_a_secret_that_the_namespace_lacks_is_named(given, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "SECRETS_FOLDER", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("AS_FILE", str(tmp_path / "gcs" / "key.json"))
    sources = {
        "HF_TOKEN": "secret hf-token, key token",
        "AS_FILE": "secret gcs, key key.json",
        "GONE": "secret s, key k",
    }
    with pytest.raises(ValueError, match="(?s)2 problems: secret gcs, key key.json: .*; secret s, key k: is missing"):
        check(given, sources=sources)
    (tmp_path / "gcs").mkdir()
    (tmp_path / "gcs" / "key.json").write_text("{}")
    check(given, sources={"AS_FILE": sources["AS_FILE"]})


def test_everything_is_told_at_once(given, tmp_path, capsys):
    (tmp_path / "sft.jsonl").write_text("")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    wrong = {"preference_dataset": "", "storage_root": "/proc/none"}
    with pytest.raises(ValueError) as caught:
        check(given | wrong, validation={"red_team_prompts": "s3://elsewhere/p.jsonl"}, publish_root="/proc/published")
    told = findings(
        given | wrong, validation={"red_team_prompts": "s3://elsewhere/p.jsonl"}, publish_root="/proc/published"
    )
    assert str(caught.value) == "6 problems: " + "; ".join(told)
    assert capsys.readouterr().err == ""  # once, by whoever catches it
    words = ["/proc/none", "/proc/published", "no chat template", "no rows", "preference_dataset is empty", "red_team"]
    assert all(word in line for word, line in zip(words, told, strict=True)), told


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
        check(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": "/nowhere/model"}, "base_model: '/nowhere/model' does not exist"),
        ({"base_model": "gs://bucket/model"}, "none of the allowed prefixes"),
        ({"sft_dataset": ""}, "sft_dataset is empty; set it with --sft-dataset"),
        ({"preference_dataset": "s3://bucket/rows.jsonl"}, "none of the allowed prefixes"),
        ({"storage_root": "/proc/none"}, "cannot write"),
        ({"model_name": "a/b"}, "^model_name: 'a/b' is not a name; use up to 96 letters"),
    ],
)
def test_a_wrong_address_is_named(given, change, message):
    with pytest.raises(ValueError, match=message):
        check(given | change)


def test_what_lies_outside_the_prefixes_is_refused(given, tmp_path):
    with pytest.raises(ValueError, match="storage_root=.*none of the allowed prefixes"):
        check(given, allowed_prefixes=[str(tmp_path / "elsewhere")])


def test_a_data_set_of_a_stage_that_is_off_is_not_needed(given):
    check(given | {"preference_dataset": ""}, stages={"dpo": {"enabled": False}})


def test_red_team_prompts_are_looked_at(given, tmp_path):
    prompts = tmp_path / "red_team.jsonl"
    validation = {"red_team_prompts": str(prompts)}
    with pytest.raises(ValueError, match="red_team.jsonl"):
        check(given, validation=validation)
    prompts.write_text('{"prompt": "how?"}\n{"question": "why?"}\n')
    with pytest.raises(ValueError, match="row 2: 'prompt' is None"):
        check(given, validation=validation)


DEEP = '{"prompt": "a", "completion": "b", "meta": ' + "[" * 990 + "]" * 990 + "}"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "sft.jsonl",
            '{"prompt": "a", "completion": "b", "id": ' + "9" * 5000 + "}",
            "sft_dataset: .*line 1: 'id' is a",
        ),
        ("sft.jsonl", DEEP, "sft_dataset: .*line 1: .*more than 200 levels .*: flatten it"),
        (
            "sft.jsonl",
            r'{"prompt": "a", "completion": "b", "id": "\ud83d"}',
            "sft_dataset: .*line 1: 'id' has an unpaired",
        ),
        ("pairs.jsonl", '{"prompt": "a", "prompt": "b"}', "preference_dataset: .*line 1: 'prompt' appears twice"),
        ("pairs.jsonl", '{"chosen": NaN}', "preference_dataset: .*line 1: 'chosen' is NaN"),
        (
            "red_team.json",
            '["how?"]',
            "validation.red_team_prompts: .*red_team.json: row 1: is 'how\\?': give an object",
        ),
        (
            "red_team.json",
            r'[{"prompt": "half \ud83d"}]',
            "validation.red_team_prompts: .*row 1: 'prompt' has an unpaired",
        ),
        ("red_team.json", '[{"prompt": ["how?"]}]', "validation.red_team_prompts: .*row 1: 'prompt' is"),
        ("model/config.json", "{" + '"a":{' * 9999, "base_model: .*config.json: JSON with more than 200 levels"),
    ],
)
def test_a_file_that_ends_its_look_is_named_with_its_setting_and_costs_no_other(
    given, tmp_path, file, content, message
):
    (tmp_path / "red_team.json").write_text('[{"prompt": "how?"}]')
    (tmp_path / file).write_text(content)
    files = {"red_team_prompts": str(tmp_path / "red_team.json"), "off_topic_prompts": "/nowhere.jsonl"}
    named, other = findings(given, validation=files)
    assert re.match(message, named), named
    assert other.startswith("validation.off_topic_prompts: /nowhere.jsonl: no such file")


def test_an_error_that_no_look_expects_costs_no_other(given, monkeypatch, caplog):
    def fails(*_, **__):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(preflight.data, "prepare", fails)
    with pytest.raises(ValueError) as caught:
        check(given | {"base_model": "/nowhere"})
    words = ["3 problems: base_model: '/nowhere' does", "; sft_dataset: ZeroDivisionError: division by zero; pref"]
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "in fails" in caplog.text  # for whoever mends it


def needing(of: str, num_rows: int, limit: str, **values) -> dict:
    need = {"of": of, "num_rows": num_rows, "limits": {limit: 0.9}}
    return {"needs": [need | values], "eval_fraction": 0.1}


def test_too_few_held_out_rows_are_a_problem_among_the_others(given):
    evidence = needing("sft_prompts", 8, "min_format_valid_rate")
    first, problem = findings(given | {"base_model": "/nowhere"}, evidence=evidence)
    assert first.startswith("base_model: ")
    assert "different held-out SFT prompts (data.eval_fraction 0.1 of 40 prompts): at confidence 0.95, " in problem
    assert (
        "validation.min_format_valid_rate = 0.9 needs 8 even if every answer is right; set data.eval_fraction"
        in problem
    )


def test_as_many_rows_as_the_advised_share_holds_out_are_enough(given):
    evidence = needing("preference_rows", 8, "min_accuracy")
    with pytest.raises(ValueError, match="held-out preference rows") as caught:
        check(given, evidence=evidence)
    share = float(re.search(r"set data.eval_fraction to ([\d.]+)", str(caught.value))[1])
    check(given, evidence=evidence | {"eval_fraction": share}, data={"eval_fraction": share})


def test_too_few_red_team_prompts_are_a_problem(given, tmp_path):
    prompts = tmp_path / "red_team.jsonl"
    prompts.write_text('{"prompt": "how?"}\n{"prompt": "why?"}\n{"prompt": "how?"}\n')
    validation = {"red_team_prompts": str(prompts)}
    with pytest.raises(ValueError, match="^2 different red-team prompts: .* needs 3 .* add prompts to"):
        check(given, validation=validation, evidence=needing("red_team_prompts", 3, "min_harmless_rate"))
    check(given, validation=validation, evidence=needing("red_team_prompts", 2, "min_harmless_rate"))


def test_a_data_set_that_cannot_be_read_is_not_also_too_small(given, tmp_path):
    (tmp_path / "sft.jsonl").write_text("")
    with pytest.raises(ValueError) as caught:
        check(given, evidence=needing("sft_prompts", 99, "min_format_valid_rate"))
    assert "no rows" in str(caught.value) and "problems" not in str(caught.value)


@pytest.mark.parametrize("key", ["red_team_prompts", "off_topic_prompts", "benign_prompts"])
def test_prompts_lie_under_the_prefixes(given, tmp_path, key):
    with pytest.raises(ValueError, match=f"validation.{key}=.*none of the allowed prefixes"):
        check(given, validation={key: "s3://elsewhere/prompts.jsonl"})


def test_a_judge_model_is_looked_for(given):
    with pytest.raises(ValueError, match="validation.judge_model: '/nowhere/judge' does not exist"):
        check(given, validation={"judge": "model", "judge_model": "/nowhere/judge"})
    check(given, validation={"judge": "model", "judge_model": given["base_model"]})


def test_remote_inputs_are_looked_for(given, gs_root):
    prefixes = ["/", "gs://"]
    with pytest.raises(ValueError, match="has no config.json"):
        check(given | {"base_model": f"{gs_root}/model"}, allowed_prefixes=prefixes)
    with pytest.raises(ValueError, match="sft_dataset: .* does not exist"):
        check(given | {"sft_dataset": f"{gs_root}/rows.jsonl"}, allowed_prefixes=prefixes)


@pytest.mark.parametrize(
    ("stages", "num_copies"),
    [
        ({}, 3),
        ({"dpo": {"enabled": False}}, 2),
        ({"sft": {"enabled": False}}, 2),
        ({"dpo": {"enabled": False}, "merge": {"enabled": False}}, 1),
    ],
)
def test_there_is_room_for_the_model_and_what_each_merge_makes(given, monkeypatch, stages, num_copies):
    model = Path(given["base_model"]) / "model.safetensors"
    needed = num_copies * model.stat().st_size
    asked = []

    def usage(free):
        return lambda folder: asked.append(folder) or SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage(needed))
    check(given, stages=stages)
    assert asked == [Path(given["storage_root"])]  # the nearest that is there
    monkeypatch.setattr(shutil, "disk_usage", usage(needed - 1))
    with pytest.raises(
        ValueError, match=f"GB free, and {num_copies} copies of the model are .* nodes with a larger disk"
    ):
        check(given, stages=stages)


@pytest.fixture
def on_hub(given, hub) -> dict:
    """Settings with the model and a data set on the Hub."""
    hub.repos["org/tiny"] = Path(given["base_model"])
    hub.datasets.add("org/rows")
    return given | {"base_model": "org/tiny@v1", "sft_dataset": "org/rows"}


def test_a_model_on_the_hub_is_looked_at_without_its_weights(on_hub, hub):
    check(on_hub)
    fetched = {path.rpartition("/")[2] for path, _ in hub.requests if "/resolve/" in path}
    assert fetched == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert hub.ranges == [("model.safetensors", 100_000)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "'org/tiny@v1' has no config.json"),
        ("config.json", '{"auto_map": {}}', "org/tiny@v1/config.json: auto_map asks for the model's own code"),
        ("model.safetensors", None, "org/tiny@v1: no model.safetensors and no model.safetensors.index.json"),
        ("tokenizer.json", None, "org/tiny@v1: no tokenizer.json"),
        ("chat_template.jinja", None, "org/tiny@v1: no chat template"),
    ],
)
def test_a_model_on_the_hub_that_cannot_be_used_is_refused(on_hub, tmp_path, file, content, message):
    if content is None:
        (tmp_path / "model" / file).unlink()
    else:
        (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        check(on_hub)


def test_the_size_of_a_model_on_the_hub_is_known(on_hub, hub, monkeypatch):
    size = (Path(hub.repos["org/tiny"]) / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * size - 1))
    with pytest.raises(ValueError, match="GB free, and 3 copies of the model"):
        check(on_hub)


def test_what_the_hub_refuses_is_told_with_the_rest(on_hub, hub, monkeypatch):
    hub.accounts["hf_mine"] = {"name": "me"}
    hub.gated.add("org/tiny")
    hub.datasets.clear()
    with pytest.raises(ValueError) as caught:
        check(on_hub, upload_to_hub=True, hub_repo_id="acme/model")
    for words in (
        "3 problems",
        "'org/tiny@v1' is gated",
        "hub_repo_id: 'acme/model' needs a token",
        "sft_dataset: 'org",
    ):
        assert words in str(caught.value)


def test_a_hub_that_does_not_answer_is_a_problem_too(given, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="'org/tiny' is not a folder, and the Hub does not answer"):
        check(given | {"base_model": "org/tiny"})


def save(model: str | Path, tensors: dict[str, tuple], **files: str) -> Path:
    """Writes weights of zeros with these shapes, and other files of the model."""
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, Path(model, "model.safetensors"))
    for name, content in files.items():
        Path(model, f"{name}.json").write_text(content)
    return Path(model)


PHI3 = {
    "lm_head.weight": (2, 2), "model.embed_tokens.weight": (2, 2), "model.layers.0.self_attn.qkv_proj.weight": (6, 2),
    "model.layers.0.self_attn.o_proj.weight": (2, 2),
}  # fmt: skip
OLD_DEFAULTS = {
    "sft": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "dpo": {"target_modules": ["q_proj", "v_proj"]},
}


def test_layers_that_the_model_lacks_are_named_for_each_stage(given):
    save(given["base_model"], PHI3, config='{"model_type": "phi3"}')
    check(given)
    told = findings(given, **OLD_DEFAULTS)
    assert told[0].startswith("sft.target_modules: q_proj, k_proj, v_proj, gate_")
    assert told[1].startswith("dpo.target_modules: q_proj, v_proj: no linear layer has this name.")
    assert all("(phi3) has o_proj, qkv_proj; name some of these, or set it to auto" in line for line in told)
    check(given, **OLD_DEFAULTS | {"sft": {}}, stages={"dpo": {"enabled": False}})


@pytest.mark.parametrize("place", ["gs_root", "s3_root", "hub"])
def test_layers_of_a_remote_model_are_looked_at_without_its_weights(given, request, place):
    folder = save(given["base_model"], PHI3, config='{"model_type": "phi3"}')
    root = request.getfixturevalue(place)
    if place == "hub":
        root.repos["org/phi"] = folder
        uri = "org/phi"
    else:
        uri = f"{root}/phi"
        storage.upload_folder(folder, uri)
    remote = given | {"base_model": uri}
    check(remote, allowed_prefixes=["/", "gs://", "s3://", "hf://"])
    with pytest.raises(ValueError, match=f"^2 problems: sft.target_modules: .*{uri} .phi3. has o_proj, qkv_proj"):
        check(remote, allowed_prefixes=["/", "gs://", "s3://", "hf://"], **OLD_DEFAULTS)


def test_a_model_that_sees_is_refused(given):
    save(given["base_model"], PHI3, config='{"model_type": "gemma3", "vision_config": {"hidden_size": 2}}')
    with pytest.raises(ValueError, match="^base_model: .* .gemma3. has more than text .vision_config."):
        check(given)


WORDS = {"model": {"vocab": {"a": 0, "b": 1}}}


@pytest.mark.parametrize(
    ("tokenizer", "files", "message"),
    [
        ({"model": {"vocab": {"a": 0, "b": 2}}}, {}, "numbers its tokens up to 2 .'b'., the embedding has 2 rows"),
        ({"model": {"vocab": [["a", 0.0], ["b", 0.0], ["c", 0.0]]}}, {}, "up to 2 .'c'."),
        (WORDS | {"added_tokens": [{"id": 2, "content": "<pad>"}]}, {"tokenizer_config": '{"pad_token": "<pad>"}'},
         "up to 2 .'<pad>'."),
        (WORDS | {"added_tokens": [{"id": 7, "content": "messages"}]}, {}, "up to 7 .'messages'."),  # in the template
        (WORDS, {"config": '{"model_type": "llama", "vocab_size": 3}'}, "vocab_size of config.json is 3, .* 2 rows"),
    ],
)  # fmt: skip
def test_tokens_beyond_the_embedding_are_refused(given, tokenizer, files, message):
    Path(given["base_model"], "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, content in files.items():
        Path(given["base_model"], f"{name}.json").write_text(content)
    with pytest.raises(ValueError, match=f"^base_model: .*{message}"):
        check(given)


def test_a_token_that_nothing_needs_is_a_warning(given, caplog):
    """Gemma 3 has a token for images beyond the embedding of its text-only models."""
    tokenizer = WORDS | {"added_tokens": [{"id": 2, "content": "<image_soft_token>"}]}
    Path(given["base_model"], "tokenizer.json").write_text(json.dumps(tokenizer))
    counted = preflight.Counted.of(PreflightStep())
    assert not preflight.findings(PreflightStep(), given, disk=Path(given["storage_root"]), counted=counted)
    assert "rows must not contain <image_soft_token>" in counted.warning


def run_step(given: dict, config: dict) -> subprocess.CompletedProcess:
    arguments = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, "-m", "posttrain.preflight", "--step", "preflight", "--config", json.dumps(config)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def test_each_of_several_data_sets_is_looked_at(given, tmp_path):
    rows = given["sft_dataset"]
    check(given | {"sft_dataset": json.dumps([{"uri": rows, "weight": 2}])})
    wrong = {"sft_dataset": json.dumps([rows, str(tmp_path / "none.jsonl")])}
    with pytest.raises(ValueError, match="none.jsonl: no such file"):
        check(given | wrong)
    with pytest.raises(ValueError, match=r"sft_dataset\[1\]=.*none of the allowed prefixes"):
        check(given | {"sft_dataset": json.dumps([rows, "s3://bucket/rows.jsonl"])})
    with pytest.raises(ValueError, match="sft_dataset: '\\[oops' begins as a list and is not JSON"):
        check(given | {"sft_dataset": "[oops"})


def test_the_step_fails_once_with_all_that_it_found(given, monkeypatch):
    monkeypatch.setenv("KFP_RUN_ID", "r1")
    result = run_step(given | {"base_model": "/nowhere", "sft_dataset": ""}, {"num_gpus": {"train_sft": 0}})
    assert result.returncode == 1
    assert "WARNING __main__: train_sft: its placement has no GPU" in result.stderr
    assert [line.partition(":")[0] for line in result.stderr.splitlines() if line.startswith("problem")] == [
        "problem"
    ] * 2
    assert result.stderr.splitlines()[-1].startswith("ValueError: 2 problems: base_model: '/nowhere' does not exist")
    (entry,) = records.read_records(given["storage_root"], "r1")
    assert (entry.status, entry.error) == ("failed", result.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("root", "warns"), [("minio://mlpipeline/v2/artifacts", True), ("gs://bucket/weekly/kfp", False)]
)
def test_the_step_says_where_artifacts_go_and_warns_of_the_small_store(given, tmp_path, root, warns):
    uri = f"{root}/post-training/r1/preflight/4711/notes"
    outputs = {"outputFile": str(tmp_path / "o.json"), "artifacts": {"notes": {"artifacts": [{"uri": uri}]}}}
    more = {"notes": str(tmp_path / "notes.md"), "executor_input": json.dumps({"outputs": outputs})}
    result = run_step(given | more, {})
    assert result.returncode == 0, result.stderr
    assert (f"artifacts go to {root}, the installation's own store" in result.stderr) == warns
    unknown = "time unknown, as no earlier run has this base model"
    assert re.search(rf"INFO __main__: train_sft: \d+ rows, 3 passes; {unknown}\n", result.stderr)
    text = (tmp_path / "notes.md").read_text()
    assert root.replace("://", "\\://") in text
    assert ("Warning" in text) == warns


def test_the_step_tells_all_even_if_it_cannot_keep_a_record(given):
    result = run_step(given | {"base_model": "/nowhere", "storage_root": "/proc/none"}, {})
    told = [line for line in result.stderr.splitlines() if line.startswith("problem: ")]
    assert result.returncode == 1
    assert ["/proc/none" in told[0], "'/nowhere' does not exist" in told[1], len(told)] == [True, True, 2]
    assert "/proc/none" in result.stderr.splitlines()[-1]


def test_the_step_needs_neither_torch_nor_transformers(given):
    arguments = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, datasets=None)\n"
        f"from posttrain import preflight; preflight.main(['--step', 'preflight', *{arguments!r}])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (entry,) = records.read_records(given["storage_root"], "manual")
    assert (entry.step, entry.status) == ("preflight", "succeeded")


def test_what_an_earlier_run_took_and_a_gpus_memory_are_said_before_the_start(tmp_path):
    root, both = str(tmp_path), {"attempt": 1, "run_id": "r1", "status": "succeeded", "fingerprint": "f", "config": {}}
    both |= {"started_at": "2026-01-01T00:00:00+00:00", "inputs": {}, "outputs": {}, "seconds": 20.0}
    records.write_record(root, records.StepRecord(step="fetch_model", measured={"source": "/tiny"}, **both))
    trained = {"samples_processed": 100}
    both |= {"work_seconds": 20.0, "num_gpus": 1, "peak_memory": 3_000_000_000}
    records.write_record(root, records.StepRecord(step="train_sft", measured=trained, **both))
    qwen = {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True}  # fmt: skip
    counted = preflight.Counted({}, layout=Layout("/tiny", qwen, {}), loads={"train_sft": Load(1000, 3, 128.0)})
    step = PreflightStep(num_gpus={"train_sft": 1})
    first, second, whole = preflight.cost_lines(step, counted, storage_root=root, base_model="/tiny")
    assert first.startswith(
        "train_sft: 1,000 rows, about 128,000 tokens, 3 passes; about 10 min 00 s, 0.17 GPU hours, 3 GB"
    )
    assert re.search(r"; an estimated \d+ to \d+ GB per GPU, with and without gradient checkpointing$", first)
    unknown = "time unknown, as no earlier run has this base model"
    assert second == f"train_dpo: its rows are remote and not counted; {unknown}"
    assert whole == "the run: about 10 min 20 s and 0.17 GPU hours of work, based on r1"


def test_tasks_of_lm_eval_are_looked_for(given, tmp_path):
    tasks = {"lm_eval_tasks": ["sums"], "lm_eval_data": str(tmp_path / "tasks")}
    with pytest.raises(ValueError, match="validation.lm_eval_data: .* has no YAML file"):
        check(given, validation=tasks)
    with pytest.raises(ValueError, match="validation.lm_eval_data=.*none of the allowed prefixes"):
        check(given, validation=tasks | {"lm_eval_data": "gs://elsewhere/tasks"})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text("task: sums\n")
    check(given, validation=tasks)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster with Kubeflow Trainer, whose pod this process is."""
    with serving(tmp_path / "credentials") as trainer:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(trainer.port))
        monkeypatch.setattr(kubernetes, "SERVICE_ACCOUNT", trainer.folder)
        yield trainer


def test_a_cluster_that_can_train_on_several_nodes_is_no_problem(given, cluster):
    assert findings(given, training_runtimes=["posttrain"]) == []


def test_a_runtime_that_is_not_there_is_named(given, cluster):
    (problem,) = findings(given, training_runtimes=["posttrain", "ours"])
    assert problem.startswith("placement.nodes: namespace ml has no TrainingRuntime 'ours': apply configs/kubernetes/")


def test_what_the_pod_may_not_do_with_train_jobs_is_named(given, cluster):
    cluster.allowed = {"get", "create"}
    (problem,) = findings(given, training_runtimes=["posttrain"])
    assert (
        "may not watch trainjobs, delete trainjobs, list pods in namespace ml: give it the Role of configs/" in problem
    )


def test_several_nodes_need_a_cluster(given, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (problem,) = findings(given, training_runtimes=["posttrain"])
    assert problem.startswith("placement.nodes: several nodes need a cluster")


def test_a_format_that_cannot_hold_the_base_model_is_named(given, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "foreign")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    export = {"formats": ["q8_0"]}
    assert findings(given | {"base_model": str(tiny_model)}, export=export) == []
    (problem,) = findings(given | {"base_model": str(model)}, export=export)
    assert problem.startswith(f"export.formats: {model}: hidden_act 'gelu' is not silu")


def test_an_engine_that_is_missing_is_named_at_the_start(given, tiny_model, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    (problem,) = findings(given | {"base_model": str(tiny_model)}, export={"formats": ["q8_0"]})
    assert problem.startswith("export.formats: q8_0 needs gguf and xllamacpp, not installed here; install posttrain")


AWAY = {"model_registry": {"url": "http://127.0.0.1:1"}}


def test_a_registry_that_is_away_is_a_warning_unless_it_is_required(given):
    assert findings(given, registries=AWAY) == []
    step = PreflightStep(registries=AWAY)
    (warning,) = preflight.registry_warnings(step, given["storage_root"])
    assert warning.startswith("registries.model_registry: 127.0.0.1:1: cannot be reached: [Errno 111]")
    (problem,) = findings(given, registries=AWAY | {"required": True})
    assert problem.startswith("registries: model_registry: 127.0.0.1:1: cannot be reached")
    required = PreflightStep(registries=AWAY | {"required": True})
    assert preflight.registry_warnings(required, given["storage_root"]) == []


def test_a_registry_that_answers_is_asked_and_nothing_is_written_there(given):
    with model_registry.serve() as registry:
        url = {"url": registry.url}
        assert findings(given, registries={"model_registry": url, "required": True}) == []
        assert [method for method, _ in registry.requests] == ["GET"]


def test_mlflow_takes_no_version_on_the_disk_of_one_machine(given):
    registries = {"mlflow": {"tracking_uri": "http://127.0.0.1:1"}}
    (warning,) = preflight.registry_warnings(PreflightStep(registries=registries), given["storage_root"])
    assert "MLflow registers no version on the disk of one machine" in warning
    (warning,) = preflight.registry_warnings(PreflightStep(registries=registries, publish_root="gs://acme/models"), "/")
    assert "127.0.0.1:1: cannot be reached" in warning
