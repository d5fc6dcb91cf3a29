import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.task_api.generate import DECLINE
from examples.task_api.tiny import build_tiny_model
from posttrain.config import CheckSftStep, OutputFormat, SftConfig, SftLimits
from posttrain.pages.answers import read
from posttrain.rows.chat import load_tokenizer, render
from posttrain.rows.formats import write_jsonl
from posttrain.verdict import Check, Verdict
from validators import sft as gate
from validators.answers import JudgedAnswer
from validators.held_out import within
from validators.inference import Answer
from validators.measuring import Measured
from validators.session import token_rows

FILE = "adapter_model.safetensors"
PROMPT = [{"role": "user", "content": "?"}]
VALID = JudgedAnswer(PROMPT, Answer("ok", True, 1), None)
BROKEN = JudgedAnswer(PROMPT, Answer("", True, 0), "is empty")
ENDLESS = JudgedAnswer(PROMPT, Answer("ok ok", False, 2), None)
GOOD = gate.Numbers(
    shapes={"a": [2, 3], "b": [3, 2]},
    expected_shapes={"b": [3, 2], "a": [2, 3]},
    non_finite_tensors=[],
    zero_tensors=[],
    non_finite_metrics=[],
    max_gradient_norm=3.0,
    base_logprobs=[(-40.0, 10), (-30.0, 10)] * 3,
    logprobs=[(-10.0, 10), (-12.0, 10)] * 3,
    answers=[VALID] * 40,
    num_rows_too_long=0,
)
MODEL_PARTS = [
    "expected_tensors",
    "adapter_fits_base",
    "held_out_rows",
    "adapter_loads",
    "loss_measured",
    "answers_generated",
    "base_answers_generated",
]


@pytest.fixture
def step() -> CheckSftStep:
    return CheckSftStep(
        validation=SftLimits(
            num_generated_answers=6,
            max_new_tokens=12,
            output_format=OutputFormat(kind="tool_call", declines_with=DECLINE),
            custom_checks=["output_format_valid"],
            confidence=0.5,  # six answers say little
        ),
        sft=SftConfig(lora_r=8, target_modules="all-linear"),
    )


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "training.json"
    path.write_text('{"final_loss": 0.5, "total_steps": 3, "max_gradient_norm": 2.5}')
    return path


@pytest.fixture
def copy(declining_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(declining_adapter, tmp_path / "adapter"))


@pytest.fixture
def weak_adapter(copy: Path) -> Path:
    """A copy of the adapter with a B a million times smaller: it changes nothing that counts."""
    rewrite(copy, lambda name, tensor: tensor * (1e-6 if "lora_B" in name else 1))
    return copy


def stopped_by(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks if check.status != "passed"}


def judged(numbers: gate.Numbers, **limits) -> dict[str, str]:
    return stopped_by(gate.judge(numbers, SftLimits(**limits)))


def stopping(measured: Measured, step: CheckSftStep) -> dict[str, str]:
    """Checks that stop the run, by name, as the gate puts them together."""
    numbers = measured.read(gate.Numbers)
    return stopped_by([*gate.judge(numbers, step.validation), *measured.failures])


def names(stopped: dict[str, str], status: str) -> set[str]:
    return {name for name, has in stopped.items() if has == status}


def arguments(tmp_path: Path, paths: dict[str, Path], rows: list[dict], step: CheckSftStep) -> list[str]:
    write_jsonl(tmp_path / "eval.jsonl", rows)
    paths = paths | {"eval": tmp_path / "eval.jsonl", "storage-root": tmp_path / "store"}
    paths |= {
        name: tmp_path / "out" / name for name in ("verdict", "report", "summary", "answers", "metrics", "passed")
    }
    flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    return ["--step", "check_sft", "--config", step.model_dump_json(exclude_none=True), *flags]


def rewrite(adapter: Path, change: Callable) -> None:
    """Puts `change(name, tensor)` in the place of each tensor; None leaves it out."""
    tensors = {name: change(name, tensor) for name, tensor in load_file(adapter / FILE).items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, adapter / FILE)


