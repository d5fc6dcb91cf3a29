"""Tests which tensors a training changes: for each architecture what peft really does, by names and shapes alone."""

from functools import cache

import pytest

from posttrain.weights.targets import Layout, resolve
from tests.architectures import ARCHITECTURES, config_of

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# architecture -> what `auto` trains
DEFAULTS = {
    **dict.fromkeys(("llama", "llama_tied", "smollm", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"), LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), ATTENTION),
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
# Names of experts in files, where transformers has fused them.
EXPERTS = {
    "mixtral": ("block_sparse_moe.gate", "block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.0.w2"),
    "qwen2_moe": ("mlp.gate", "mlp.experts.0.gate_proj", "mlp.experts.0.up_proj", "mlp.experts.0.down_proj"),
    "qwen3_moe": ("mlp.gate", "mlp.experts.0.gate_proj", "mlp.experts.0.up_proj", "mlp.experts.0.down_proj"),
}


@cache
def empty(name: str):
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(name))


def layout(name: str, *, drop: tuple[str, ...] = ()) -> Layout:
    """The layout of a model of this architecture, with the names that its files have."""
    model = empty(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.named_parameters() if key not in drop}
    if name in EXPERTS:
        shapes = {key: shape for key, shape in shapes.items() if ".mlp.gate." not in key and ".experts." not in key}
        shapes |= {f"model.layers.{n}.{part}.weight": (32, 64) for n in range(2) for part in EXPERTS[name]}
    return Layout(name, model.config.to_dict(), shapes)


def adapted(name: str, modules: list[str]) -> set[str]:
    """Names of the tensors to which peft gives adapters."""
    import copy

    from peft import LoraConfig, get_peft_model

    conv1d = name == "gpt2"
    config = LoraConfig(r=2, target_modules=modules, task_type="CAUSAL_LM", fan_in_fan_out=conv1d)
    model = get_peft_model(copy.deepcopy(empty(name)), config)
    assert not model.peft_config["default"].target_parameters
    parts = model.get_base_model().named_modules()
    return {f"{part}.weight" for part, module in parts if hasattr(module, "get_delta_weight")}


@pytest.mark.parametrize("setting", ["auto", "attention"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_resolved_is_what_peft_adapts(name, setting):
    targets = resolve(layout(name), setting, setting="sft.target_modules")
    assert adapted(name, targets.modules) == {tensor for names in targets.tensors.values() for tensor in names}
    if setting == "auto":
        assert set(targets.modules) == set(DEFAULTS[name])
        assert bool(targets.note) == (name in EXPERTS)


def test_every_architecture_has_its_default_or_its_refusal():
    assert ARCHITECTURES.keys() - DEFAULTS.keys() == {"gemma3_vision"}


def test_the_shortest_names_match_nothing_else():
    assert set(resolve(layout("gpt2"), "attention", setting="s").modules) == {"c_attn", "attn.c_proj"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("phi3", LLAMA, "^s: q_proj, k_proj, v_proj, gate_proj, up_proj: no linear layer has this name. phi3 .phi3. "
         "has o_proj, qkv_proj, gate_up_proj, down_proj; name some of these, or set it to auto$"),
        ("phi3", ["q_proj", "v_proj"], "q_proj, v_proj: no linear layer"),
        ("gpt2", LLAMA, "gpt2 .gpt2. has c_attn, c_proj, c_fc"),
        ("llama", ["q_proj", "qproj"], "s: qproj: no linear layer has this name"),
        ("llama", ["input_layernorm"], "input_layernorm: no linear layer"),
        ("llama", ["self_attn"], "self_attn: no linear layer"),
        ("llama", [], "the list: names no layer"),
        ("llama", ["q_proj", "lm_head"], "lm_head: embedding or head, of which no adapter can be merged"),
        ("llama_tied", ["lm_head"], "lm_head: embedding and head are one tensor here .tied."),
        ("llama_tied", ["embed_tokens"], "embed_tokens: embedding and head are one tensor here .tied."),
        ("gpt2", ["wte"], "wte: embedding and head are one tensor"),
        ("mixtral", ["q_proj", "w1", "w2"], "w1, w2: part of the experts or of their router, .* has q_proj, k_proj"),
        ("mixtral", "all-linear", "s: all-linear means experts too, .*set it to auto, which trains q_proj, k_proj"),
        ("qwen3_moe", LLAMA, "gate_proj, up_proj, down_proj: part of the experts"),
        ("qwen2_moe", ["shared_expert.up_proj"], "shared_expert.up_proj: part of the experts"),
        ("qwen2_moe", ["gate"], "gate: part of the experts or of their router"),
        ("gemma3_vision", "auto", "^base_model: gemma3_vision .gemma3. has more than text .vision_config."),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_and_merged_is_refused_by_name(name, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve(layout(name), value, setting="s")
    assert "\n" not in str(caught.value)


def test_an_entry_may_be_longer_than_a_name():
    targets = resolve(layout("llama"), ["layers.1.self_attn.q_proj", "mlp.up_proj"], setting="s")
    assert targets.tensors["layers.1.self_attn.q_proj"] == ["model.layers.1.self_attn.q_proj.weight"]
    assert len(targets.tensors["mlp.up_proj"]) == 2
    assert str(targets) == "layers.1.self_attn.q_proj, mlp.up_proj (3 tensors)"


def test_a_model_without_its_head_is_refused():
    of_llama = layout("llama")
    shapes = {name.removeprefix("model."): shape for name, shape in of_llama.shapes.items()}
    with pytest.raises(ValueError, match="holds a model without its head .names begin with layers.0."):
        resolve(Layout("m", of_llama.config, shapes), "auto", setting="s")


def test_a_model_without_layers_or_with_an_encoder_is_refused():
    with pytest.raises(ValueError, match="s: auto finds no linear layer in its layers of m .llama."):
        resolve(Layout("m", {"model_type": "llama"}, {"lm_head.weight": (2, 2)}), "auto", setting="s")
    with pytest.raises(ValueError, match="is an encoder and decoder"):
        resolve(Layout("m", {"model_type": "t5", "is_encoder_decoder": True}, {}), "auto", setting="s")
