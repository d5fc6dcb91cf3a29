"""Where people watch trainings: `report_to` tensorboard, mlflow or wandb, by the integrations of transformers.

names, folder for logs -> arguments of the trainer

A server is named, and is given its token, by that library's own variables: MLFLOW_TRACKING_URI, WANDB_API_KEY, ... The
run's name there is its run id and the step. TensorBoard's files land in the step's output `logs`.
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
    """The trainer's.

    Raises:
        ValueError: a library is asked for that is not installed.
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
    """MLflow's run ends with the training: what is logged after it would go into another one, without a name."""
    if "mlflow" not in report_to or not ranks.is_first():
        yield
        return
    import mlflow

    with mlflow.start_run(run_id=mlflow.last_active_run().info.run_id):
        yield
