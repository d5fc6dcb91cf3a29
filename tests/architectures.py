"""Tiny models of the architectures that people train: random weights, the tokenizer of the Task API example.

As a command it takes each through the whole line with the default target_modules, every gate and publishing included,
and prints what becomes of it; about half a minute each.

    python -m tests.architectures [NAME ...]
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from examples.task_api.tiny import WIDTHS, build_tokenizer, pretrain
from posttrain.config import DpoConfig, SftConfig
from posttrain.weights.targets import Layout, resolve
from tests.tiny_line import write_line

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
WITH_VISION = "gemma3_vision"
PRETRAINING_STEPS = 100  # a model that knows nothing learns nothing from LoRA
TIMEOUT_SECONDS = 600  # of a run
WITH_HEAD = "llama_tied_with_head"  # tied, and its file holds the head nevertheless
WITH_THOUGHTS = "qwen3_with_thoughts"  # its template puts a block of thoughts before the last answer, as Qwen3's does
VARIANTS = {WITH_HEAD: "llama_tied", WITH_THOUGHTS: "qwen3"}  # -> architecture
THOUGHTS = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}"
    "{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def config_of(name: str, vocab_size: int = 600, **token_ids: int | None) -> Any:
    """Makes the configuration of an architecture."""
    from transformers import AutoConfig

    kind, values = ARCHITECTURES[VARIANTS.get(name, name)]
    common = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 3} | token_ids
    if kind == "gemma3":
        text = common | WIDTHS | GEMMA | {"model_type": "gemma3_text"}
        tokens = {"image_token_index": 1, "boi_token_index": 0, "eoi_token_index": 2}
        return AutoConfig.for_model(kind, text_config=text, vision_config=VISION, **tokens, **values)
    return AutoConfig.for_model(kind, **(common | ({} if kind == "gpt2" else WIDTHS) | values))


def build(name: str, path: Path | str, *, seed: int = 0, num_steps: int = 0) -> Path:
    """Writes the folder of a tiny model in bfloat16: random weights, then `num_steps` of training on other rows."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = build_tokenizer()
    if name == WITH_THOUGHTS:
        tokenizer.chat_template = THOUGHTS
    config = config_of(name, len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    pretrain(model, tokenizer, num_steps=num_steps, seed=seed)
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


def write_run(name: str, folder: Path) -> Path:
    """Writes a model that knows something of the Task API, its data, and a configuration that trains the layers of the
    defaults, for so long and judged on so many rows that gates can decide; gives the configuration's path.
    """
    model = build(name, folder / "base", num_steps=0 if name == WITH_VISION else PRETRAINING_STEPS)
    path = write_line(folder, model)
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["dpo"].pop("target_modules")
    settings["sft"]["epochs"] = 8
    settings["data"]["eval_fraction"] = 0.25
    settings["validation"]["num_generated_answers"] = 32
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def outcome(name: str, folder: Path) -> str:
    """Takes a model through the whole line; says that it was published, or what refused or stopped it."""
    command = [sys.executable, "run_pipeline.py", "--config", str(write_run(name, folder)), "--run-id", "run"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=TIMEOUT_SECONDS)
    path = folder / "root" / "runs" / "run" / "pipeline_result.json"
    if not path.is_file():
        return f"ended without a result: {done.stderr.strip()[-500:]}"
    result = json.loads(path.read_text(encoding="utf-8"))
    if not result["success"]:
        return "; ".join([f"stopped by {result['stopped_by']}"] * bool(result["stopped_by"]) + result["errors"])
    layout = Layout.of(folder / "base")
    stages = {"SFT": SftConfig().target_modules, "DPO": DpoConfig().target_modules}
    trained = [f"{stage} trains {resolve(layout, value, setting=stage)}" for stage, value in stages.items()]
    return f"published; {'; '.join(trained)}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all, if none is given")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep each run here, in a folder of its name")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    for name in args.names or [*ARCHITECTURES, *VARIANTS]:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.keep / name if args.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            result = outcome(name, folder).replace(f"{folder}/", "")
        print(f"| {name} | {result} | {time.monotonic() - start:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
