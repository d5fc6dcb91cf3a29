"""A tracked training leaves TensorBoard's files among its outputs, and a run in MLflow's local file store."""

import json
import os

import pytest

from posttrain import sft
from posttrain.config import SftStep
from posttrain.rows.formats import write_jsonl
from posttrain.train import tracking
from posttrain.train.checkpoints import Checkpoints


@pytest.fixture
def leave_environment(monkeypatch):
    """Restores the environment, so that the next test does not see what tracking sets for the libraries."""
    for name in (tracking.LOGS_ENV, "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return monkeypatch


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_tensorboard_and_mlflow_are_told_of_a_training(tmp_path, tiny_model, task_api_rows, leave_environment):
    leave_environment.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    leave_environment.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    leave_environment.setenv("KFP_RUN_ID", "run-7")
    sides = {"train": task_api_rows["sft"][:16], "eval": task_api_rows["sft"][16:20]}
    for name, rows in sides.items():
        write_jsonl(tmp_path / name, rows)
    step = SftStep.model_validate(
        {
            "sft": {"epochs": 1, "batch_size": 8, "gradient_accumulation": 1, "max_seq_length": 160},
            "training": {"report_to": ["tensorboard", "mlflow"]},
        }
    )
    outputs = {name: str(tmp_path / "out" / name) for name in ("adapter", "metrics", "curve", "logs")}
    (tmp_path / "out").mkdir()
    checkpoints = Checkpoints(str(tmp_path / "root"), "train_sft", "f", run_id="run-7", limit=1)
    files = {name: str(tmp_path / name) for name in sides}
    sft.train(str(tiny_model), files=files, outputs=outputs, step=step, checkpoints=checkpoints)
    assert list((tmp_path / "out" / "logs").glob("events.out.tfevents.*"))
    history = [json.loads(line) for line in (tmp_path / "out" / "logs" / "history.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    (run,) = (tmp_path / "mlruns").glob("*/*/tags/mlflow.runName")
    assert run.read_text() == "run-7 train_sft"
    logged = (run.parents[1] / "metrics" / "loss").read_text().splitlines()
    assert [float(line.split()[1]) for line in logged] == losses
    assert (run.parents[1] / "metrics" / "eval_loss").exists()


def test_a_library_that_is_not_there_is_refused_before_anything_is_loaded(leave_environment):
    leave_environment.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"report_to: wandb is not installed here: pip install 'posttrain\[tracking\]'"
    ):
        tracking.reporting_args(["wandb"], step="train_sft", logs="logs")
