"""The unsloth path on the tiny model: the losses of plain peft, our merge, DPO from its reference, and a resume."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain import dpo, sft
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.merge import merge
from posttrain.step import digests
from posttrain.train import backend, callbacks
from posttrain.train.checkpoints import Checkpoints

pytestmark = [pytest.mark.unsloth, pytest.mark.filterwarnings("default")]

COMMON = {"max_seq_length": 256, "lora_r": 4, "epochs": 1, "batch_size": 4, "gradient_accumulation": 1, "save_steps": 2}
CONFIGS = {"sft": SftConfig(learning_rate=0.01, **COMMON), "dpo": DpoConfig(learning_rate=0.01, **COMMON)}
MODEL = {"sft": "base", "dpo": "model"}  # flag for the model that is trained


class Killed(BaseException):
    """Nothing in the product catches this."""


def outputs_in(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    return {name: str(folder / name) for name in ("adapter", "metrics", "curve", "logs")}


def train(kind: str, model: Path, rows, folder: Path, **changes) -> dict:
    """Trains in this process, with unsloth."""
    checkpoints = Checkpoints(str(folder / "store"), f"train_{kind}", "f" * 64, run_id="run", limit=3)
    config = CONFIGS[kind].model_copy(update=changes)
    module, step = (sft, SftStep(sft=config)) if kind == "sft" else (dpo, DpoStep(dpo=config))
    outputs = outputs_in(folder / "out")
    return module.train(str(model), files=rows[kind], outputs=outputs, step=step, checkpoints=checkpoints)


def run_stage(kind: str, library: str, model: Path, rows, folder: Path, *, runner=(), **changes) -> tuple[list, str]:
    """Runs a stage as a command, without dropout; returns the log of its steps and what it printed."""
    config = CONFIGS[kind].model_copy(update={"lora_dropout": 0.0} | changes)
    settings = {kind: config.model_dump(mode="json", exclude_none=True)}
    paths = {MODEL[kind]: str(model), **rows[kind], **outputs_in(folder / "out")}
    flags = [part for name, path in paths.items() for part in (f"--{name}", path)]
    common = ["--step", f"train_{kind}", "--storage-root", str(folder), "--config", json.dumps(settings)]
    command = [sys.executable, "-m", *runner, f"posttrain.{kind}", *common, *flags]
    env = os.environ | {backend.BACKEND_ENV: library}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    (last,) = folder.glob("checkpoints/*/*/step-00000004/*/trainer_state.json")
    history = json.loads(last.read_text())["log_history"]
    return [entry for entry in history if "loss" in entry], done.stdout + done.stderr


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return tensors(folder / "out" / "adapter")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_each_step_has_the_loss_and_gradient_of_plain_peft(tiny_model, rows, tmp_path, kind):
    unsloth, said = run_stage(kind, "unsloth", tiny_model, rows, tmp_path / "unsloth")
    peft, _ = run_stage(kind, "peft", tiny_model, rows, tmp_path / "peft")
    assert "Unsloth (CPU): LlamaForCausalLM" in said and "should be imported before" not in said
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [entry[name] for entry in unsloth] == pytest.approx([entry[name] for entry in peft], rel=1e-4)
    one, other = adapter(tmp_path / "unsloth"), adapter(tmp_path / "peft")
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_killed_and_resumed_gives_the_same_bytes(tiny_model, rows, tmp_path, monkeypatch, caplog, kind):
    def die(args, state, logs, dataloader):
        if state.global_step == 3:
            raise Killed

    whole = train(kind, tiny_model, rows, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "log_step", die)
        with pytest.raises(Killed):
            train(kind, tiny_model, rows, tmp_path / "killed")
    with caplog.at_level("INFO"):
        assert train(kind, tiny_model, rows, tmp_path / "killed") == whole
    assert "resuming from checkpoint" in caplog.text
    assert digests.digest(tmp_path / "whole" / "out") == digests.digest(tmp_path / "killed" / "out")


def test_our_merge_of_its_adapter_is_its_own(tiny_model, rows, tmp_path):
    from unsloth import FastLanguageModel

    train("sft", tiny_model, rows, tmp_path)
    merge(tiny_model, tmp_path / "out" / "adapter", tmp_path / "ours")
    settings = tmp_path / "out" / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": str(tiny_model)}))
    model, tokenizer = FastLanguageModel.from_pretrained(str(settings.parent), dtype=torch.bfloat16, load_in_4bit=False)
    model.save_pretrained_merged(str(tmp_path / "its"), tokenizer, save_method="merged_16bit")

    ours, its, base = tensors(tmp_path / "ours"), tensors(tmp_path / "its"), tensors(tiny_model)
    assert ours.keys() == its.keys() == base.keys()
    changed = {name for name in ours if not torch.equal(ours[name], base[name])}
    assert len(changed) == 14  # 7 layers of LoRA in each of 2 blocks
    last_bit = {"rtol": 2**-7, "atol": 1e-4}  # of bfloat16
    for name in ours:
        assert torch.allclose(ours[name].float(), its[name].float(), **last_bit), name
        assert torch.allclose(ours[name].float(), base[name].float(), **last_bit) == (name not in changed), name


def test_dpo_starts_from_its_reference_and_gives_its_adapter_alone(tiny_model, rows, tmp_path):
    metrics = train("dpo", tiny_model, rows, tmp_path)
    assert metrics["start_loss"] == pytest.approx(math.log(2), abs=1e-5)
    files = {file.name for file in (tmp_path / "out" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    assert not any("ref" in name for name in adapter(tmp_path))
    (kept,) = tmp_path.glob("store/checkpoints/train_dpo/*/reference-train.json")
    assert len(json.loads(kept.read_text())) == 16


def test_dpo_with_the_trainer_that_unsloth_builds_for_gpus(tiny_model, rows, tmp_path):
    runner = ["tests.unsloth.as_on_a_gpu"]
    built, said = run_stage("dpo", "unsloth", tiny_model, rows, tmp_path / "built", runner=runner)
    plain, _ = run_stage("dpo", "peft", tiny_model, rows, tmp_path / "plain")
    assert "trainer: UnslothDPOTrainer" in said
    assert [entry["loss"] for entry in built] == pytest.approx([entry["loss"] for entry in plain], rel=1e-3)
    assert built[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    (kept,) = tmp_path.glob("built/checkpoints/train_dpo/*/reference-train.json")
    assert len(json.loads(kept.read_text())) == 16


@pytest.mark.parametrize("library", ["peft", "unsloth"])
def test_an_adapter_learned_on_four_bits_merges_into_the_base(tiny_model, rows, tmp_path, library):
    runner = ["tests.unsloth.as_on_a_gpu"]
    steps, said = run_stage("sft", library, tiny_model, rows, tmp_path, runner=runner, load_in_4bit=True)
    assert "base: 4 bits" in said
    assert steps[-1]["loss"] < steps[0]["loss"]
    merge(tiny_model, tmp_path / "out" / "adapter", tmp_path / "merged")
    merged, base = tensors(tmp_path / "merged"), tensors(tiny_model)
    assert {name: tensor.dtype for name, tensor in merged.items()} == {name: base[name].dtype for name in base}
    assert sum(not torch.equal(merged[name], base[name]) for name in base) == 14
    assert all(tensor.isfinite().all() for tensor in merged.values())
