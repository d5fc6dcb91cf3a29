"""Decides for every model which device, precision and library run it.

model folder -> model and tokenizer, for training (with the LoRA settings) or for judging

unsloth trains where it is installed and there is one GPU, or where POSTTRAIN_BACKEND=unsloth. Plain peft trains
everywhere else, also on several GPUs.
"""

import gc
import json
import logging
import os
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from posttrain.config import DpoConfig, LoraTraining, SftConfig
from posttrain.config.placement import BACKEND_ENV
from posttrain.step import usage
from posttrain.train import memory, ranks
from posttrain.train.fast.chosen import may_take
from posttrain.weights.targets import Layout, Targets, resolve

T = TypeVar("T", bound=LoraTraining)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """The device, precision and library of this process."""

    library: Literal["peft", "unsloth"]
    device: Literal["cuda", "cpu"]
    dtype: Literal["bfloat16", "float16", "float32"]


def prepare(gpu_memory_fraction: float = 1.0) -> Backend:
    """Prepares this process for training. Call it before anything imports trl, transformers or peft."""
    _set_environment()
    backend = current()
    if backend.library == "unsloth":
        import unsloth  # noqa: F401  it patches the other three, and must do so before they are imported
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
    """Imports the libraries of every step with a model into the process from which such steps are forked.

    Imports nothing if a fork could not use it: forks do not inherit a GPU, and unsloth must come before the others.
    """
    if usage.has_gpu() or find_spec("unsloth"):
        return
    _set_environment()
    gc.disable()  # imports make no garbage, and collecting takes a sixth of their time
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    gc.freeze()  # a fork need not look for garbage in them either
    gc.enable()


def _set_environment() -> None:
    """Sets the variables that the libraries read when they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # logs are read line by line
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")


@cache
def current() -> Backend:
    """Returns the backend of this process.

    Raises:
        ValueError: POSTTRAIN_BACKEND names an unknown library, or unsloth where that cannot train.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32"  # on a CPU bfloat16 is several times slower
    if device == "cuda":
        # Counting emulation, every GPU would seem to support bfloat16.
        dtype = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Backend(library=_library(device), device=device, dtype=dtype)


def device_args(config: LoraTraining) -> dict[str, Any]:
    """Returns the trainer's arguments for this device. By default trl uses bfloat16 and gradient checkpointing."""
    backend = current()
    arguments = {
        "use_cpu": backend.device == "cpu",
        "bf16": backend.dtype == "bfloat16",
        "fp16": backend.dtype == "float16",
        "gradient_checkpointing": _checkpoints_gradients(config),
        "dataloader_pin_memory": backend.device == "cuda",
        "dataloader_num_workers": 1 if may_take("workers") else 0,
    }
    if is_sharded(config):  # the trainer's own checkpointing would gather each layer's weights a second time
        fsdp = {"activation_checkpointing": arguments["gradient_checkpointing"]}
        fsdp["state_dict_type"] = "SHARDED_STATE_DICT"  # a checkpoint gathers no whole model; see shards.py
        return arguments | {"fsdp": True, "fsdp_config": fsdp, "gradient_checkpointing": False}
    return arguments | ({"ddp_find_unused_parameters": False} if ranks.count() > 1 else {})


def is_sharded(config: LoraTraining) -> bool:
    """Tells whether FSDP shards the layers of the model across the ranks."""
    return ranks.count() > 1 and config.parallelism == "fsdp"


def load_for_training(path: str | Path, config: LoraTraining) -> tuple[Any, Any | None]:
    """Loads the model, and returns the LoRA settings for the trainer; None if the model has its adapter already.

    Seeds the random numbers that adapters start with: the trainer, which makes them, sets its own seed only later.
    """
    from transformers import set_seed

    set_seed(config.seed)
    if current().library == "unsloth":
        return _load_with_unsloth(path, config), None
    from peft import LoraConfig

    targets = targets_of(path, config)
    logger.info("adapters on %s", targets)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        target_modules=targets.modules,
        task_type="CAUSAL_LM",
    )
    return _load(path, **_at_load(path, config)), lora


def targets_of(path: str | Path, config: LoraTraining) -> Targets:
    """Returns what a training with these settings changes of the model at `path`.

    Raises:
        ValueError: the model lacks something of it, or it could not be merged.
    """
    section = "sft" if isinstance(config, SftConfig) else "dpo"
    return resolve(Layout.of(path), config.target_modules, setting=f"{section}.target_modules")


def leaves_trainer_alone(config: LoraTraining) -> bool:
    """Tells whether trl's trainer is unpatched and each rank has the whole model: not with unsloth, not with FSDP."""
    return current().library == "peft" and not is_sharded(config)


