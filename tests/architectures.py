"""Tiny models of the architectures that people train: random weights, the tokenizer of the Task API example.

As a command it takes each through the stages with the default target_modules, and prints what becomes of it: preflight,
SFT, merge, its gate, DPO, merge, its gate, with a few steps of training, in one process; some minutes for all.

    python -m tests.architectures [NAME ...]
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from examples.task_api.generate import generate, write
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
DATASETS = {"sft": "sft_dataset", "dpo": "preference_dataset"}
WITH_HEAD = "llama_tied_with_head"  # tied, and its file holds the head nevertheless


def config_of(name: str, vocab_size: int = 600, **token_ids: int | None) -> Any:
    """Makes the configuration of an architecture."""
    from transformers import AutoConfig

    kind, values = ARCHITECTURES["llama_tied" if name == WITH_HEAD else name]
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
    if name == WITH_HEAD:
        _store_head(Path(path, "model.safetensors"))
    return Path(path)


def _store_head(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def outcome(name: str, folder: Path) -> str:
    """Takes a model through the stages; says that it passes, or what refused or stopped it."""
    from posttrain import merge, preflight
    from posttrain.config import MergeLimits, PreflightStep
    from posttrain.rows.formats import read_jsonl
    from tests.stages import train, write_rows
    from validators import merge as gate
    from validators import sft as sft_gate
    from validators.measuring import Timeouts

    model = build(name, folder / "base")
    write(generate(num_sft=160, num_preferences=96, seed=0), folder)
    given = {"base_model": str(model), "storage_root": str(folder / "root"), "model_name": name}
    given |= {"sft_dataset": str(folder / "sft.jsonl"), "preference_dataset": str(folder / "preferences.jsonl")}
    counted = preflight.Counted.of(PreflightStep())
    if problems := preflight.findings(PreflightStep(), given, disk=folder, counted=counted):
        return f"refused in preflight: {problems[0]}"
    lines = preflight.target_lines(PreflightStep(), counted)
    rows = write_rows(folder, folder)
    for stage in ("sft", "dpo"):
        out = folder / stage
        default = PreflightStep().model_dump()[stage]["target_modules"]
        train(stage, model, rows, out, target_modules=default)
        adapter, merged = out / "out" / "adapter", out / "merged"
        if stage == "sft":
            shapes = sft_gate.expected_shapes(model, PreflightStep().sft.model_copy(update={"lora_r": 4}))
            actual = sft_gate.read_tensors(adapter)["shapes"]
            if shapes != actual:
                return f"stopped by check_sft: adapter_tensors {sorted(shapes.keys() ^ actual.keys())[:4]}"
        merge.merge(model, adapter, merged)
        held_out = read_jsonl(folder / Path(given[DATASETS[stage]]).name)[-32:]
        measured = gate.measure(model, adapter, merged, held_out, timeouts=Timeouts(120))
        checks = [*gate.judge(measured.read(gate.Numbers), MergeLimits()), *measured.failures]
        if stopped := [f"{check.name} {check.status} ({check.detail})" for check in checks if check.status != "passed"]:
            return f"stopped by check_{stage}_merge: {'; '.join(stopped)}"
        model = merged
    return f"passes; {'; '.join(lines)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all, if none is given")
    names = parser.parse_args(argv).names or [*ARCHITECTURES, WITH_HEAD]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in names:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = outcome(name, Path(folder))
            except (ValueError, RuntimeError, TypeError) as error:  # of a stage, which would end failed
                result = f"{type(error).__name__} in a stage: {str(error)[:300]}"
            result = result.replace(folder, "")
        print(f"| {name} | {result} | {time.monotonic() - start:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
