import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from examples.task_api.generate import DECLINE
from posttrain.config import CheckSftStep, OutputFormat, SftConfig, SftLimits
from posttrain.data import write_jsonl
from posttrain.inference import Answer
from posttrain.verdict import Verdict
from validators import sft as gate
from validators.answers import JudgedAnswer

FILE = "adapter_model.safetensors"
PROMPT = [{"role": "user", "content": "?"}]
VALID = JudgedAnswer(PROMPT, Answer("ok", True, 1), None)
BROKEN = JudgedAnswer(PROMPT, Answer("", True, 0), "is empty")
GOOD = gate.Measured(
    non_finite_tensors=[],
    missing_targets=[],
    zero_targets=[],
    base_logprobs=[(-40.0, 10), (-30.0, 10)],
    logprobs=[(-10.0, 10), (-12.0, 10)],
    answers=[VALID] * 20,
    num_rows_too_long=0,
    non_finite_metrics=[],
)


@pytest.fixture
def step() -> CheckSftStep:
    return CheckSftStep(
        validation=SftLimits(
            num_generated_answers=6,
            max_new_tokens=12,
            output_format=OutputFormat(kind="tool_call", declines_with=DECLINE),
            custom_checks=["output_format_valid"],
        ),
        sft=SftConfig(target_modules="all-linear"),
    )


@pytest.fixture
def copy(declining_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(declining_adapter, tmp_path / "adapter"))


@pytest.fixture
def weak_adapter(copy: Path) -> Path:
    """The same adapter with a B a million times smaller: it changes nothing that counts."""
    tensors = load_file(copy / FILE)
    save_file({name: tensor * (1e-6 if "lora_B" in name else 1) for name, tensor in tensors.items()}, copy / FILE)
    return copy


def failed(measured: gate.Measured, **limits) -> list[str]:
    return [check.name for check in gate.judge(measured, SftLimits(**limits)) if check.status != "passed"]


def arguments(tmp_path: Path, base: Path, adapter: Path, rows: list[dict], step: CheckSftStep) -> list[str]:
    write_jsonl(tmp_path / "eval.jsonl", rows)
    (tmp_path / "training.json").write_text('{"final_loss": 0.5, "total_steps": 3}')
    paths = {"base": base, "adapter": adapter, "storage-root": tmp_path / "store"}
    paths |= {"training": tmp_path / "training.json", "eval": tmp_path / "eval.jsonl"}
    paths |= {name: tmp_path / "out" / name for name in ("verdict", "report", "metrics", "passed")}
    flags = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    return ["--step", "check_sft", "--config", step.model_dump_json(exclude_none=True), *flags]


def test_a_trained_adapter_passes_and_everything_is_written(
    tmp_path, untaught, declining_adapter, declining_rows, step
):
    gate.main(arguments(tmp_path, untaught, declining_adapter, declining_rows[32:], step))
    verdict = Verdict.read((tmp_path / "out" / "verdict").read_bytes())
    assert verdict.failed_checks == []
    assert (tmp_path / "out" / "passed").read_text() == "true"
    assert json.loads((tmp_path / "out" / "metrics").read_text())["held_out_loss"] < 0.5
    assert set(verdict.subject) == {"base", "adapter", "training", "eval"}
    assert verdict.numbers["base_held_out_loss"] > 5
    assert verdict.numbers["stopped_rate"] == 1
    assert "Passed" in (tmp_path / "out" / "report").read_text()


@pytest.mark.parametrize(
    ("text", "found"), [('{"final_loss": NaN}', ["final_loss"]), ('{"final_loss": null}', ["final_loss"])]
)
def test_a_training_that_wrote_no_number_is_stopped(tmp_path, text, found):
    (tmp_path / "training.json").write_text(text)
    measured = gate.Measured(**gate.measure_training(tmp_path / "training.json"))
    assert measured.non_finite_metrics == found
    assert "non_finite_metrics" in failed(measured)


def test_metrics_of_something_else_are_refused(tmp_path):
    (tmp_path / "training.json").write_text('{"size_gb": 1}')
    with pytest.raises(ValueError, match="has no final_loss"):
        gate.measure_training(tmp_path / "training.json")


