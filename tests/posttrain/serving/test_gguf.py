"""A GGUF file holds the model: llama.cpp gives the log-probabilities that transformers gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from posttrain.config.serving import Export
from posttrain.rows import chat
from posttrain.serving import formats, gguf, quantise, vocabulary
from posttrain.weights.targets import Layout
from tests import architectures
from validators import inference, llama_cpp
from validators.measuring import Timeouts, in_order

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
SPACED = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}
PROMPT = [{"role": "user", "content": "Add the report, then: 12 tasks? ünï 你好\n\n  ok."}]


def build(name: str, folder: Path, **config) -> Path:
    """A tiny model none of whose tensors is the same everywhere: its norms and biases have values of their own."""
    import torch

    model = architectures.build(name, folder / "model")
    file = model / "model.safetensors"
    weights, generator = load_file(file), torch.Generator().manual_seed(0)
    for one, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim == 1 else 0.1)
        weights[one] = (weight + noise).to(weight.dtype)
    save_file(weights, file, metadata={"format": "pt"})
    change_config(model, **config)
    return model


def change_config(model: Path, **changes) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def deviation(model: Path, kind: str, tmp_path: Path) -> float:
    """The largest difference of log-probabilities of the likeliest tokens, at three places of an answer."""
    gguf.write(model, tmp_path / "model.gguf", kind=kind)

    def measure() -> dict[str, float]:
        from validators.parity import load

        tokenizer, loaded = chat.load_tokenizer(model), load(model)
        row = inference.token_row(tokenizer, PROMPT, [{"role": "assistant", "content": "Done at last."}])
        (likeliest,) = inference.most_likely(loaded, tokenizer, [row], num=8)
        worst = 0.0
        with llama_cpp.Server(tmp_path / "model.gguf") as server:
            for at, (ids, logprobs) in enumerate(zip(*likeliest, strict=True)):
                ours = server.likeliest(row.prompt + row.completion[:at], num=600)
                worst = max(worst, *(abs(ours[i] - p) for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True)))
        return {"worst": worst}

    measured = in_order({"compared": measure}, Timeouts(120))
    assert measured.failures == []
    return measured.numbers["worst"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {}),
        ("llama_tied", {}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("llama", {"rope_parameters": None, "rope_theta": 500.0}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_it_computes_what_transformers_does(tmp_path, name, config):
    assert deviation(build(name, tmp_path, **config), "bf16", tmp_path) < 0.05


@pytest.mark.parametrize(("kind", "most"), [("f16", 0.05), ("q8_0", 0.4), ("q4_k_m", 2.5)])
def test_a_smaller_file_is_less_exact(tmp_path, kind, most):
    model = build("llama", tmp_path)
    assert deviation(model, kind, tmp_path) < most


def test_files_get_smaller_and_types_are_those_of_llama_cpp(tmp_path, tiny_model):
    from gguf import GGUFReader

    sizes, types = {}, {}
    for kind in ("f16", "q8_0", "q4_k_m"):
        file = tmp_path / f"{kind}.gguf"
        gguf.write(tiny_model, file, kind=kind)
        sizes[kind] = file.stat().st_size
        types[kind] = {one.name: one.tensor_type.name for one in GGUFReader(file).tensors}
    assert sizes["q4_k_m"] < sizes["q8_0"] < sizes["f16"]
    assert types["q8_0"]["blk.0.attn_q.weight"] == "Q8_0"
    assert types["q8_0"]["blk.0.attn_norm.weight"] == "F32"
    # Rows of 64 and 128 are no multiple of a K-quant's block.
    assert types["q4_k_m"]["blk.0.attn_q.weight"] == "Q5_0"
    assert types["q4_k_m"]["output.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("name", "layers", "is_head", "expected"),
    [
        ("blk.0.attn_v.weight", 16, False, "Q6_K"),
        ("blk.3.attn_v.weight", 16, False, "Q4_K"),
        ("blk.4.ffn_down.weight", 16, False, "Q6_K"),
        ("blk.15.ffn_down.weight", 16, False, "Q6_K"),
        ("blk.0.attn_q.weight", 16, False, "Q4_K"),
        ("token_embd.weight", 16, True, "Q6_K"),
        ("token_embd.weight", 16, False, "Q4_K"),
    ],
)
def test_the_mixture_of_q4_k_m(name, layers, is_head, expected):
    kind = quantise.type_of(name, (512, 512), kind="q4_k_m", num_layers=layers, is_head=is_head)
    assert kind.name == expected


@pytest.mark.parametrize("qtype", ["Q4_K", "Q6_K", "Q8_0"])
def test_values_come_back(qtype):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    stored = quantise.quantise(values, GGMLQuantizationType[qtype])
    error = np.abs(dequantize(stored, GGMLQuantizationType[qtype]) - values).mean()
    assert error < {"Q4_K": 0.08, "Q6_K": 0.02, "Q8_0": 0.01}[qtype]


def test_files_of_the_same_model_are_the_same(tmp_path, tiny_model):
    for name in ("a", "b"):
        gguf.write(tiny_model, tmp_path / name, kind="q8_0")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not one of llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not silu"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window 64"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn' is not one of"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path, tiny_model, changes, words):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    change_config(model, **changes)
    with pytest.raises(ValueError, match=words):
        formats.check_model(model, Layout.of(model), Export(formats=["f16"]))


def test_a_tensor_without_a_place_is_refused():
    with pytest.raises(ValueError, match="tensor model.layers.0.mlp.router.weight has no place in GGUF"):
        gguf.gguf_name("model.layers.0.mlp.router.weight", source="m")


def change_tokenizer(tiny_model: Path, folder: Path, **changes) -> Path:
    model = shutil.copytree(tiny_model, folder)
    file = model / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text by"),
        ({"pre_tokenizer": SPACED}, "splits text by"),
        ({"normalizer": {"type": "Lowercase"}}, "has the normalizer Lowercase"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tmp_path, tiny_model, changes, words):
    model = change_tokenizer(tiny_model, tmp_path / "model", **changes)
    with pytest.raises(ValueError, match=words):
        vocabulary.read(model, num_rows=600, source="m")


def test_rules_of_known_tokenizers_have_their_names():
    def rule(pattern: str) -> dict:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}

    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    for pattern, name in ((llama3, "llama-bpe"), (llama3.replace("{1,3}", ""), "qwen2")):
        tokenizer = {"model": {"type": "BPE", "merges": ["a b"]}, "pre_tokenizer": rule(pattern)}
        assert vocabulary._split(tokenizer, source="m") == name


def test_rows_of_the_embedding_without_a_token_have_names_of_their_own(tiny_model):
    read = vocabulary.read(tiny_model, num_rows=610, source="m")
    assert read.tokens[609] == "[PAD609]"
    assert len(set(read.tokens)) == 610
    assert read.types[609] == vocabulary.UNUSED
    assert read.types[read.special["eos"]] == vocabulary.CONTROL


def test_formats_without_their_library_are_refused(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name in ("xllamacpp", "vllm") else name)
    with pytest.raises(ValueError, match=r"q8_0 needs xllamacpp, .*install posttrain\[export\]"):
        formats.check_installed(Export(formats=["q8_0"]))
    with pytest.raises(ValueError, match="fp8 needs vllm"):
        formats.check_installed(Export(formats=["fp8"]))
