import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from posttrain.config import MergeLimits
from posttrain.data import write_jsonl
from posttrain.merge import merge
from posttrain.verdict import Verdict
from posttrain.weights import read_weight_file
from validators import merge as gate

LIMITS = MergeLimits()
WEIGHTS = "model.safetensors"
GOOD = {
    "wrong_names": [], "wrong_shapes": [], "wrong_dtypes": [], "non_finite": [], "num_targets": 14,
    "num_changed_targets": 14, "unchanged_targets": [], "changed_others": [], "quantised": [], "changed_config": [],
    "changed_tokenizer": [], "changed_chat_template": [], "changed_generation_config": [], "changed_eos": [],
    "num_bytes": 100, "implied_bytes": 100, "size_deviation": 0.0, "merge_kl": 1e-5, "num_agreeing": 1000,
    "num_positions": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def merged(tiny_model: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "model"
    merge(tiny_model, tiny_adapter, path)
    return path


@pytest.fixture
def copy(merged: Path, tmp_path: Path) -> Path:
    shutil.copytree(merged, tmp_path / "model")
    return tmp_path / "model"


def rows(num_rows: int = 3) -> list[dict]:
    return [
        {
            "id": str(i),
            "prompt": [{"role": "user", "content": f"task {i}"}],
            "completion": [{"role": "assistant", "content": "ok"}],
        }
        for i in range(num_rows)
    ]


def overwrite(path: Path, name: str, value: int) -> None:
    """Sets the first element of a bfloat16 tensor to the bits of `value`."""
    tensor = read_weight_file(path).tensors[name]
    with open(path, "r+b") as file:
        file.seek(tensor.start)
        file.write(np.uint16(value).tobytes())


def failed(numbers: dict) -> list[str]:
    return [check.name for check in gate.judge(numbers, LIMITS) if check.status == "failed"]


def test_a_good_merge_passes(tiny_model, tiny_adapter, merged):
    numbers, failures = gate.measure(tiny_model, tiny_adapter, merged, rows())
    assert failures == []
    assert failed(numbers) == []
    assert numbers["num_changed_targets"] == numbers["num_targets"] == 14
    assert numbers["size_deviation"] == 0
    assert 0 <= numbers["merge_kl"] < 1e-3
    assert numbers["adapter_loss"] == pytest.approx(numbers["merged_loss"], abs=0.01)


def test_preference_rows_are_compared_on_the_chosen_answer(tiny_model, tiny_adapter, merged):
    pairs = [
        {"id": "a", "prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"]}
        for row in rows(1)
    ]
    assert gate.compare_outputs(tiny_model, tiny_adapter, merged, pairs)["num_positions"] > 5


def test_parity_tells_the_base_from_the_merged_model(tiny_model, tiny_adapter):
    numbers = gate.compare_outputs(tiny_model, tiny_adapter, tiny_model, rows())
    assert numbers["merge_kl"] > 1e-4


def test_base_unchanged_fails(tiny_model, tiny_adapter):
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, tiny_model)
    assert failed(numbers) == ["num_changed_targets", "updates_applied"]


def test_change_outside_the_targets_fails(tiny_model, tiny_adapter, copy):
    overwrite(copy / WEIGHTS, "model.norm.weight", 0x3F00)
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)
    assert numbers["changed_others"] == ["model.norm.weight"]
    assert failed(numbers) == ["others_untouched"]


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
def test_nan_and_infinity_fail(bits, tiny_model, tiny_adapter, copy):
    overwrite(copy / WEIGHTS, "model.layers.0.mlp.up_proj.weight", bits)
    assert failed(GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)) == ["finite_weights"]


def test_other_dtype_and_missing_tensor_fail(tiny_model, tiny_adapter, copy):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / WEIGHTS)
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].to(
        torch.float16
    )
    tensors["model.layers.1.self_attn.q_proj.weight"] = tensors["model.layers.1.self_attn.q_proj.weight"][:32].clone()
    save_file(tensors, copy / WEIGHTS, metadata={"format": "pt"})
    numbers = GOOD | gate.compare_weights(tiny_model, tiny_adapter, copy)
    assert failed(numbers) == ["tensor_names", "tensor_shapes", "tensor_dtypes"]


def test_weights_of_twice_the_size_fail(copy):
    import torch
    from safetensors.torch import load_file, save_file

    wide = {name: tensor.to(torch.float32) for name, tensor in load_file(copy / WEIGHTS).items()}
    save_file(wide, copy / WEIGHTS, metadata={"format": "pt"})
    numbers = GOOD | gate.compare_size(copy)
    assert numbers["size_deviation"] == 1
    assert failed(numbers) == ["size_deviation"]


def test_truncated_weights_fail_every_check_on_them(tiny_model, tiny_adapter, copy):
    with open(copy / WEIGHTS, "r+b") as file:
        file.truncate(5000)
    numbers, failures = gate.measure(tiny_model, tiny_adapter, copy, rows())
    assert {"weights", "size", "parity"} <= {check.name for check in failures}
    assert "merge_kl" in failed(numbers)


@pytest.mark.parametrize(
    ("name", "key", "value", "check"),
    [
        ("config.json", "quantization_config", {"quant_method": "bitsandbytes"}, ["not_quantised"]),
        ("config.json", "rms_norm_eps", 1.0, ["config_unchanged"]),
        ("config.json", "eos_token_id", 0, ["config_unchanged", "eos_unchanged"]),
        ("generation_config.json", "eos_token_id", 0, ["generation_config_unchanged", "eos_unchanged"]),
        ("tokenizer_config.json", "eos_token", "<|endoftext|>", ["tokenizer_unchanged", "eos_unchanged"]),
    ],
)
def test_changed_files_fail(name, key, value, check, tiny_model, copy):
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps(content | {key: value}))
    assert failed(GOOD | gate.compare_files(tiny_model, copy)) == check


def test_lost_chat_template_fails(tiny_model, copy):
    (copy / "chat_template.jinja").unlink()
    assert failed(GOOD | gate.compare_files(tiny_model, copy)) == ["chat_template_unchanged"]


@pytest.mark.parametrize(
    ("number", "check"),
    [
        ({"size_deviation": 0.021}, "size_deviation"),
        ({"merge_kl": 0.011}, "merge_kl"),
        ({"merge_kl": float("nan")}, "merge_kl"),
        ({"num_agreeing": 960}, "merge_agreement"),
        ({"num_positions": 0}, "merge_agreement"),
    ],
)
def test_limits(number, check):
    assert failed(GOOD) == []
    assert failed(GOOD | number) == [check]


def test_nothing_measured_fails_every_check():
    assert failed({}) == [check.name for check in gate.judge(GOOD, LIMITS)]


def test_command_writes_a_passed_verdict(tiny_model, tiny_adapter, merged, tmp_path):
    write_jsonl(tmp_path / "eval.jsonl", rows())
    gate.main([
        "--step", "check_sft_merge", "--storage-root", str(tmp_path / "root"), "--base", str(tiny_model), "--adapter",
        str(tiny_adapter), "--model", str(merged), "--eval", str(tmp_path / "eval.jsonl"),
        "--verdict", str(tmp_path / "v.json"), "--report", str(tmp_path / "r.html"),
        "--metrics", str(tmp_path / "m.json"), "--passed", str(tmp_path / "passed"),
    ])  # fmt: skip
    verdict = Verdict.read((tmp_path / "v.json").read_bytes())
    assert verdict.passed, [check.sentence for check in verdict.failed_checks]
    assert (tmp_path / "passed").read_text() == "true"
    assert set(verdict.subject) == {"base", "adapter", "model", "eval"}
