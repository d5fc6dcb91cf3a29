"""Trains for a few steps with our stage, with trl or with unsloth, for benchmarks/gpu.py; the first steps only warm up.

side, settings -> JSON on the last line: tokens or pairs a second, seconds of a step, peak memory of the GPU, and the
shortcuts that our stage took

    python -m benchmarks.gpu_side ours '{"kind": "sft", "shape": "tiny", ...}'

The model has random weights, made on the GPU. The clock runs from the end of the last step that warms up to the end of
the last one, with all that lies between, such as checkpoints. A batch that does not fit is halved, on every side.
"""

import json
import logging
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import gpu_rows
from benchmarks.trainings import LORA
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows.formats import ANSWER_KEYS, write_jsonl
from posttrain.train import backend

NUM_EVAL_ROWS = 2
NEVER = 100_000  # steps between checkpoints


@dataclass(frozen=True)
class Settings:
    """One training."""

    kind: str  # sft or dpo
    shape: str
    lengths: str
    max_length: int
    batch_size: int
    accumulation: int
    steps: int
    warm_up: int
    save_steps: int = NEVER
    packing: bool = False  # trl's; its attention is then flex_attention
    liger: bool = False  # trl's use_liger_kernel
    num_rows: int = 0  # 0: as many as the steps take; packed, a sequence takes many

    @property
    def row_kind(self) -> str:
        return "sft" if self.kind == "sft" else "preference"

    def rows(self) -> dict[str, list[dict]]:
        num_rows = self.num_rows or self.batch_size * self.accumulation * self.steps
        sizes = {"train": num_rows, "eval": NUM_EVAL_ROWS}
        return {
            part: gpu_rows.make_rows(self.row_kind, self.lengths, size, max_length=self.max_length, seed=seed)
            for seed, (part, size) in enumerate(sizes.items())
        }