def quantises(config: LoraTraining) -> bool:
    """Tells whether the base is quantised to 4 bits at load. Without a GPU it is not, so a laptop runs the same graph.

    Raises:
        ValueError: the GPU or the installed libraries cannot do it.
    """
    if not (isinstance(config, SftConfig) and config.load_in_4bit):
        return False
    backend = current()
    if backend.device == "cpu":
        logger.warning("sft.load_in_4bit is ignored: there is no GPU, so the base stays in %s", backend.dtype)
        return False
    if not find_spec("bitsandbytes"):
        raise ValueError("sft.load_in_4bit needs bitsandbytes, which is not installed: install it, or set it to false")
    if backend.library == "peft" and backend.dtype == "float16":  # trl makes such an adapter bfloat16
        raise ValueError("sft.load_in_4bit: this GPU has no bfloat16: use unsloth, a newer GPU, or set it to false")
    return True


def adapter_weights(trainer: Any, config: LoraTraining) -> dict[str, Any] | None:
    """Gathers the whole adapter of a sharded model in the first rank; returns None if every rank has it whole."""
    if not is_sharded(config):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model, options=options)


def load_model(path: str | Path, adapter: str | Path | None = None) -> Any:
    """Loads the model for inference on its device, with `adapter` on it if there is one."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # logs are read line by line
    model = _load(path)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    return model.to(current().device).eval()


def with_checkpointing_decided(config: T, path: str | Path) -> T:
    """Decides `gradient_checkpointing: auto`, in all ranks alike: off where the model at `path` is sure to fit without.

    A CPU is short of time, not of memory, and never checkpoints.
    """
    if config.gradient_checkpointing != "auto":
        return config
    (is_needed,) = ranks.any_of(current().device == "cuda" and not _fits_without_checkpointing(config, path))
    return config.model_copy(update={"gradient_checkpointing": is_needed})


def _fits_without_checkpointing(config: LoraTraining, path: str | Path) -> bool:
    import torch

    shape = memory.Shape.of(json.loads(Path(path, "config.json").read_text(encoding="utf-8")))
    if shape is None:
        return False
    needed = memory.estimate(shape, config, num_ranks=ranks.count(), checkpointing=False).total
    free, total = torch.cuda.mem_get_info()
    return needed <= memory.USABLE * min(free, torch.cuda.get_per_process_memory_fraction() * total)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether the GPU or the machine ran out of memory."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Releases the memory of models and optimizers that are no longer used."""
    import torch

    gc.collect()
    if current().device == "cuda":
        torch.cuda.empty_cache()


def _library(device: str) -> Literal["peft", "unsloth"]:
    asked, installed = os.environ.get(BACKEND_ENV, ""), find_spec("unsloth") is not None
    if asked not in ("", "peft", "unsloth"):
        raise ValueError(f"{BACKEND_ENV}={asked!r}: set it to peft or unsloth, or unset it")
    if asked == "unsloth" and not installed:
        raise ValueError(f"{BACKEND_ENV}=unsloth: it is not installed: pip install unsloth, or unset the variable")
    if asked == "unsloth" and ranks.count() > 1:
        raise ValueError(
            f"{BACKEND_ENV}=unsloth, but it trains on one GPU and this step has {ranks.count()}: use one, or unset the "
            "variable, and peft trains on all of them"
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


def _at_load(path: str | Path, config: LoraTraining) -> dict[str, Any]:
    """Returns arguments of `from_pretrained`, for 4 bits those of QLoRA (arXiv:2305.14314: NF4, double quantisation).

    A rank with a model of its own loads it directly to its GPU, where the shortcuts of training are tried on it; main
    memory would otherwise need room for those of all ranks.
    """
    import torch
    from transformers import BitsAndBytesConfig

    arguments: dict[str, Any] = {}
    if quantises(config):
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, current().dtype),
        )
    if isinstance(config, DpoConfig):
        arguments |= _without_dropout(path)
    has_own_model = current().device == "cuda" and not is_sharded(config)
    if "quantization_config" in arguments or has_own_model:
        arguments["device_map"] = {"": torch.cuda.current_device()}
    return arguments


def _without_dropout(path: str | Path) -> dict[str, float]:
    """Returns arguments that turn off the dropout which a model's configuration asks for.

    The reference of DPO is the model itself without the adapter: with dropout the two would differ from the first step.
    """
    settings = json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
    rates = [key for key, value in settings.items() if key.endswith(("dropout", "pdrop")) and value]
    if rates:
        logger.info("dropout of the model is off: %s", ", ".join(rates))
    return dict.fromkeys(rates, 0.0)


def _load_with_unsloth(path: str | Path, config: LoraTraining) -> Any:
    import torch
    from unsloth import FastLanguageModel

    targets = targets_of(path, config)
    logger.info("adapters on %s", targets)
    model, _ = FastLanguageModel.from_pretrained(
        str(path),
        max_seq_length=config.max_seq_length,
        dtype=getattr(torch, current().dtype),
        load_in_4bit=quantises(config),
        local_files_only=True,
        use_safetensors=True,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias="none",
        target_modules=targets.modules,
        random_state=config.seed,
        use_gradient_checkpointing="unsloth" if _checkpoints_gradients(config) else False,
    )


def _checkpoints_gradients(config: LoraTraining) -> bool:
    """Tells whether to trade time for memory by gradient checkpointing; on a GPU also where `auto` is undecided."""
    return bool(config.gradient_checkpointing) and current().device == "cuda"
