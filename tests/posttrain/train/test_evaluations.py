"""The held-out loss during a training: it is in the log, and the training does not notice."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from posttrain import dpo, sft
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step import digests
from posttrain.train import evaluations
from posttrain.train.checkpoints import Checkpoints

SHARED = {"max_seq_length": 256, "lora_r": 4, "lora_dropout": 0.2, "batch_size": 8, "gradient_accumulation": 1}
STEPS = {
    "sft": SftStep(sft=SftConfig(**SHARED, epochs=3, learning_rate=0.01)),
    "preferences": DpoStep(dpo=DpoConfig(**SHARED, epochs=6, learning_rate=0.001)),
}


@pytest.fixture(params=STEPS)
def trained(request, tiny_model, task_api_files, tmp_path):
    """Trains on at most 40 rows into a folder of this name, and returns its outputs."""
    rows = read_jsonl(task_api_files / f"{request.param}.jsonl")
    files = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    write_jsonl(files["train"], rows[8:48])
    write_jsonl(files["eval"], rows[:8])
    module = sft if request.param == "sft" else dpo

    def train(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        outputs = {output: str(folder / output) for output in ("adapter", "metrics", "curve", "logs")}
        checkpoints = Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3)
        module.train(str(tiny_model), files=files, outputs=outputs, step=STEPS[request.param], checkpoints=checkpoints)
        return folder

    return train


def entries(folder: Path, key: str) -> list[dict]:
    lines = (folder / "logs" / "history.jsonl").read_text().splitlines()
    return [entry for line in lines if key in (entry := json.loads(line))]


def test_the_training_is_the_same_bit_for_bit_with_and_without(trained, monkeypatch):
    with_them = trained("with")
    end = json.loads((with_them / "metrics").read_text())["total_steps"]
    assert [entry["step"] for entry in entries(with_them, "eval_loss")] == [end // 4, end // 2, end * 3 // 4, end]
    monkeypatch.setattr(evaluations, "MIN_STEPS", 1000)
    without = trained("without")
    assert [entry["step"] for entry in entries(without, "eval_loss")] == [end]
    assert entries(with_them, "grad_norm") == entries(without, "grad_norm")
    assert digests.digest(with_them / "adapter") == digests.digest(without / "adapter")
    assert (with_them / "metrics").read_text() == (without / "metrics").read_text()


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(0)
    random.seed(0)
    expected = (torch.rand(2).tolist(), random.random())
    torch.manual_seed(0)
    random.seed(0)
    with evaluations.random_numbers_kept():
        torch.rand(5), random.random()
    assert (torch.rand(2).tolist(), random.random()) == expected


@pytest.mark.parametrize(
    ("num_train", "num_eval", "epochs", "max_steps", "num_rows", "steps"),
    [
        (1000, 100, 3, 375, 100, {93, 187, 281}),  # all held-out rows
        (1000, 100, 1, 125, 33, {31, 62, 93}),  # as many as 5 % of the time allow
        (1000, 100, 1, 7, 33, set()),
        (100, 100, 1, 20, 3, set()),  # too few rows to tell anything
    ],
)
def test_it_costs_at_most_a_twentieth_of_the_training(num_train, num_eval, epochs, max_steps, num_rows, steps):
    args = SimpleNamespace(num_train_epochs=epochs)
    trainer = SimpleNamespace(args=args, train_dataset=range(num_train), eval_dataset=range(num_eval))
    held_out = evaluations.HeldOutLoss(trainer)
    assert (held_out.num_rows, held_out.steps(max_steps)) == (num_rows, steps)


def test_a_training_that_stops_for_its_deadline_does_not_evaluate_first():
    args = SimpleNamespace(num_train_epochs=3)
    held_out = evaluations.HeldOutLoss(SimpleNamespace(args=args, train_dataset=range(99), eval_dataset=range(9)))
    for stops in (False, True):
        control = SimpleNamespace(should_training_stop=stops, should_evaluate=False)
        held_out.on_step_end(args, SimpleNamespace(global_step=10, max_steps=40), control)
        assert control.should_evaluate is not stops
