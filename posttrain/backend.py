"""Where and how models run: the one module that decides device, precision and library.

model folder -> model and tokenizer, for training (with the LoRA settings) or for judging

unsloth trains where it is installed and there is a GPU, or where POSTTRAIN_BACKEND=unsloth; plain peft everywhere else.
"""

import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from posttrain import data
from posttrain.config import LoraTraining
from posttrain.placement import BACKEND_ENV


@dataclass(frozen=True)
class Backend:
    """What was decided for this process."""

    library: Literal["peft", "unsloth"]
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float16", "float32"]


def prepare(gpu_memory_fraction: float = 1.0) -> Backend:
    """Readies this process for training. Call it before anything imports trl, transformers or peft."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the log is read line by line
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    backend = current()
    if backend.library == "unsloth":
        import unsloth  # noqa: F401  it patches the other three, and can do so only before they are imported
    if backend.device == "cuda":
        import torch

        torch.cuda.set_per_process_memory_fraction(gpu_memory_fraction)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for noisy in ("accelerate", "datasets", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return backend


@cache
def current() -> Backend:
    """What this process uses.

    Raises:
        ValueError: POSTTRAIN_BACKEND names an unknown library, or unsloth where it is not installed.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32"  # on a CPU bfloat16 is several times slower
    if device == "cuda":
        # With emulation every GPU would seem to know bfloat16.
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Backend(library=_library(device), device=device, dtype=dtype)


def training_arguments(config: LoraTraining) -> dict[str, Any]:
    """The trainer arguments that depend on the device. trl turns bfloat16 and gradient checkpointing on by default."""
    backend = current()
    return {
        "use_cpu": backend.device == "cpu",
        "bf16": backend.dtype == "bfloat16",
        "fp16": backend.dtype == "float16",
        "gradient_checkpointing": _checkpoints_gradients(config),
        "dataloader_pin_memory": backend.device == "cuda",
    }


def load_for_training(path: str | Path, config: LoraTraining) -> tuple[Any, Any | None]:
    """The model and the LoRA settings that the trainer is to add to it; None where they have been added already."""
    if current().library == "unsloth":
        return _load_with_unsloth(path, config), None
    from peft import LoraConfig

    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=config.target_modules, task_type="CAUSAL_LM",
    )  # fmt: skip
    return _load(path), lora


def load_model(path: str | Path, adapter: str | Path | None = None) -> Any:
    """The model, with the adapter on it if one is given, on its device and ready to be judged."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the log is read line by line
    model = _load(path)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    return model.to(current().device).eval()


def load_tokenizer(path: str | Path) -> Any:
    """The model's own tokenizer. Its padding side is the caller's matter: left to generate, right to train."""
    return data.load_tokenizer(path)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU's memory or the machine's."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Gives back what dead models and optimizers held."""
    import gc

    import torch

    gc.collect()
    if current().device == "cuda":
        torch.cuda.empty_cache()


def _library(device: str) -> Literal["peft", "unsloth"]:
    asked, installed = os.environ.get(BACKEND_ENV, ""), find_spec("unsloth") is not None
    if asked not in ("", "peft", "unsloth"):
        raise ValueError(f"{BACKEND_ENV}={asked!r}: give peft or unsloth, or leave it out")
    if asked == "unsloth" and not installed:
        raise ValueError(f"{BACKEND_ENV}=unsloth: it is not installed: pip install unsloth, or leave the variable out")
    return asked or ("unsloth" if installed and device == "cuda" else "peft")


def _load(path: str | Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, current().dtype), local_files_only=True, use_safetensors=True
    )


def _load_with_unsloth(path: str | Path, config: LoraTraining) -> Any:
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(path), max_seq_length=config.max_seq_length, dtype=getattr(torch, current().dtype), load_in_4bit=False,
        local_files_only=True, use_safetensors=True,
    )  # fmt: skip
    return FastLanguageModel.get_peft_model(
        model, r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=config.target_modules, random_state=config.seed,
        use_gradient_checkpointing="unsloth" if _checkpoints_gradients(config) else False,
    )  # fmt: skip


def _checkpoints_gradients(config: LoraTraining) -> bool:
    """On a CPU the memory that it saves is not short, and the time that it costs is."""
    return config.gradient_checkpointing and current().device == "cuda"
