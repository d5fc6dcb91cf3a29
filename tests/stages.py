"""Trainings on the tiny model for the tests of each library and device: in this process, or as the command of a stage.

kind (sft, dpo), model, rows -> metrics, the log of the steps, the adapter's tensors
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step import digests
from posttrain.train import backend, callbacks
from posttrain.train.checkpoints import Checkpoints

# 16 rows in batches of 4 are 4 steps.
COMMON = {"max_seq_length": 256, "lora_r": 4, "epochs": 1, "batch_size": 4, "gradient_accumulation": 1, "save_steps": 2}
CONFIGS = {"sft": SftConfig(learning_rate=0.01, **COMMON), "dpo": DpoConfig(learning_rate=0.01, **COMMON)}
MODEL = {"sft": "base", "dpo": "model"}  # flag for the model that is trained
OUTPUTS = ("adapter", "metrics", "curve", "logs")

Rows = dict[str, dict[str, str]]  # kind -> train, eval -> path


class Killed(BaseException):
    """Nothing in the product catches this."""


def write_rows(folder: Path, task_api_files: Path) -> Rows:
    """Writes 16 rows to train on and 4 held-out ones of each kind."""
    files = {}
    for kind, name in (("sft", "sft"), ("dpo", "preferences")):
        files[kind] = {part: str(folder / f"{kind}-{part}.jsonl") for part in ("train", "eval")}
        all_rows = read_jsonl(task_api_files / f"{name}.jsonl")
        write_jsonl(files[kind]["train"], all_rows[:16])
        write_jsonl(files[kind]["eval"], all_rows[16:20])
    return files


def outputs_in(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    return {name: str(folder / name) for name in OUTPUTS}


def train(kind: str, model: Path, rows: Rows, folder: Path, *, training: dict | None = None, **changes) -> dict:
    """Trains in this process. `changes` are settings of the stage, `training` those that do not decide its result."""
    from posttrain import dpo, sft

    checkpoints = Checkpoints(str(folder / "store"), f"train_{kind}", "f" * 64, run_id="run", limit=3)
    config = CONFIGS[kind].model_copy(update=changes)
    module, step_class = (sft, SftStep) if kind == "sft" else (dpo, DpoStep)
    step = step_class(**{kind: config, "training": training or {}})
    outputs = outputs_in(folder / "out")
    return module.train(str(model), files=rows[kind], outputs=outputs, step=step, checkpoints=checkpoints)


def killed_and_resumed(
    kind: str, model: Path, rows: Rows, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> dict:
    """Trains until step 3 kills it, and once more from its checkpoint; returns the metrics."""

    def die(args, state, logs, dataloader):
        if state.global_step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "log_step", die)
        with pytest.raises(Killed):
            train(kind, model, rows, folder)
    with caplog.at_level("INFO"):
        metrics = train(kind, model, rows, folder)
    assert "resuming from checkpoint" in caplog.text
    return metrics


def same_files(one: Path, other: Path) -> bool:
    return digests.digest(one) == digests.digest(other)


def run_stage(
    kind: str, library: str, model: Path, rows: Rows, folder: Path, *, runner: Sequence[str] = (),
    env: dict[str, str] | None = None, **changes,
) -> tuple[list[dict], str]:  # fmt: skip
    """Runs a stage as a command, without dropout; returns the log of its steps and what it printed."""
    config = CONFIGS[kind].model_copy(update={"lora_dropout": 0.0} | changes)
    settings = {kind: config.model_dump(mode="json", exclude_none=True)}
    paths = {MODEL[kind]: str(model), **rows[kind], **outputs_in(folder / "out")}
    flags = [part for name, path in paths.items() for part in (f"--{name}", path)]
    common = ["--step", f"train_{kind}", "--storage-root", str(folder), "--config", json.dumps(settings)]
    command = [sys.executable, "-m", *runner, f"posttrain.{kind}", *common, *flags]
    env = os.environ | {backend.BACKEND_ENV: library} | (env or {})
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (last,) = folder.glob("checkpoints/*/*/step-00000004/*/trainer_state.json")
    history = json.loads(last.read_text())["log_history"]
    return [entry for entry in history if "loss" in entry], done.stdout + done.stderr


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def adapter(folder: Path) -> dict[str, Any]:
    return tensors(folder / "out" / "adapter")


def poison(model: Path, rows: dict[str, str], folder: Path) -> tuple[Path, dict[str, str], str]:
    """Copies a model so that it cannot bear one token, and rows of which number 7 holds it; gives that row's id too."""
    import torch
    from safetensors.torch import save_file

    from posttrain.rows import chat

    copy = Path(shutil.copytree(model, folder / "model"))
    weights = tensors(copy)
    token = chat.load_tokenizer(copy).convert_tokens_to_ids("<|endoftext|>")
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    train_rows = read_jsonl(rows["train"])
    train_rows[7]["prompt"][-1]["content"] += "<|endoftext|>"
    write_jsonl(folder / "train.jsonl", train_rows)
    return copy, rows | {"train": str(folder / "train.jsonl")}, train_rows[7]["id"]
