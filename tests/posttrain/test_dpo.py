import json
import logging
import math
import shutil
from pathlib import Path

import pytest

from posttrain import dpo
from posttrain.config import DpoConfig, DpoStep
from posttrain.rows.formats import read_jsonl, write_jsonl
from posttrain.train import backend, callbacks
from posttrain.train.checkpoints import Checkpoints, Diverged
from tests.stages import Killed, outputs_in, same_files

# 14 rows in batches of 2 are 7 batches, so 4 steps in an epoch, the last of half the size.
CONFIG = DpoConfig(
    max_seq_length=256,
    lora_r=4,
    lora_dropout=0.2,
    epochs=1,
    batch_size=2,
    gradient_accumulation=2,
    learning_rate=0.01,
    save_steps=2,
)


@pytest.fixture(scope="module")
def rows(task_api_files, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    pairs = read_jsonl(task_api_files / "preferences.jsonl")
    write_jsonl(folder / "train.jsonl", pairs[:14])
    write_jsonl(folder / "eval.jsonl", pairs[14:18])
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}


def train(model, rows, folder: Path, *, config: DpoConfig = CONFIG, run_id: str = "run") -> dict:
    checkpoints = Checkpoints(str(folder / "store"), "train_dpo", "f" * 64, run_id=run_id, limit=3)
    step = DpoStep(dpo=config)
    return dpo.train(str(model), files=rows, outputs=outputs_in(folder / "out"), step=step, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def whole(tiny_model, rows, tmp_path_factory) -> tuple[Path, dict]:
    """Outputs and metrics of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", train(tiny_model, rows, folder)


def test_starts_from_its_reference_and_says_what_it_did(whole):
    out, metrics = whole
    assert json.loads((out / "metrics").read_text()) == metrics
    assert metrics["first_loss"] == metrics["start_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["eval_loss"] < math.log(2) and metrics["eval_reward_margin"] > 0
    expected = {"total_steps": 4, "epochs_completed": 1.0, "samples_processed": 14, "beta_used": 0.1}
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["eval_reward_accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0) and metrics["num_eval_rows"] == 4
    assert "<svg" in (out / "curve").read_text()


def test_adapter_folder_holds_the_adapter_alone_and_no_path(whole):
    adapter = whole[0] / "adapter"
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert settings["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("last_step", [1, 3])
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
    assert ("step-00000002" in caplog.text) == (last_step == 3)
    assert ("step 1/4" in caplog.text) == (last_step == 1) and "step 4/4 loss " in caplog.text
    assert metrics == whole[1] and same_files(tmp_path / "out", whole[0])


def test_a_resume_does_not_ask_the_reference_again(whole, tiny_model, rows, tmp_path, monkeypatch):
    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "log_step", die)
        with pytest.raises(Killed):
            train(tiny_model, rows, tmp_path)
    monkeypatch.setattr("trl.DPOTrainer.compute_ref_log_probs", die)
    assert train(tiny_model, rows, tmp_path) == whole[1]
    assert same_files(tmp_path / "out", whole[0])


@pytest.mark.parametrize("text", ["[[1.0, 2.0]]", "[[1.0, 2.0], [3.0", '[["a", 1.0]]'])
def test_a_damaged_reference_is_computed_again(whole, tiny_model, rows, tmp_path, caplog, text):
    kept = tmp_path / "store" / "checkpoints" / "train_dpo" / ("f" * 64) / "reference-train.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(text)
    assert train(tiny_model, rows, tmp_path) == whole[1]
    assert "reference-train.json skipped: " in caplog.text


def test_dropout_of_the_adapter_is_on(whole, tiny_model, rows, tmp_path):
    train(tiny_model, rows, tmp_path, config=CONFIG.model_copy(update={"lora_dropout": 0.0}))
    weights = Path("adapter", "adapter_model.safetensors")
    assert not same_files(tmp_path / "out" / weights, whole[0] / weights)


def test_mixed_losses_start_above_ln_2(tiny_model, rows, tmp_path):
    config = CONFIG.model_copy(update={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]})
    metrics = train(tiny_model, rows, tmp_path, config=config)
    assert metrics["first_loss"] > 2 * math.log(2)
    assert metrics["start_loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    ("loss_type", "weights", "expected"),
    [(["sigmoid"], None, 0.9), (["sigmoid"], [0.5], 1.8), (["sigmoid", "sft"], None, math.log1p(math.exp(-1)))],
)
def test_start_loss_is_the_sigmoid_part(loss_type, weights, expected):
    history = [{"eval_loss": 1.0}, {"loss": 0.9, "rewards/margins": 1.0}, {"loss": 0.1, "rewards/margins": 9.0}]
    assert dpo.start_loss(history, DpoConfig(loss_type=loss_type, loss_weights=weights)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss_type", "weights", "expected"),
    [(["sigmoid"], None, math.log(2)), (["hinge", "ipo"], [0.5, 2.0], 0.5 + 2 * 25), (["sigmoid", "sft"], None, None)],
)
def test_expected_first_loss(loss_type, weights, expected):
    check = callbacks.CheckReference(DpoConfig(loss_type=loss_type, loss_weights=weights, beta=0.1))
    assert check.expected_loss() == (expected and pytest.approx(expected))


def test_a_reference_that_is_not_the_start_model_ends_the_run(tiny_model, rows, tmp_path, monkeypatch):
    """Dropout inside the model makes policy and reference differ, as a wrong reference would."""
    monkeypatch.setattr(backend, "_without_dropout", lambda path: {})
    model = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"attention_dropout": 0.9}))
    with pytest.raises(ValueError, match="the reference is not the start model"):
        train(model, rows, tmp_path, config=CONFIG.model_copy(update={"beta": 10.0}))
    assert not (tmp_path / "out" / "adapter").exists()


def test_infinite_gradient_ends_the_run_and_its_retries(tiny_model, rows, tmp_path):
    config = CONFIG.model_copy(update={"lora_alpha": 10**30, "warmup_ratio": 0.0})
    with pytest.raises(
        Diverged, match=r"^diverged at step 1/4: grad_norm inf, learning rate 0.01, rows pref"
    ) as caught:
        train(tiny_model, rows, tmp_path, config=config)
    with pytest.raises(Diverged) as again:
        train(tiny_model, rows, tmp_path)
    assert str(again.value) == str(caught.value)
    assert not any((tmp_path / "out").iterdir())


def test_rows_of_the_other_kind(tiny_model, rows, task_api_files, tmp_path):
    with pytest.raises(ValueError, match=r"sft.jsonl: row 1: 'chosen' is None: give a list of messages"):
        train(tiny_model, rows | {"train": str(task_api_files / "sft.jsonl")}, tmp_path)


def test_no_row_fits(tiny_model, rows, tmp_path):
    with pytest.raises(ValueError, match=r"train.jsonl: none of 14 rows fits max_seq_length 8"):
        train(tiny_model, rows, tmp_path, config=CONFIG.model_copy(update={"max_seq_length": 8}))
