"""The whole line on a tiny model, as a user runs it: promoted once, stopped by each gate, reused, bad input refused."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.steps import step_names
from posttrain.config import PipelineConfig
from posttrain.step import imports, records
from tests.imported import imported, watching
from tests.placed_line import CREDENTIALS
from tests.tiny_line import write_line
from tests.trainer_server import serving

GATES = {
    "check_data": "validation.min_train_rows=100000",
    "check_sft": "validation.max_loss=0.0001",
    "check_sft_merge": "validation.max_merge_kl=1e-15",
    "check_alignment": "validation.min_margin=1000",
}


@pytest.fixture(scope="module")
def line(tmp_path_factory, taught_model):
    """A folder with data and a configuration, and a storage root that all tests share, so that results are reused."""
    folder = tmp_path_factory.mktemp("line")
    write_line(folder, taught_model)
    return folder


def run(
    line: Path, *arguments: str, command: Sequence[str] = ("run_pipeline.py",), seconds: float = 280, **environment: str
) -> subprocess.CompletedProcess:
    command = [sys.executable, *command, "--config", str(line / "pipeline.yaml"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)


PLANTED = {
    "HF_TOKEN": "hf_plantedPlantedPlantedPlanted00",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/of/a/cloud",
    "MLFLOW_TRACKING_PASSWORD": "planted password",
}


@pytest.fixture(scope="module")
def promoted(line):
    result = run(line, "--run-id", "promoted", **PLANTED, **watching(line / "imports"))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def result_of(line: Path, run_id: str) -> dict:
    return json.loads((line / "root" / "runs" / run_id / "pipeline_result.json").read_text())


def test_a_promoted_run_says_so_and_publishes(line, promoted):
    assert "PIPELINE RESULT" in promoted.stdout
    result = result_of(line, "promoted")
    assert result["success"] is True
    assert result["stages_completed"] == ["sft", "merge", "dpo"]
    assert result["errors"] == []
    published = Path(result["final_model_path"])
    assert json.loads((published.parent / "CURRENT").read_text())["version"] == published.name
    assert published.parent.parent == line / "root" / "published"
    assert json.loads((published / "manifest.json").read_text())["run_id"] == "promoted"


def test_what_a_step_imports_is_covered_by_its_fingerprint(line, promoted):
    steps = imported(line / "imports")
    entries = records.read_records(str(line / "root"), "promoted")
    assert steps.keys() == {entry.step for entry in entries}
    assert "validators.inference" in steps["check_sft"] and "posttrain.train.backend" in steps["train_sft"]
    for entry in entries:
        covered = imports.closure([entry.code.module])
        assert not steps[entry.step] & set(imports.modules_of()) - covered.keys(), entry.step


def test_the_published_model_is_verified_down_to_its_sources(line, promoted, taught_model):
    published = result_of(line, "promoted")["final_model_path"]
    sources = ["--base", taught_model, "--data", line / "sft.jsonl", "--data", line / "preferences.jsonl"]
    command = [sys.executable, "-m", "posttrain.verify", published, "--storage-root", line / "root", *sources]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    *links, verified = result.stdout.splitlines()[1:]
    # Preflight gives nothing; steps that start within a second stand in either order.
    assert sorted(link.split()[0] for link in links) == sorted(step_names(PipelineConfig(promote=False))[1:])
    assert verified.startswith("verified: ")


def test_no_secret_is_in_anything_that_a_run_says_or_leaves(line, promoted):
    told = run(line, "--base-model", f"https://me:{PLANTED['HF_TOKEN']}@host/model", **PLANTED)
    assert told.returncode == 1 and "https://***@host/model" in told.stderr
    left = [path for path in (line / "root").rglob("*") if path.is_file()]
    assert len(left) > 100 and any(path.name == "train_sft.log" for path in left)
    for text in [promoted.stdout, promoted.stderr, told.stdout, told.stderr, *(path.read_bytes() for path in left)]:
        content = text if isinstance(text, bytes) else text.encode()
        assert not [name for name, value in PLANTED.items() if value.encode() in content]


def test_the_published_model_loads_without_peft_and_answers(line, promoted):
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"path = {result_of(line, 'promoted')['final_model_path']!r}\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)\n"
        f"prompt = {json.loads((line / 'eval.jsonl').read_text().splitlines()[0])['prompt']!r}\n"
        "asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors='pt')\n"
        "answer = model.generate(**asked, max_new_tokens=96, do_sample=False)[0].tolist()\n"
        "sys.exit(answer[-1] != tokenizer.eos_token_id)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_second_run_reuses_what_is_finished(line, promoted):
    second = run(line, "--run-id", "again")
    assert second.returncode == 0, second.stdout + second.stderr
    plan = dict(line.split(None, 1) for line in second.stdout.partition("Plan:")[2].splitlines()[:16])
    assert {plan[step] for step in ("check_data", "train_sft", "check_sft", "train_dpo", "merge_dpo")} == {"reused"}
    assert plan["publish_model"].startswith("to do")
    assert "Reused" in second.stdout
    reused = {entry.step for entry in records.read_records(str(line / "root"), "again") if entry.status == "reused"}
    assert {"train_sft", "train_dpo", "merge_sft", "merge_dpo", "check_sft", "check_alignment"} <= reused
    assert result_of(line, "again")["final_model_path"] == result_of(line, "promoted")["final_model_path"]


@pytest.mark.long
@pytest.mark.parametrize("gate", GATES)
def test_each_gate_stops_the_line(line, promoted, gate):
    published = sorted((line / "root" / "published").rglob("*"))
    stopped = run(line, "--run-id", f"stopped-{gate}", "--set", GATES[gate])
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    assert f"STOPPED BY {gate}" in stopped.stdout
    result = result_of(line, f"stopped-{gate}")
    assert (result["success"], result["stopped_by"], result["final_model_path"]) == (False, gate, None)
    ran = [entry.step for entry in records.read_records(str(line / "root"), f"stopped-{gate}")]
    assert f"reject_{gate.removeprefix('check_')}" in ran
    assert ran[-2:] == [f"reject_{gate.removeprefix('check_')}", "report_run"] or "publish_model" not in ran
    evidence = line / "root" / "runs" / f"stopped-{gate}" / gate
    assert json.loads((evidence / "verdict.json").read_text())["passed"] is False
    assert "<html" in (evidence / "verdict.html").read_text()
    assert sorted((line / "root" / "published").rglob("*")) == published


@pytest.mark.long
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_shorter_graphs_run_too(line, promoted, stage):
    """Their model is compared with the model that is current."""
    off = "dpo" if stage == "sft" else "sft"
    settings = [f"stages.{off}.enabled=false", "data.eval_fraction=0.3"]  # of one data set alone, more rows
    flags = [part for setting in settings for part in ("--set", setting)]
    result = run(line, "--run-id", f"{stage}-only", *flags)
    assert result.returncode in (0, 2), result.stdout + result.stderr
    ran = {entry.step for entry in records.read_records(str(line / "root"), f"{stage}-only")}
    assert f"train_{off}" not in ran
    assert ("check_safety" if stage == "sft" else "check_alignment") in ran
    if "publish_model" in ran:
        verdict = result_of(line, f"{stage}-only")["gates"]["check_champion"]
        assert [check["name"] for check in verdict["checks"]] == ["drop_from_published"]


@pytest.mark.long
def test_a_line_trains_on_pairs_of_its_own_model_without_any_that_are_brought(line, promoted):
    stages = "stages.pairs={enabled: true, alone: true}"
    pairs = "pairs={num_answers: 3, use_reference: true}"
    settings = [stages, pairs, 'preference_dataset=""', "data.eval_fraction=0.3"]
    flags = [part for setting in settings for part in ("--set", setting)]
    result = run(line, "--run-id", "pairs", *flags)
    assert result.returncode in (0, 2), result.stdout + result.stderr
    entries = {entry.step: entry for entry in records.read_records(str(line / "root"), "pairs")}
    assert "prepare_preferences" not in entries
    assert entries["check_pairs"].judged.passed, entries["check_pairs"].judged
    sampled = entries["sample_pairs"].outputs
    trained = entries["train_dpo"].inputs
    assert (trained["train"], trained["eval"]) == (sampled["train"], sampled["eval"])
    assert entries["check_alignment"].inputs["preference_eval"] == sampled["eval"]
    assert "sampled from the merged SFT model" in result.stdout
    again = run(line, "--run-id", "pairs-again", *flags)
    assert again.returncode == result.returncode
    reused = {
        entry.step for entry in records.read_records(str(line / "root"), "pairs-again") if entry.status == "reused"
    }
    assert {"sample_pairs", "check_pairs", "train_dpo"} <= reused


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_line_whose_trainings_run_on_two_nodes_passes_its_gates_and_is_published(line, promoted, tmp_path):
    nodes = "{nodes: 2, accelerator_count: 2}"
    settings = [f"placement.steps={{train_sft: {nodes}, train_dpo: {nodes}}}"]
    settings += [f"{stage}.{key}" for stage in ("sft", "dpo") for key in ("batch_size=2", "gradient_accumulation=4")]
    flags = [part for setting in settings for part in ("--set", setting)]
    with serving(tmp_path / "credentials") as trainer:
        api = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(trainer.port)}
        api |= watching(tmp_path / "imports", also=CREDENTIALS.format(folder=str(trainer.folder)))
        placed = ("-m", "tests.placed_line")
        result = run(line, "--run-id", "on-nodes", *flags, command=placed, seconds=800, **api)
        assert result.returncode == 0, result.stdout + result.stderr
        assert len(trainer.created()) == 2 and trainer.num_alive() == 0 and not trainer.deleted()
    entries = {entry.step: entry for entry in records.read_records(str(line / "root"), "on-nodes")}
    trained = {step: entries[step].measured for step in ("train_sft", "train_dpo")}
    assert {(one["num_nodes"], one["num_ranks"]) for one in trained.values()} == {(2, 4)}
    gates = {step: entry.judged.passed for step, entry in entries.items() if step.startswith("check_")}
    assert {"check_sft", "check_sft_merge", "check_alignment", "check_champion"} <= gates.keys() and all(gates.values())
    manifest = json.loads(Path(result_of(line, "on-nodes")["final_model_path"], "manifest.json").read_text())
    assert manifest["run_id"] == "on-nodes"
    on_one = {entry.step: entry.measured for entry in records.read_records(str(line / "root"), "promoted")}
    for step, measured in trained.items():
        assert measured["total_steps"] == on_one[step]["total_steps"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "validation.max_los=1"], "validation.max_los: unknown key"),
        (["--model-name", "{{workflow.name}}"], "model_name"),
        (["--overrides", '{"validation": {"max_loss": 9}}'], "overrides"),
        (["--storage-root", "gs://elsewhere/root"], "storage_root"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(line, arguments, words):
    before = sorted((line / "root").rglob("*"))
    result = run(line, *arguments)
    assert result.returncode == 1
    (error,) = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert sorted((line / "root").rglob("*")) == before
