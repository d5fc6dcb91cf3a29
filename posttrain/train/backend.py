"""Where and how models run: the one module that decides device, precision and library.

model folder -> model and tokenizer, for training (with the LoRA settings) or for judging

unsloth trains where it is installed and there is one GPU, or where POSTTRAIN_BACKEND=unsloth; plain peft everywhere
else, also on several GPUs.
"""

import gc
import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from posttrain.config import LoraTraining, SftConfig
from posttrain.config.placement import BACKEND_ENV
from posttrain.rows import chat
from posttrain.step import usage
from posttrain.train import ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What was decided for this process."""

    library: Literal["peft", "unsloth"]
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float16", "float32"]


def prepare(gpu_memory_fraction: float = 1.0) -> Backend:
    """Readies this process for training. Call it before anything imports trl, transformers or peft."""
    _set_environment()
    backend = current()
    if backend.library == "unsloth":
        import unsloth  # noqa: F401  it patches the other three, and can do so only before they are imported
    ranks.join(backend.device)
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


def import_libraries() -> None:
    """Imports what every step with a model imports, into a process from which they are forked.

    Nothing where a fork could not use it: it does not inherit a GPU, and unsloth has to come before the others.
    """
    if usage.has_gpu() or find_spec("unsloth"):
        return
    _set_environment()
    gc.disable()  # nothing of what an import makes is garbage: looking for it takes a sixth of the time
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    gc.freeze()  # nor is it in a fork
    gc.enable()


def _set_environment() -> None:
    """What the libraries read when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the log is read line by line
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")


@cache
def current() -> Backend:
    """What this process uses.

    Raises:
        ValueError: POSTTRAIN_BACKEND names an unknown library, or unsloth where that cannot train.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32"  # on a CPU bfloat16 is several times slower
    if device == "cuda":
        # With emulation every GPU would seem to know bfloat16.
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Backend(library=_library(device), device=device, dtype=dtype)


def device_args(config: LoraTraining) -> dict[str, Any]:
    """The trainer arguments that depend on the devices. trl turns bfloat16 and gradient checkpointing on by default."""
    backend = current()
    arguments = {
        "use_cpu": backend.device == "cpu",
        "bf16": backend.dtype == "bfloat16",
        "fp16": backend.dtype == "float16",
        "gradient_checkpointing": _checkpoints_gradients(config),
        "dataloader_pin_memory": backend.device == "cuda",
    }
    if is_sharded(config):  # layers gather their weights once more where the trainer checkpoints, not where FSDP does
        fsdp = {"activation_checkpointing": arguments["gradient_checkpointing"]}
        return arguments | {"fsdp": True, "fsdp_config": fsdp, "gradient_checkpointing": False}
    return arguments | ({"ddp_find_unused_parameters": False} if ranks.count() > 1 else {})


def is_sharded(config: LoraTraining) -> bool:
    """Whether the layers of the model are dealt to the ranks, by FSDP."""
    return ranks.count() > 1 and config.parallelism == "fsdp"


def load_for_training(path: str | Path, config: LoraTraining) -> tuple[Any, Any | None]:
    """The model and the LoRA settings that the trainer is to add to it; None where they have been added already."""
    if current().library == "unsloth":
        return _load_with_unsloth(path, config), None
    from peft import LoraConfig

    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=config.target_modules, task_type="CAUSAL_LM",
    )  # fmt: skip
    return _load(path, **_at_load(config)), lora


def leaves_trainer_alone(config: LoraTraining) -> bool:
    """Whether the trainer is as trl made it and each rank has the whole model: not with unsloth, not with FSDP."""
    return current().library == "peft" and not is_sharded(config)


def quantises(config: LoraTraining) -> bool:
    """Whether the base is quantised to 4 bits at load. Without a GPU it is not, so that a laptop runs the same graph.

    Raises:
        ValueError: the GPU or what is installed cannot do it.
    """
    if not (isinstance(config, SftConfig) and config.load_in_4bit):
        return False
    backend = current()
    if backend.device == "cpu":
        logger.warning("sft.load_in_4bit is left out: there is no GPU, the base is trained on in %s", backend.dtype)
        return False
    if not find_spec("bitsandbytes"):
        raise ValueError("sft.load_in_4bit needs bitsandbytes, which is not installed: install it, or set it to false")
    if backend.library == "peft" and backend.dtype == "float16":  # trl makes such an adapter bfloat16
        raise ValueError("sft.load_in_4bit: this GPU has no bfloat16: use unsloth, a newer GPU, or set it to false")
    return True


def adapter_weights(trainer: Any, config: LoraTraining) -> dict[str, Any] | None:
    """Of a sharded model the whole adapter, for the first rank, put together by all; None of one that lies in each."""
    if not is_sharded(config):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model, options=options)


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
    return chat.load_tokenizer(path)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU's memory or the machine's."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Gives back what dead models and optimizers held."""
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
    if asked == "unsloth" and ranks.count() > 1:
        raise ValueError(
            f"{BACKEND_ENV}=unsloth, but it trains on one GPU and this step has {ranks.count()}: take one, or leave "
            "the variable out, and peft trains on all"
        )
    if asked or not installed or device == "cpu":
        return asked or "peft"
    if ranks.count() > 1:
        logger.info("unsloth trains on one GPU: peft trains on these %d", ranks.count())
    return "unsloth" if ranks.count() == 1 else "peft"


def _load(path: str | Path, **arguments) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, current().dtype), local_files_only=True, use_safetensors=True, **arguments
    )


def _at_load(config: LoraTraining) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a base in 4 bits (QLoRA, arXiv:2305.14314: NF4, its constants quantised too).

    Ranks with a model each load it to their GPUs: the machine's memory would have to hold it once for each of them.
    """
    import torch
    from transformers import BitsAndBytesConfig

    arguments: dict[str, Any] = {}
    if quantises(config):
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, current().dtype),
        )  # fmt: skip
    has_own_model = ranks.count() > 1 and current().device == "cuda" and not is_sharded(config)
    if arguments or has_own_model:
        arguments["device_map"] = {"": torch.cuda.current_device()}
    return arguments


def _load_with_unsloth(path: str | Path, config: LoraTraining) -> Any:
    import torch
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(path), max_seq_length=config.max_seq_length, dtype=getattr(torch, current().dtype),
        load_in_4bit=quantises(config), local_files_only=True, use_safetensors=True,
    )  # fmt: skip
    return FastLanguageModel.get_peft_model(
        model, r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, bias="none",
        target_modules=config.target_modules, random_state=config.seed,
        use_gradient_checkpointing="unsloth" if _checkpoints_gradients(config) else False,
    )  # fmt: skip


def _checkpoints_gradients(config: LoraTraining) -> bool:
    """On a CPU the memory that it saves is not short, and the time that it costs is."""
    return config.gradient_checkpointing and current().device == "cuda"