def test_a_trained_adapter_passes_and_everything_is_written(
    tmp_path, untaught, declining_adapter, declining_rows, step, training
):
    step = step.model_copy(update={"validation": step.validation.model_copy(update={"noise_floor": True})})
    paths = {"base": untaught, "adapter": declining_adapter, "training": training}
    gate.main(arguments(tmp_path, paths, declining_rows[32:], step))
    verdict = Verdict.read((tmp_path / "out" / "verdict").read_bytes())
    assert verdict.failed_checks == []
    assert (tmp_path / "out" / "passed").read_text() == "true"
    assert json.loads((tmp_path / "out" / "metrics").read_text())["held_out_loss"] < 0.5
    assert set(verdict.subject) == {"base", "adapter", "training", "eval"}
    assert verdict.numbers["base_held_out_loss"] > 5
    assert (verdict.numbers["stopped_rate"], verdict.numbers["max_gradient_norm"]) == (1, 2.5)
    assert 0 <= verdict.numbers["noise_floor_format_valid"] <= 1
    assert verdict.seconds.keys() == {
        "adapter_readable",
        "training_metrics",
        *MODEL_PARTS,
        "noise_floor",
        "answers_scored",
    }
    assert "Passed" in (tmp_path / "out" / "report").read_text()
    assert verdict.answer_match == "tool_call"
    assert (verdict.numbers["answer_accuracy"], verdict.numbers["base_answer_accuracy"]) == (1, 0)
    kept = read((tmp_path / "out" / "answers").read_bytes())
    assert len(kept) == verdict.numbers["num_answers"]
    assert all(row.model.text == DECLINE and row.model.score == 1 and row.references == [DECLINE] for row in kept)
    assert all(row.base.score == 0 and row.base.text and row.before is None for row in kept)
    assert {row.prompt[0]["role"] for row in kept} == {"system"}


@pytest.mark.parametrize("text", ['{"final_loss": NaN}', '{"final_loss": null}'])
def test_a_training_that_wrote_no_number_is_stopped(training, text):
    training.write_text(text)
    measured = gate.read_metrics(training)
    assert measured == {"non_finite_metrics": ["final_loss"], "max_gradient_norm": None}
    assert judged(replace(GOOD, **measured)) == {"finite_metrics": "failed", "gradient_norm": "not run"}


@pytest.mark.parametrize("number", ["0.5", "nan", "-inf", "1e3", "low", True])
def test_a_number_as_text_is_no_number(training, number):
    training.write_text(json.dumps({"final_loss": 1.0, "backend": "peft", "max_gradient_norm": number}))
    measured = gate.read_metrics(training)
    assert measured == {"non_finite_metrics": ["max_gradient_norm"], "max_gradient_norm": None}
    training.write_text(json.dumps({"final_loss": "1.0", "eval_loss": "0.1"}))
    assert gate.read_metrics(training)["non_finite_metrics"] == ["eval_loss", "final_loss"]


def test_metrics_of_something_else_are_refused(training):
    training.write_text('{"size_gb": 1}')
    with pytest.raises(ValueError, match="has no final_loss"):
        gate.read_metrics(training)


def test_a_weak_adapter_is_stopped_with_every_reason(tmp_path, untaught, weak_adapter, declining_rows, step, training):
    paths = {"base": untaught, "adapter": weak_adapter, "training": training}
    gate.main(arguments(tmp_path, paths, declining_rows[32:40], step))
    verdict = Verdict.read((tmp_path / "out" / "verdict").read_bytes())
    assert names(stopped_by(verdict.checks), "failed") >= {"held_out_loss", "answers_stop", "output_format_valid"}
    assert (tmp_path / "out" / "passed").read_text() == "false"
    assert "did not end by itself within 12 tokens" in (tmp_path / "out" / "report").read_text()


