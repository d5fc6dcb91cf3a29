"""Without padding, and with each prompt computed once, a training sees the losses and gradients of trl's own."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from posttrain import backend, dpo, packing, sft
from posttrain.checkpoints import Checkpoints
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.data import read_jsonl, write_jsonl

COMMON = {
    "max_seq_length": 256, "lora_r": 4, "lora_dropout": 0.0, "epochs": 1, "batch_size": 3, "gradient_accumulation": 2,
    "learning_rate": 0.01, "save_steps": 100,
}  # fmt: skip
LINEAR = ["q_proj", "v_proj", "down_proj"]
SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def train(config: SftConfig | DpoConfig, model: Path, rows: Path, folder: Path) -> tuple[list[dict], dict]:
    """Log of the steps, and metrics."""
    out = folder / "out"
    out.mkdir(parents=True)
    kind, module = ("sft", sft) if isinstance(config, SftConfig) else ("preferences", dpo)
    found = read_jsonl(rows / f"{kind}.jsonl")
    files = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    write_jsonl(files["train"], found[:14])
    write_jsonl(files["eval"], found[14:19])
    step = SftStep(sft=config) if kind == "sft" else DpoStep(dpo=config)
    metrics = module.train(
        str(model), files=files, outputs={name: str(out / name) for name in ("adapter", "metrics", "curve", "logs")},
        step=step, checkpoints=Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="run", limit=3),
    )  # fmt: skip
    (state,) = folder.glob("store/checkpoints/train/*/step-*/*/trainer_state.json")
    return [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry], metrics


@pytest.mark.parametrize(
    "config",
    [
        SftConfig(target_modules=LINEAR, **COMMON),
        DpoConfig(target_modules=LINEAR, **COMMON),
        DpoConfig(target_modules=LINEAR, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 4.0], **COMMON),
    ],
    ids=["sft", "dpo", "dpo with sft"],
)
def test_steps_have_the_loss_and_gradient_of_trl_s_own(config, tiny_model, task_api_files, tmp_path, monkeypatch):
    ours, our_metrics = train(config, tiny_model, task_api_files, tmp_path / "ours")
    monkeypatch.setattr(backend, "leaves_trainer_alone", lambda config: False)
    monkeypatch.setattr(packing, "pack", pytest.fail)
    monkeypatch.setattr(packing, "pack_pairs", pytest.fail)
    plain, metrics = train(config, tiny_model, task_api_files, tmp_path / "plain")
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in ours] == pytest.approx([entry[name] for entry in plain], rel=1e-4)
    assert our_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5)


def test_dpo_holds_no_logits_of_prompts(tiny_model, task_api_files, tmp_path, monkeypatch):
    def all_logits(model, *args, forward=transformers.LlamaForCausalLM.forward, **inputs):
        assert not model.training
        return forward(model, *args, **inputs)

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", all_logits)
    train(DpoConfig(target_modules=LINEAR, **COMMON), tiny_model, task_api_files, tmp_path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_dpo_of_an_adapted_head_is_trl_s_own(tiny_model, task_api_files, tmp_path):
    config = DpoConfig(target_modules=["q_proj", "lm_head"], **COMMON)
    steps, _ = train(config, tiny_model, task_api_files, tmp_path)
    assert "mean_token_accuracy" in steps[0]  # which trl counts where it has all logits


def model_of(name: str, **settings) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral", "Phi3", "Gemma", "Olmo2", "SmolLM3", "Granite"])
def test_a_row_or_pair_computed_at_once_has_the_states_of_each_alone(name):
    model = model_of(name, sliding_window=None)
    prompt, chosen, rejected = [5, 6, 7], [8, 9], [10, 11, 12]
    ids = torch.tensor([[*prompt, *chosen, 0], [*prompt, *rejected]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        alone = [model(input_ids=ids[:1, :5]).logits, model(input_ids=ids[1:]).logits]
        packing.turn_on(model)
        assert packing.is_on(model)
        padded = model(input_ids=ids, attention_mask=attention_mask).logits
        rows = packing.pack({"input_ids": ids, "attention_mask": attention_mask, "labels": ids})
        of_rows = model(**rows).logits
        pair = packing.pack_pairs(attention_mask, torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]))
        of_pair = model(**pair.model_inputs(ids)).logits
    assert torch.allclose(padded[0, :5], alone[0][0], atol=1e-5) and torch.allclose(padded[1], alone[1][0], atol=1e-5)
    assert torch.allclose(of_rows, torch.cat(alone, dim=1), atol=1e-5)
    assert rows["labels"].tolist() == [[-100, 6, 7, 8, 9, -100, 6, 7, 10, 11, 12]]
    assert pair.take(ids).tolist() == [[5, 6, 7, 8, 9, 7, 10, 11, 12]]
    assert torch.allclose(of_pair, torch.cat([alone[0], alone[1][:, 2:]], dim=1), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("GPT2", {}),  # positions are learned
        ("Bloom", {}),  # attention falls with the distance
        ("Mistral", {"sliding_window": 16}),  # of which a short row shows nothing
        ("Gemma3Text", {}),
        ("FalconMamba", {"state_size": 4}),
        ("Nemotron", {}),  # its attention is its own
    ],
)
def test_models_that_see_past_a_row_are_given_padded_batches(name, settings):
    model = model_of(name, **settings)
    before = model.config._attn_implementation
    packing.turn_on(model)
    assert model.config._attn_implementation == before
