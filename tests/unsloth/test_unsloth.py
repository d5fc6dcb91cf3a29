"""The unsloth path on the tiny model: the losses of plain peft, our merge, DPO from its reference, and a resume."""

import json
import math

import pytest
import torch

from posttrain.merge import merge
from tests.stages import adapter, killed_and_resumed, run_stage, same_files, tensors, train

pytestmark = [pytest.mark.unsloth, pytest.mark.filterwarnings("default")]


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
    whole = train(kind, tiny_model, rows, tmp_path / "whole")
    assert killed_and_resumed(kind, tiny_model, rows, tmp_path / "killed", monkeypatch, caplog) == whole
    assert same_files(tmp_path / "whole" / "out", tmp_path / "killed" / "out")


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