def test_the_users_own_check_sees_prompts_and_answers(
    tmp_path, untaught, declining_adapter, declining_rows, step, training, monkeypatch
):
    (tmp_path / "mine.py").write_text(
        "from posttrain.verdict import holds\n"
        "def polite(prompts, answers, context):\n"
        "    return holds('polite', False, detail=f'{len(prompts)} {context.gate} {answers[0]}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    limits = step.validation.model_copy(update={"custom_checks": ["mine:polite"]})
    paths = {"base": untaught, "adapter": declining_adapter, "training": training}
    gate.main(arguments(tmp_path, paths, declining_rows[32:], step.model_copy(update={"validation": limits})))
    [check] = Verdict.read((tmp_path / "out" / "verdict").read_bytes()).failed_checks
    assert (check.name, check.detail) == ("mine:polite", f"6 check_sft {DECLINE}")


def test_a_model_that_hangs_is_ended_and_the_rest_not_run(
    untaught, declining_adapter, declining_rows, step, training, monkeypatch
):
    monkeypatch.setattr(gate, "measure_loss", lambda *_: time.sleep(60))
    step = step.model_copy(
        update={"validation": step.validation.model_copy(update={"check_timeouts": {"loss_measured": 1}})}
    )
    measured = gate.measure(untaught, declining_adapter, training, declining_rows[:4], step=step)
    stopped = stopping(measured, step)
    assert names(stopped, "timed out") == {"loss_measured"}
    assert names(stopped, "not run") == {
        "answers_generated",
        "base_answers_generated",
        "held_out_loss",
        "held_out_loss_below_base",
        "answers_stop",
        "output_format_valid",
    }
    assert names(stopped, "failed") == set()


def test_poisoned_truncated_adapter(untaught, copy, declining_rows, step, training):
    content = (copy / FILE).read_bytes()
    (copy / FILE).write_bytes(content[: len(content) // 2])
    measured = gate.measure(untaught, copy, training, declining_rows[:4], step=step)
    assert "truncated" in measured.failures[0].detail
    stopped = stopping(measured, step)
    assert names(stopped, "failed") == {"adapter_readable"}
    assert names(stopped, "not run") >= {*MODEL_PARTS, "finite_adapter", "held_out_loss", "output_format_valid"}


def test_poisoned_nan_adapter_is_not_put_on_a_model(untaught, copy, declining_rows, step, training):
    poisoned = sorted(load_file(copy / FILE))[3]
    rewrite(
        copy, lambda name, tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan) if name == poisoned else tensor
    )
    measured = gate.measure(untaught, copy, training, declining_rows[:4], step=step)
    assert measured.numbers["non_finite_tensors"] == [poisoned]
    assert measured.seconds.keys() == {"adapter_readable", "training_metrics"}
    stopped = stopping(measured, step)
    assert names(stopped, "failed") == {"finite_adapter"}
    assert names(stopped, "not run") >= {*MODEL_PARTS, "held_out_loss", "output_format_valid"}


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_poisoned_zero_adapter(untaught, copy, declining_rows, step, training, side):
    rewrite(copy, lambda name, tensor: -tensor.zero_() if side in name else tensor)  # -0, which is no 0 byte by byte
    stopped = stopping(gate.measure(untaught, copy, training, declining_rows[32:], step=step), step)
    assert names(stopped, "failed") >= {"adapter_trained", "held_out_loss", "held_out_loss_below_base"}


def test_poisoned_adapter_of_a_base_of_another_shape(tmp_path, declining_adapter, declining_rows, step, training):
    other = build_tiny_model(tmp_path / "other", hidden_size=32)
    measured = gate.measure(other, declining_adapter, training, declining_rows[:4], step=step)
    assert "merge into the model that the adapter was trained on" in measured.failures[0].detail
    stopped = stopping(measured, step)
    assert names(stopped, "failed") == {"adapter_shapes", "adapter_fits_base"}
    assert names(stopped, "not run") >= {"adapter_loads", "held_out_loss", "output_format_valid"}


def test_poisoned_adapter_of_another_base_of_the_same_shape(
    tmp_path, declining_adapter, declining_rows, step, training
):
    other = build_tiny_model(tmp_path / "other", seed=1, initializer_range=0.3)
    stopped = stopping(gate.measure(other, declining_adapter, training, declining_rows[32:], step=step), step)
    assert names(stopped, "failed") >= {"held_out_loss", "output_format_valid"}


def test_zero_and_missing_tensors_are_found(untaught, copy):
    zero = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewrite(copy, lambda name, tensor: tensor.zero_() if name == zero else None if "up_proj" in name else tensor)
    numbers = replace(GOOD, **gate.read_tensors(copy))
    numbers = replace(
        numbers, expected_shapes=gate.expected_shapes(untaught, SftConfig(lora_r=8, target_modules="all-linear"))
    )
    checks = {check.name: check for check in gate.judge(numbers, SftLimits()) if check.status == "failed"}
    assert checks.keys() == {"adapter_trained", "adapter_tensors"}
    assert checks["adapter_trained"].detail == f"1: {zero}"
    assert checks["adapter_tensors"].detail.startswith("4: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight, ")


def test_integers_among_the_tensors_are_not_judged_as_numbers(copy):
    save_file(load_file(copy / FILE) | {"counts": torch.tensor([0])}, copy / FILE)
    numbers = gate.read_tensors(copy)
    assert numbers["shapes"]["counts"] == [1]
    assert numbers["zero_tensors"] == numbers["non_finite_tensors"] == []


def test_an_adapter_of_another_rank_or_with_more_targets_is_not_as_configured(untaught, declining_adapter):
    tensors = gate.read_tensors(declining_adapter)["shapes"]
    rank = gate.expected_shapes(untaught, SftConfig(lora_r=4, target_modules="all-linear"))
    assert judged(replace(GOOD, shapes=tensors, expected_shapes=rank)) == {"adapter_shapes": "failed"}
    fewer = gate.expected_shapes(untaught, SftConfig(lora_r=8, target_modules=["q_proj", "v_proj"]))
    assert judged(replace(GOOD, shapes=tensors, expected_shapes=fewer)) == {"adapter_tensors": "failed"}


def test_rows_that_are_all_too_long_cannot_be_measured(untaught, declining_rows):
    with pytest.raises(ValueError, match="none of 4 held-out SFT rows is within sft.max_seq_length = 8 tokens"):
        token_rows(load_tokenizer(untaught), declining_rows[:4], 8)


def test_good_numbers_pass():
    assert judged(GOOD) == {}


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        ({"non_finite_tensors": ["x"]}, "finite_adapter", "failed"),
        ({"shapes": {"a": [2, 3]}}, "adapter_tensors", "failed"),
        ({"shapes": {"a": [2, 3], "b": [3, 2], "c": [1]}}, "adapter_tensors", "failed"),
        ({"shapes": {"a": [2, 3], "b": [3, 4]}}, "adapter_shapes", "failed"),
        ({"zero_tensors": ["x"]}, "adapter_trained", "failed"),
        ({"non_finite_metrics": ["final_loss"]}, "finite_metrics", "failed"),
        ({"max_gradient_norm": 100.1}, "gradient_norm", "failed"),
        ({"max_gradient_norm": float("inf")}, "gradient_norm", "failed"),
        ({"max_gradient_norm": None}, "gradient_norm", "not run"),
        ({"logprobs": [(-29.0, 10), (-29.0, 10)] * 3}, "held_out_loss", "failed"),
        ({"logprobs": [(-19.0, 10), (-22.0, 10)] * 3}, "held_out_loss", "undecided"),
        ({"base_logprobs": [(-9.0, 10), (-9.0, 10)] * 3}, "held_out_loss_below_base", "failed"),
        ({"base_logprobs": [(-9.0, 10), (-15.0, 10)] * 3}, "held_out_loss_below_base", "undecided"),
        ({"answers": [BROKEN] * 13 + [VALID] * 27}, "output_format_valid", "failed"),
        ({"answers": [BROKEN] * 2 + [VALID] * 38}, "output_format_valid", "undecided"),
        ({"answers": [ENDLESS] * 20 + [VALID] * 20}, "answers_stop", "failed"),
    ],
)
def test_each_check_can_stop_alone(change, name, status):
    assert judged(replace(GOOD, **change)) == {name: status}


