"""A sweep on a tiny model, as a user runs it: one trial diverges, the other wins, and is judged on unseen rows."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from posttrain import compare
from posttrain.config import load_config
from posttrain.step import imports, records
from tests.imported import imported, watching
from tests.tiny_line import write_line

pytestmark = pytest.mark.long

SWEEP = {"space": {"sft.learning_rate": [0.02, 5e-3], "sft.epochs": [2]}, "continue_with_best": False}
# Read by Python when it starts: in a trial, the training with this learning rate sees a NaN at its second step.
FAULT = """
import math, runpy, sys
theirs = runpy.run_module
def run_module(name, **options):
    if name == "posttrain.sft" and '"learning_rate": 0.02' in " ".join(sys.argv):
        from posttrain.train.callbacks import StopOnDivergence
        on_log = StopOnDivergence.on_log
        def with_nan(self, args, state, logs, dataloader):
            on_log(self, args, state, logs | ({"loss": math.nan} if state.global_step == 2 else {}), dataloader)
        StopOnDivergence.on_log = with_nan
    return theirs(name, **options)
if "runner import fork_server" in " ".join(sys.orig_argv):
    runpy.run_module = run_module
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory, taught_model):
    folder = tmp_path_factory.mktemp("sweep")
    write_line(folder, taught_model, data={"eval_fraction": 0.3})
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    return folder


def run(line, run_id: str) -> str:
    files = ["--config", str(line / "pipeline.yaml"), "--sweep", str(line / "sweep.yaml"), "--run-id", run_id]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | watching(line / "imports", also=FAULT)
    command = [sys.executable, "run_pipeline.py", *files]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def told(line):
    return run(line, "first")


def test_one_trial_diverges_and_the_other_wins(line, told):
    assert "Best of 2: trial_2" in told
    assert "trial_1: train_sft: diverged at step 2/" in told
    assert "On unseen rows:     qualified" in told


def test_what_a_step_imports_is_covered_by_its_fingerprint(line, told):
    steps, root = imported(line / "imports"), str(line / "root")
    runs = ("first", "first.trial_1", "first.trial_2", "first.winner")
    entries = [entry for run in runs for entry in records.read_records(root, run)]
    assert {"hold_out_sft", "trial_1", "train_sft", "check_sft", "compare_trials"} <= {entry.step for entry in entries}
    for entry in entries:
        covered = imports.closure([entry.code.module])
        assert not steps[entry.step] & set(imports.modules_of()) - covered.keys(), entry.step


def test_the_winners_configuration_is_taken_as_it_is(line, told):
    config = load_config(line / "root" / "runs" / "first" / "compare_trials" / "winner.yaml")
    assert (config.sft.learning_rate, config.sft.epochs) == (5e-3, 2)
    assert config.sft_dataset == str(line / "sft.jsonl")


def test_the_rows_that_judge_the_winner_have_chosen_nothing(line, told):
    prompts = {}
    for name in ("selection", "unseen"):
        rows = (line / "root" / "artifacts" / "first" / "hold_out_sft" / name).read_text().splitlines()
        prompts[name] = {json.dumps(json.loads(row)["prompt"]) for row in rows}
    assert prompts["selection"] and prompts["unseen"] and not prompts["selection"] & prompts["unseen"]
    gates = {run: records.read_records(str(line / "root"), f"first.{run}")[-1] for run in ("trial_2", "winner")}
    assert gates["trial_2"].inputs["adapter"] == gates["winner"].inputs["adapter"]
    assert gates["trial_2"].inputs["eval"] != gates["winner"].inputs["eval"]


def test_a_second_run_finds_what_its_trials_came_to(line, told):
    run(line, "second")
    states = {entry.step: entry.status for entry in records.read_records(str(line / "root"), "second")}
    assert {states[step] for step in ("trial_1", "trial_2", "judge_winner")} == {"reused"}


def test_its_trials_are_runs_that_can_be_compared(line, told):
    names = ["first.trial_1", "first.trial_2"]
    comparison = compare.compare(str(line / "root"), names, objective="check_sft.held_out_loss", sign=1)
    assert [row.candidate.status for row in comparison.rows] == ["qualified", "failed at train_sft"]
    assert comparison.settings == ["sft.learning_rate"]
