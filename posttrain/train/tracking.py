"""Tracks trainings in TensorBoard, MLflow or Weights & Biases, as `report_to` says, through transformers.

names of libraries, folder for logs -> arguments of the trainer

Each library's own variables name its server and hold the token: MLFLOW_TRACKING_URI, WANDB_API_KEY, ... A run is called
there by its run id and step. TensorBoard's files land in the step's output `logs`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from posttrain.step import run
from posttrain.train import ranks

LOGS_ENV = "TENSORBOARD_LOGGING_DIR"  # of transformers


def reporting_args(report_to: Sequence[str], *, step: str, logs: str) -> dict[str, Any]:
    """Returns the trainer's arguments for tracking.

    Raises:
        ValueError: `report_to` names a library that is not installed.
    """
    for name in report_to:
        if find_spec(name) is None:
            raise ValueError(
                f"report_to: {name} is not installed here: pip install 'posttrain[tracking]', or leave it out"
            )
    os.environ[LOGS_ENV] = logs
    return {"report_to": list(report_to) or "none", "run_name": f"{run.run_id()} {step}"}


@contextmanager
def same_run(report_to: Sequence[str]) -> Iterator[None]:
    """Continues MLflow's run, which ends with the training; later logs would otherwise go to a new, unnamed run."""
    if "mlflow" not in report_to or not ranks.is_first():
        yield
        return
    import mlflow

    with mlflow.start_run(run_id=mlflow.last_active_run().info.run_id):
        yield