def test_one_side_alone_shows_no_gain():
    assert judged(replace(GOOD, base_logprobs=None)) == {"held_out_loss_below_base": "not run"}
    alone = judged(replace(GOOD, logprobs=None))
    assert alone == {"held_out_loss": "not run", "held_out_loss_below_base": "not run"}


def test_the_gain_over_the_base_has_its_own_limit():
    assert judged(GOOD, min_loss_gain=1.0) == {}
    assert judged(GOOD, min_loss_gain=3.5) == {"held_out_loss_below_base": "failed"}


def test_what_was_not_measured_does_not_pass():
    checks = gate.judge(gate.Numbers(), SftLimits())
    assert {check.status for check in checks} == {"not run"}
    assert [check.name for check in checks] == [check.name for check in gate.judge(GOOD, SftLimits())]
    assert not {"held_out_loss", "base_held_out_loss"} & gate.numbers_of(gate.Numbers()).keys()


def test_nan_log_probabilities_do_not_pass():
    nan = [(float("nan"), 10), (-12.0, 10)] * 3
    assert judged(replace(GOOD, logprobs=nan)) == {"held_out_loss": "failed", "held_out_loss_below_base": "failed"}
    assert "held_out_loss" not in gate.numbers_of(replace(GOOD, logprobs=nan))


def test_format_is_judged_only_where_asked_for():
    assert judged(replace(GOOD, answers=[BROKEN] * 40), custom_checks=[]) == {}


def test_long_rows_are_not_asked_and_a_broken_tokenizer_is_left_to_a_measurement(tiny_model, task_api_rows, tmp_path):
    rows = task_api_rows["sft"]
    lengths = [len(render(load_tokenizer(tiny_model), row["prompt"], row["completion"])) for row in rows]
    kept = within(tiny_model, rows, sorted(lengths)[20])
    assert kept == [row for row, length in zip(rows, lengths, strict=True) if length <= sorted(lengths)[20]]
    assert len(rows) > len(kept) > 20
    settings = CheckSftStep(sft=SftConfig(max_seq_length=sorted(lengths)[20]))
    measurer = gate.Measurer(tiny_model, tmp_path, rows, settings)
    assert measurer.held_out_rows() == {"num_rows_too_long": len(rows) - len(kept)}
    assert within(tiny_model, rows, 3) == rows  # which `token_rows` refuses
    assert within(tmp_path, rows, 3) == rows