def test_an_untrained_adapter_is_stopped_with_every_reason(tmp_path, untaught, weak_adapter, declining_rows, step):
    gate.main(arguments(tmp_path, untaught, weak_adapter, declining_rows[32:40], step))
    verdict = Verdict.read((tmp_path / "out" / "verdict").read_bytes())
    assert {"held_out_loss", "output_format_valid"} <= {check.name for check in verdict.failed_checks}
    assert (tmp_path / "out" / "passed").read_text() == "false"
    page = (tmp_path / "out" / "report").read_text()
    assert "Stopped by held_out_loss" in page
    assert "did not end by itself within 12 tokens" in page


def test_a_truncated_adapter_fails_as_unreadable(untaught, copy, declining_rows, step):
    content = (copy / FILE).read_bytes()
    (copy / FILE).write_bytes(content[: len(content) // 2])
    measured, failures = gate.measure(untaught, copy, declining_rows[:4], step=step)
    assert [check.name for check in failures] == ["adapter_readable"]
    assert "truncated" in failures[0].detail
    assert "held_out_loss" in failed(measured)


def test_a_nan_names_its_tensor(untaught, copy, declining_rows, step):
    tensors = load_file(copy / FILE)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, copy / FILE)
    measured, _ = gate.measure(untaught, copy, declining_rows[:4], step=step)
    assert measured.non_finite_tensors == [name]
    assert "non_finite_tensors" in failed(measured)


def test_zero_b_and_missing_layers_are_found(untaught, copy):
    tensors = load_file(copy / FILE)
    zero = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    tensors[zero].zero_()
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}
    save_file(kept, copy / FILE)
    measured = gate.measure_adapter(untaught, copy, "all-linear")
    assert measured["zero_targets"] == [zero]
    assert measured["missing_targets"] == ["model.layers.1.mlp.up_proj"]


def test_targets_of_the_configuration_that_were_not_trained_are_missing(untaught, copy):
    tensors = {name: tensor for name, tensor in load_file(copy / FILE).items() if "q_proj" in name}
    save_file(tensors, copy / FILE)
    missing = gate.measure_adapter(untaught, copy, ["q_proj", "v_proj"])["missing_targets"]
    assert missing == [f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)]


def test_an_adapter_of_another_base_is_refused(tmp_path, declining_adapter, declining_rows, step):
    from examples.task_api.tiny import build_tiny_model

    other = build_tiny_model(tmp_path / "other", hidden_size=32)
    measured, failures = gate.measure(other, declining_adapter, declining_rows[:4], step=step)
    assert "trained on" in failures[0].detail
    assert measured == gate.Measured()


def test_rows_that_are_all_too_long_cannot_be_measured(untaught, declining_adapter, declining_rows, step):
    short = step.model_copy(update={"sft": SftConfig(target_modules="all-linear", max_seq_length=8)})
    with pytest.raises(ValueError, match="none of 4 held-out rows has at most max_seq_length 8"):
        gate.measure(untaught, declining_adapter, declining_rows[:4], step=short)


def test_good_numbers_pass():
    assert failed(GOOD) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"non_finite_tensors": ["x"]}, "non_finite_tensors"),
        ({"missing_targets": ["x"]}, "missing_targets"),
        ({"non_finite_metrics": ["final_loss"]}, "non_finite_metrics"),
        ({"zero_targets": ["x"]}, "untrained_targets"),
        ({"logprobs": [(-29.0, 10), (-29.0, 10)]}, "held_out_loss"),
        ({"base_logprobs": [(-9.0, 10), (-9.0, 10)]}, "held_out_loss_below_base"),
        ({"answers": [BROKEN] * 3 + [VALID] * 17}, "output_format_valid"),
    ],
)
def test_each_check_can_stop_alone(change, name):
    assert failed(replace(GOOD, **change)) == [name]


def test_what_was_not_measured_does_not_pass():
    checks = gate.judge(gate.Measured(), SftLimits())
    assert {check.status for check in checks} == {"failed"}


def test_nan_log_probabilities_do_not_pass():
    nan = [(float("nan"), 10), (-12.0, 10)]
    assert failed(replace(GOOD, logprobs=nan)) == ["held_out_loss", "held_out_loss_below_base"]
    assert "held_out_loss" not in gate.numbers_of(replace(GOOD, logprobs=nan))


def test_format_is_judged_only_where_asked_for():
    assert failed(replace(GOOD, answers=[BROKEN]), custom_checks=[]) == []
