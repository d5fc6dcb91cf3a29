"""Tiny models of the architectures that people train: random weights, the tokenizer of the Task API example."""

from pathlib import Path
from typing import Any

from examples.task_api.tiny import build_tokenizer

WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
QWEN3 = {"head_dim": 16}
GEMMA = {"head_dim": 16, "sliding_window": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
# name -> model_type, values of its configuration
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "smollm": ("llama", {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", QWEN3),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3_text": ("gemma3_text", GEMMA),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | QWEN3),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gemma3_vision": ("gemma3", {"mm_tokens_per_image": 4}),
}


def config_of(name: str, vocab_size: int = 600, **token_ids: int | None) -> Any:
    """Makes the configuration of an architecture."""
    from transformers import AutoConfig

    kind, values = ARCHITECTURES[name]
    common = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3} | token_ids
    if kind == "gemma3":
        text = common | WIDTHS | GEMMA | {"model_type": "gemma3_text"}
        tokens = {"image_token_index": 1, "boi_token_index": 0, "eoi_token_index": 2}
        return AutoConfig.for_model(kind, text_config=text, vision_config=VISION, **tokens, **values)
    return AutoConfig.for_model(kind, **(common | ({} if kind == "gpt2" else WIDTHS) | values))


def build(name: str, path: Path | str, *, seed: int = 0) -> Path:
    """Writes the folder of a tiny model with random weights in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer()
    config = config_of(name, len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)
