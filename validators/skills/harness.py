"""Tasks of lm-evaluation-harness (extra `lm-eval`), from a folder of the user's, without asking the Hub.

model folder, names of tasks, folder with their YAML files and data -> the score of every row, task by task

Each model is evaluated in a process of its own, which starts anew: lm-eval brings much along, and reads whether it may
go online when it is imported. Relative paths in a task's YAML are looked up in the folder. A task that is not there,
that ends without its metric, or whose metric is not a share between 0 and 1 has no scores, and its check fails.

    python -m validators.skills.harness --model DIR --data DIR --output scores.json TASK[:METRIC] ...
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain import storage
from validators.skills.judging import Scored

BATCH_SIZE = 8
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def fetch(uri: str, folder: Path, allowed_prefixes: list[str]) -> str:
    """The local folder of the tasks; one that lies elsewhere is brought into `folder`.

    Raises:
        ValueError: lm-eval is not installed, or the data lies outside the allowed prefixes or is not there.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("validation.lm_eval_tasks: lm-eval is not installed: add posttrain[lm-eval] to the image")
    storage.check_allowed(uri, allowed_prefixes, name="validation.lm_eval_data")
    if storage.kind(uri) != "local":
        storage.download_folder(uri, str(folder / "lm_eval_data"))
        return str(folder / "lm_eval_data")
    path = Path(storage.local_path(uri)).absolute()
    if not path.is_dir():
        raise ValueError(f"validation.lm_eval_data: {path} is not a folder: give the one with the tasks' YAML files")
    storage.check_links(path)
    return str(path)


def run(model: Path, tasks: list[str], data: str) -> dict[str, Any]:
    """`evaluate` in a process that starts anew, offline, in the folder of the data: a `Scored` by task, as JSON.

    Raises:
        ValueError: it did not end well, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.json"
        paths = ["--model", str(model.absolute()), "--data", data, "--output", str(output)]
        done = subprocess.run(
            [sys.executable, "-m", "validators.skills.harness", *paths, *tasks],
            cwd=data,
            env=os.environ | OFFLINE | {"PYTHONPATH": _python_path(), "HF_DATASETS_CACHE": f"{folder}/datasets"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        sys.stderr.write(done.stderr)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
            raise ValueError(f"lm-eval ended with exit code {done.returncode}: {lines[-1]}")
        return json.loads(output.read_text(encoding="utf-8"))


def evaluate(model: Path, tasks: list[str], data: Path) -> dict[str, Scored]:
    """Scores by task, in this process, which should be offline and have the data as its working directory."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from posttrain.rows.chat import load_tokenizer
    from posttrain.train.backend import load_model

    metrics = {name: metric for name, _, metric in (task.partition(":") for task in tasks)}
    manager = TaskManager(include_path=str(data))
    known = [name for name in metrics if name in manager.all_tasks]
    samples: dict[str, list[dict[str, Any]]] = {}
    if known:
        loaded = HFLM(pretrained=load_model(model), tokenizer=load_tokenizer(model), batch_size=BATCH_SIZE)
        results = simple_evaluate(model=loaded, tasks=known, task_manager=manager, bootstrap_iters=0, log_samples=True)
        samples = results["samples"]
    return {name: read_samples(samples.get(name), metric, data=data) for name, metric in metrics.items()}


def read_samples(samples: list[dict[str, Any]] | None, metric: str, *, data: Path) -> Scored:
    """The scores of one task's samples, by its first filter.

    Args:
        metric: empty: the task's first.
    """
    if not samples:
        return Scored(error=f"no task of this name in {data.name}, or it has no rows")
    samples = [one for one in samples if one["filter"] == samples[0]["filter"]]
    metrics = samples[0]["metrics"]
    metric = metric or (metrics[0] if metrics else "")
    values = [one.get(metric) for one in sorted(samples, key=lambda one: one["doc_id"])]
    if any(value is None for value in values):
        return Scored(error=f"ended without its metric {metric or '(it names none)'}; it gave {', '.join(metrics)}")
    if not all(_is_share(value) for value in values):
        return Scored(
            error=f"its metric {metric} is not a share between 0 and 1 of each row: name another, as task:metric"
        )
    guesses = [1 / len(one["arguments"]) if len(one["arguments"]) > 1 else 0.0 for one in samples]
    return Scored(scores=[float(value) for value in values], chance=sum(guesses) / len(guesses))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the tasks' YAML files and data")
    parser.add_argument("--output", type=Path, required=True, help="output: scores by task, JSON")
    parser.add_argument("tasks", nargs="+", metavar="TASK[:METRIC]")
    args = parser.parse_args(argv)
    scored = {name: asdict(one) for name, one in evaluate(args.model, args.tasks, args.data).items()}
    args.output.write_text(json.dumps(scored, allow_nan=False), encoding="utf-8")


def _python_path() -> str:
    """Where this process finds its modules, for one with another working directory."""
    return os.pathsep.join(str(Path(one or ".").absolute()) for one in sys.path)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


if __name__ == "__main__":
    main()