class Clock:
    """Measures the steps after the warm-up of the trainings of this process; the last training counts."""

    def __init__(self, warm_up: int):
        self.warm_up = warm_up

    def watch(self) -> None:
        """Has every trainer that trains from now on report its steps and its batches."""
        from transformers import Trainer, TrainerCallback

        clock, train, training_step = self, Trainer.train, Trainer.training_step

        class AtSteps(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == clock.warm_up:
                    clock.start()
                elif state.global_step == state.max_steps:
                    clock.stop(state.global_step)

        def watched_train(trainer, *args, **kwargs):
            trainer.add_callback(AtSteps())
            clock.batch_size = trainer.args.per_device_train_batch_size
            clock.tokens = clock.sequences = 0
            return train(trainer, *args, **kwargs)

        def counted_step(trainer, model, inputs, *args, **kwargs):
            mask = inputs.get("attention_mask")
            clock.tokens += inputs["input_ids"].numel() if mask is None else mask.sum()
            clock.sequences += len(inputs["input_ids"])
            return training_step(trainer, model, inputs, *args, **kwargs)

        Trainer.train, Trainer.training_step = watched_train, counted_step

    def start(self) -> None:
        import torch

        _synchronize()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.tokens = self.sequences = 0
        self.started = time.monotonic()

    def stop(self, step: int) -> None:
        _synchronize()
        self.seconds, self.steps = time.monotonic() - self.started, step - self.warm_up

    def numbers(self, kind: str) -> dict[str, float]:
        import torch

        per_second = {"tokens_per_second": int(self.tokens) / self.seconds}
        if kind == "dpo":  # a pair is two sequences
            per_second = {"pairs_per_second": self.sequences / 2 / self.seconds} | per_second
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        step = {"seconds": self.seconds / self.steps, "micro_batch": self.batch_size, "peak_gpu_gb": peak}
        return per_second | step


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_random_weights() -> None:
    """Has `from_pretrained` read the configuration alone, and make the weights where the model is to run."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def from_pretrained(path, *_, dtype, attn_implementation=None, **__):
        config = AutoConfig.from_pretrained(path)
        chosen = {"attn_implementation": attn_implementation} if attn_implementation else {}
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)

    AutoModelForCausalLM.from_pretrained = from_pretrained


def with_ours(settings: Settings, model: Path, folder: Path) -> None:
    """Trains as the stage does: the function that it calls, with its files, its checkpoints and its outputs."""
    from posttrain import dpo, sft
    from posttrain.train.checkpoints import Checkpoints

    module, step_class = (sft, SftStep) if settings.kind == "sft" else (dpo, DpoStep)
    files = {part: str(folder / f"{part}.jsonl") for part in ("train", "eval")}
    for part, rows in settings.rows().items():
        write_jsonl(files[part], rows)
    outputs = {name: str(folder / name) for name in ("adapter", "metrics", "curve", "logs")}
    training = {"gpu_memory_fraction": 1.0, "checkpoint_every_n_steps": NEVER}
    step = step_class(**{settings.kind: config_of(settings), "training": training})
    checkpoints = Checkpoints(str(folder / "store"), "train", "f" * 64, run_id="bench", limit=1)
    module.train(str(model), files=files, outputs=outputs, step=step, checkpoints=checkpoints)


class Shortcuts(logging.Handler):
    """Keeps what our stage logs of its shortcuts, and prints why others are left out."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.taken = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("shortcuts: "):
            self.taken = record.getMessage().removeprefix("shortcuts: ")
        elif record.levelno >= logging.WARNING:
            print(record.getMessage(), file=sys.stderr, flush=True)


def config_of(settings: Settings) -> SftConfig | DpoConfig:
    return (SftConfig if settings.kind == "sft" else DpoConfig)(
        **LORA,
        max_seq_length=settings.max_length,
        epochs=1,
        batch_size=settings.batch_size,
        gradient_accumulation=settings.accumulation,
        learning_rate=1e-5,
        warmup_ratio=0.0,
        save_steps=settings.save_steps,
        gradient_checkpointing=False,
        seed=0,
    )


def with_trl(settings: Settings, model: Path, folder: Path, *, by_unsloth: bool = False) -> None:
    """Trains with trl's trainer, or with the one that unsloth puts in its place."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = Dataset.from_list(
        [{name: row[name] for name in ("prompt", *ANSWER_KEYS[settings.row_kind])} for row in settings.rows()["train"]]
    )
    dtype = getattr(torch, backend.current().dtype)
    lora = LoraConfig(**_for_peft(LORA), task_type="CAUSAL_LM")
    attention = "flex_attention" if settings.packing and torch.cuda.is_available() else "sdpa"
    if by_unsloth:
        loaded, lora = _load_with_unsloth(model, settings, dtype), None
    else:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation=attention)
    trainer = (trl.SFTTrainer if settings.kind == "sft" else trl.DPOTrainer)(
        model=loaded,
        args=trl_arguments(settings, folder),
        train_dataset=rows,
        peft_config=lora,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()


def _for_peft(settings: dict) -> dict:
    """peft calls the rank r."""
    return {"r" if name == "lora_r" else name: value for name, value in settings.items()}


def _load_with_unsloth(model: Path, settings: Settings, dtype: Any) -> Any:
    from unsloth import FastLanguageModel

    loaded, _ = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=settings.max_length, dtype=dtype, load_in_4bit=False, local_files_only=True
    )
    return FastLanguageModel.get_peft_model(
        loaded, **_for_peft(LORA), bias="none", random_state=0, use_gradient_checkpointing=False
    )


def trl_arguments(settings: Settings, folder: Path) -> Any:
    """Returns trl's arguments: its best for speed where this model and GPU allow them."""
    import trl

    device = backend.current()
    kinds = {
        "sft": {"packing": settings.packing, "completion_only_loss": True},
        "dpo": {"precompute_ref_log_probs": True, "beta": 0.1},
    }
    return (trl.SFTConfig if settings.kind == "sft" else trl.DPOConfig)(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=1e-5,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        max_length=settings.max_length,
        bf16=device.dtype == "bfloat16",
        use_cpu=device.device == "cpu",
        gradient_checkpointing=False,
        use_liger_kernel=settings.liger and device.device == "cuda",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **kinds[settings.kind],
    )


def halving(train: Any, settings: Settings, model: Path, folder: Path) -> None:
    """Trains once more with half the micro-batch if memory runs out; our stage does so itself."""
    try:
        return train(settings, model, folder)
    except RuntimeError as error:
        if not backend.is_out_of_memory(error) or settings.batch_size == 1:
            raise
    backend.free_memory()
    smaller = replace(settings, batch_size=settings.batch_size // 2, accumulation=settings.accumulation * 2)
    return halving(train, smaller, model, folder)


def main(argv: list[str]) -> None:
    side, settings = argv[0], Settings(**json.loads(argv[1]))
    clock, shortcuts = Clock(settings.warm_up), Shortcuts()
    logging.getLogger("posttrain").setLevel(logging.INFO)
    logging.getLogger("posttrain").addHandler(shortcuts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "compiled"))
        backend.prepare()
        model = gpu_rows.write_model(folder / "model", settings.shape)
        with_random_weights()
        clock.watch()
        if side == "ours":
            with_ours(settings, model, folder)
        else:
            halving(lambda *a: with_trl(*a, by_unsloth=side == "unsloth"), settings, model, folder)
    print(json.dumps(clock.numbers(settings.kind) | {"shortcuts": shortcuts.taken}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
