import json
import logging
import math
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from posttrain import sft, storage
from posttrain.config import HALVINGS_ENV, SftConfig, SftStep
from posttrain.rows import chat
from posttrain.rows.chat import num_trainable_tokens, render
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.step import digests, records, run
from posttrain.step.run import Unfinished
from posttrain.train import backend, callbacks, stage
from posttrain.train.checkpoints import Checkpoints, Diverged
from tests.stages import Killed, outputs_in, poison, same_files

# 10 rows in batches of 2 are 5 batches, so 3 steps in an epoch, the last of half the size.
CONFIG = SftConfig(
    max_seq_length=256,
    lora_r=4,
    lora_dropout=0.2,
    epochs=2,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=0.01,
    save_steps=2,
)


@pytest.fixture(scope="module")
def rows(task_api_files, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "train.jsonl", read_jsonl(task_api_files / "sft.jsonl")[:10])
    write_jsonl(folder / "eval.jsonl", read_jsonl(task_api_files / "eval.jsonl")[:1])
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}


def train(model, rows, folder: Path, *, config: SftConfig = CONFIG, run_id: str = "run") -> dict:
    checkpoints = Checkpoints(str(folder / "store"), "train_sft", "f" * 64, run_id=run_id, limit=3)
    step = SftStep(sft=config)
    return sft.train(str(model), files=rows, outputs=outputs_in(folder / "out"), step=step, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def whole(tiny_model, rows, tmp_path_factory) -> tuple[Path, dict]:
    """Outputs and metrics of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", train(tiny_model, rows, folder)


def test_learns_and_says_what_it_did(whole):
    out, metrics = whole
    assert json.loads((out / "metrics").read_text()) == metrics
    assert metrics["final_loss"] < metrics["first_loss"] and math.isfinite(metrics["eval_loss"])
    expected = {"total_steps": 6, "epochs_completed": 2.0, "samples_processed": 20, "num_train_rows": 10}
    assert {name: metrics[name] for name in expected} == expected
    assert 0 < metrics["max_gradient_norm"] < math.inf
    assert "<svg" in (out / "curve").read_text()


def test_the_largest_gradient_norm_is_that_before_clipping(tiny_model, rows, tmp_path):
    config = CONFIG.model_copy(update={"epochs": 1, "max_grad_norm": 1e-3})
    assert train(tiny_model, rows, tmp_path, config=config)["max_gradient_norm"] > 0.1


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.5, 3.0, 2.0], {"max_gradient_norm": 3.0}),
        ([math.inf, 2.0, math.nan], {"max_gradient_norm": 2.0}),
        ([math.nan], {}),
        ([], {}),
    ],
)
def test_only_finite_gradient_norms_count(norms, expected):
    history = [{"loss": 1.0, "grad_norm": norm} for norm in norms] + [{"eval_loss": 1.0}]
    state = SimpleNamespace(log_history=[{"loss": 1.0}, *history], global_step=3, epoch=1.0)
    metrics = stage.summary(state, stage.Rows("sft", [], [], [], num_left_out=0))
    assert {name: value for name, value in metrics.items() if "gradient" in name} == expected


def test_adapter_folder_holds_the_adapter_alone_and_no_path(whole):
    adapter = whole[0] / "adapter"
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert settings["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip


def test_loss_is_that_of_the_completion_with_its_end_of_turn(whole, tiny_model, rows):
    out, metrics = whole
    tokenizer, model = chat.load_tokenizer(tiny_model), backend.load_model(tiny_model, out / "adapter")
    (row,) = read_jsonl(rows["eval"])
    tokens = torch.tensor([render(tokenizer, row["prompt"], row["completion"])])
    num_answer_tokens = num_trainable_tokens(tokenizer, row, CONFIG.max_seq_length)
    labels = tokens.clone()
    labels[0, :-num_answer_tokens] = -100
    assert tokenizer.eos_token_id in labels
    with torch.no_grad():
        assert model(tokens, labels=labels).loss.item() == pytest.approx(metrics["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("last_step", [1, 5])
def test_killed_and_resumed_gives_the_same_bytes(whole, tiny_model, rows, tmp_path, monkeypatch, caplog, last_step):
    def die(args, state, logs, dataloader):
        if state.global_step == last_step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "log_step", die)
        with pytest.raises(Killed):
            train(tiny_model, rows, tmp_path)
    assert not (tmp_path / "out" / "adapter").exists()
    with caplog.at_level(logging.INFO):
        metrics = train(tiny_model, rows, tmp_path)
    assert ("step-00000004" in caplog.text) == (last_step == 5)
    assert ("step 1/6" in caplog.text) == (last_step == 1) and "step 6/6 loss " in caplog.text
    assert metrics == whole[1] and same_files(tmp_path / "out", whole[0])


def test_killed_after_the_last_step_trains_nothing_again(whole, tiny_model, rows, tmp_path, monkeypatch, caplog):
    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "summary", die)
        with pytest.raises(Killed):
            train(tiny_model, rows, tmp_path)
    with caplog.at_level(logging.INFO):
        train(tiny_model, rows, tmp_path, run_id="another run")
    assert "loss" not in caplog.text and same_files(tmp_path / "out", whole[0])


def test_told_to_stop_it_saves_leaves_and_goes_on_to_the_same_bytes(whole, tiny_model, rows, tmp_path, monkeypatch):
    def send_sigterm(args, state, logs, dataloader):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "log_step", send_sigterm)
        with pytest.raises(
            Unfinished, match=r"stopped at step 4/6: SIGTERM; the next attempt resumes from step 4"
        ) as left:
            train(tiny_model, rows, tmp_path)
    assert left.value.code == 75
    assert train(tiny_model, rows, tmp_path) == whole[1]
    assert same_files(tmp_path / "out", whole[0])


def test_out_of_memory_halves_the_batch_once_and_goes_on(whole, tiny_model, rows, tmp_path, monkeypatch, caplog):
    def run_out(args, state, logs, dataloader):
        if state.global_step == 3 and args.per_device_train_batch_size == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(callbacks, "log_step", run_out)
    with caplog.at_level(logging.INFO):
        metrics = train(tiny_model, rows, tmp_path, config=CONFIG.model_copy(update={"lora_dropout": 0.0}))
    assert "out of memory with batch_size 2: continuing with batch_size 1 and gradient_accumulation 4" in caplog.text
    assert "resuming from checkpoint" in caplog.text and "step-00000002" in caplog.text
    undisturbed = train(tiny_model, rows, tmp_path / "other", config=CONFIG.model_copy(update={"lora_dropout": 0.0}))
    assert metrics["total_steps"] == undisturbed["total_steps"]
    assert metrics["final_loss"] == pytest.approx(undisturbed["final_loss"], rel=1e-3)


def test_out_of_memory_twice_is_an_error(tiny_model, rows, tmp_path, monkeypatch):
    def run_out(args, state, logs, dataloader):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(callbacks, "log_step", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        train(tiny_model, rows, tmp_path)


@pytest.mark.parametrize(("halvings", "started_with"), [("0", (4, 3)), ("1", (2, 6)), ("7", (1, 12))])
def test_an_attempt_after_one_without_memory_starts_with_a_smaller_batch(monkeypatch, halvings, started_with):
    monkeypatch.setenv(HALVINGS_ENV, halvings)
    config = CONFIG.model_copy(update={"batch_size": 4, "gradient_accumulation": 3})
    tried = stage.halving_batches(lambda one: (one.batch_size, one.gradient_accumulation), config, base="no model")
    assert tried == started_with


@pytest.mark.parametrize(("batch_size", "halved"), [(4, (2, 6)), (3, (1, 9)), (2, (1, 6))])
def test_an_optimizer_step_keeps_its_rows(batch_size, halved):
    config = CONFIG.model_copy(update={"batch_size": batch_size, "gradient_accumulation": 3})
    tried = []

    def fit(config):
        tried.append((config.batch_size, config.gradient_accumulation))
        if len(tried) == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return {}

    stage.halving_batches(fit, config, base="no model")
    assert tried == [(batch_size, 3), halved]


def test_storage_that_is_down_does_not_stop_the_training(whole, tiny_model, rows, tmp_path, monkeypatch, caplog):
    def down(path, uri):
        raise OSError(f"{uri}: ServiceUnavailable")

    monkeypatch.setattr(storage, "upload_file", down)
    assert train(tiny_model, rows, tmp_path) == whole[1]
    assert same_files(tmp_path / "out", whole[0])
    assert "could not be stored, the training goes on" in caplog.text


def test_first_nan_ends_the_run_and_its_retries(tiny_model, rows, tmp_path, monkeypatch):
    model, rows, bad_id = poison(tiny_model, rows, tmp_path)
    with pytest.raises(Diverged, match=r"^diverged at step \d/6: loss nan, .*learning rate .*, rows .*") as caught:
        train(model, rows, tmp_path, config=CONFIG.model_copy(update={"save_steps": 1}))
    message = str(caught.value)
    assert bad_id in message and "\n" not in message
    assert not any((tmp_path / "out").iterdir())
    files = storage.list_files(tmp_path / "store")
    assert [name for name in files if name.endswith("run/DIVERGED.json")]
    step = int(message.split("step ")[1].split("/")[0])
    assert not [name for name in files if f"step-{step:08}" in name]  # what is kept is from before

    monkeypatch.setattr(backend, "load_for_training", None)  # a retry does not get that far
    with pytest.raises(Diverged) as again:
        train(model, rows, tmp_path)
    assert str(again.value) == message


def test_long_rows_are_left_out_and_counted(tiny_model, rows, tmp_path):
    train_rows = read_jsonl(rows["train"])
    train_rows[3]["prompt"][-1]["content"] += " again" * 300
    write_jsonl(tmp_path / "train.jsonl", train_rows[:6])
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 64, "gradient_accumulation": 64})
    metrics = train(tiny_model, rows | {"train": str(tmp_path / "train.jsonl")}, tmp_path, config=config)
    assert metrics["num_train_rows"] == 5 and metrics["num_rows_left_out"] == 1
    assert metrics["total_steps"] == 1 and metrics["samples_processed"] == 5


def test_no_row_fits(tiny_model, rows, tmp_path):
    words = r"train.jsonl: none of 10 rows fits max_seq_length 8, the shortest has \d+ tokens: raise max_seq_length"
    with pytest.raises(ValueError, match=words):
        train(tiny_model, rows, tmp_path, config=CONFIG.model_copy(update={"max_seq_length": 8}))


def test_command_reuses_its_finished_result(tiny_model, rows, tmp_path, monkeypatch):
    outputs = outputs_in(tmp_path / "out")
    paths = {"base": str(tiny_model), **rows, **outputs}
    flags = [part for name, path in paths.items() for part in (f"--{name}", path)]
    config = {"sft": {"epochs": 1, "max_seq_length": 256, "lora_r": 2, "batch_size": 8}}
    argv = ["--step", "train_sft", "--storage-root", str(tmp_path / "store"), "--config", json.dumps(config), *flags]
    sft.main(argv)
    first = digests.digest(outputs["adapter"])
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(sft, "train", None)
    sft.main(argv)
    assert digests.digest(outputs["adapter"]) == first
    statuses = [entry.status for entry in records.read_records(str(tmp_path / "store"), run.run_id())]
    assert statuses == ["succeeded", "reused"]
