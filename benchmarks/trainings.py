"""Trains with our stage and with trl on the same rows, with the same LoRA and steps, for benchmarks/sft.py and dpo.py.

model, rows, settings -> seconds, tokens a second and held-out loss of each

    python -m benchmarks.trainings sft ours MODEL ROWS SETTINGS  # one of them; SETTINGS is JSON

The clock runs from the start of the trainer's constructor, which tokenises and runs DPO's reference, to the end of the
last step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, Side, Table, in_turn, report
from posttrain.config import DpoConfig, DpoStep, SftConfig, SftStep
from posttrain.rows.formats import ANSWER_KEYS, read_jsonl, write_jsonl

DATA = ROOT / "build" / "function_calling"  # SmolLM2-135M-Instruct and rows; examples.function_calling makes it
KINDS = {"sft": "sft", "dpo": "preference"}  # training -> kind of its rows
LORA = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
COMMON = LORA | {
    "max_seq_length": 256,
    "epochs": 1,
    "gradient_accumulation": 1,
    "learning_rate": 1e-3,
    "warmup_ratio": 0.0,
    "save_steps": 1000,
    "seed": 0,
}
NOTE = (
    "SmolLM2-135M-Instruct in float32 on rows of the function-calling example, LoRA r=16 on all linear layers, "
    "learning rate 1e-3 with a cosine, and on each side the same batches in the same order: the held-out loss is that "
    "after the same steps. All else of trl's is its default: rows padded to the longest, gradient checkpointing on. "
    "Seconds run from the making of the trainer to its last step."
)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=DATA, help="folder of base and rows, made if it is not there")


def compare(kind: str, args: argparse.Namespace, *, rows: str, title: str, note: str, **settings: Any) -> None:
    """Trains in turn with our stage, with trl, and with trl without gradient checkpointing, and reports the figures."""
    if not (args.data / rows).is_file():
        prepare = [sys.executable, "-m", "examples.function_calling.prepare", "--output", str(args.data)]
        subprocess.run(prepare, cwd=ROOT, check=True)
    settings = COMMON | settings
    unlike = {"ours": {}, "trl": {}, "trl, no gradient checkpointing": {"gradient_checkpointing": False}}
    sides = {}
    for name, own in unlike.items():
        side = "ours" if name == "ours" else "trl"
        command = [kind, side, str(args.data / "base"), str(args.data / rows), json.dumps(settings | own)]
        sides[name] = Side([sys.executable, "-W", "ignore", "-m", "benchmarks.trainings", *command])
    report(args, note=f"{NOTE} {note}", tables=[Table(title, "ours", in_turn(sides, args))])


class Clock:
    """Measures the seconds from the constructor of a trainer class to the end of `train`, in all its instances."""

    def __init__(self, trainer_class: type):
        self.started = self.seconds = 0.0
        make, train = trainer_class.__init__, trainer_class.train

        def timed_make(trainer, *args, **kwargs):
            self.started = time.monotonic()
            make(trainer, *args, **kwargs)

        def timed_train(trainer, *args, **kwargs):
            output = train(trainer, *args, **kwargs)
            self.seconds = time.monotonic() - self.started
            return output

        trainer_class.__init__, trainer_class.train = timed_make, timed_train


def config_of(kind: str, settings: dict) -> SftConfig | DpoConfig:
    return SftConfig(**settings) if kind == "sft" else DpoConfig(**settings)


def with_ours(kind: str, model: str, rows: dict[str, list[dict]], settings: dict) -> float:
    """Trains as the stage does, and returns the held-out loss."""
    from posttrain import dpo, sft
    from posttrain.train.checkpoints import Checkpoints

    module, step_class = (sft, SftStep) if kind == "sft" else (dpo, DpoStep)
    with tempfile.TemporaryDirectory() as name:
        files = {part: str(Path(name, f"{part}.jsonl")) for part in rows}
        for part, path in files.items():
            write_jsonl(path, rows[part])
        outputs = {part: str(Path(name, part)) for part in ("adapter", "metrics", "curve", "logs")}
        checkpoints = Checkpoints(str(Path(name, "store")), f"train_{kind}", "f" * 64, run_id="bench", limit=1)
        step = step_class(**{kind: config_of(kind, settings)})
        return module.train(model, files=files, outputs=outputs, step=step, checkpoints=checkpoints)["eval_loss"]


def with_trl(kind: str, model: str, rows: dict[str, list[dict]], settings: dict) -> float:
    """Trains with trl's defaults except for `settings` and what a CPU needs, and returns the held-out loss."""
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = config_of(kind, {name: value for name, value in settings.items() if name != "gradient_checkpointing"})
    names = ("prompt", *ANSWER_KEYS[KINDS[kind]])
    tables = {part: Dataset.from_list([{name: row[name] for name in names} for row in rows[part]]) for part in rows}
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    trainer_class = trl.SFTTrainer if kind == "sft" else trl.DPOTrainer
    with tempfile.TemporaryDirectory() as name:
        arguments = trl_arguments(kind, config, name)
        if "gradient_checkpointing" in settings:
            arguments.gradient_checkpointing = settings["gradient_checkpointing"]
        torch.manual_seed(config.seed)
        trainer = trainer_class(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=arguments,
            train_dataset=tables["train"],
            eval_dataset=tables["eval"],
            peft_config=lora,
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]


def trl_arguments(kind: str, config: SftConfig | DpoConfig, folder: str) -> Any:
    """Returns trl's arguments with the settings of both sides; all others, as gradient checkpointing, are defaults."""
    import trl

    own = {"beta": config.beta} if kind == "dpo" else {}
    return (trl.SFTConfig if kind == "sft" else trl.DPOConfig)(
        output_dir=folder,
        seed=config.seed,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type="cosine",
        logging_steps=1,
        max_length=config.max_seq_length,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        **own,
    )


def num_tokens(model: str, kind: str, rows: list[dict]) -> int:
    """Counts the tokens of the rows, without padding; a pair has those of both sequences."""
    from posttrain.rows.chat import load_tokenizer, render

    tokenizer = load_tokenizer(model)
    return sum(len(render(tokenizer, row["prompt"], row[key])) for row in rows for key in ANSWER_KEYS[KINDS[kind]])


def main(argv: list[str]) -> None:
    kind, side, model, path, settings = argv
    options = json.loads(settings)
    rows = read_jsonl(path)
    sizes = options.pop("num_train_rows"), options.pop("num_eval_rows")
    parts = {"train": rows[: sizes[0]], "eval": rows[sizes[0] : sum(sizes)]}
    import trl

    clock = Clock(trl.SFTTrainer if kind == "sft" else trl.DPOTrainer)
    loss = (with_ours if side == "ours" else with_trl)(kind, model, parts, options)
    tokens = num_tokens(model, kind, parts["train"]) * options["epochs"]
    print(json.dumps({"seconds": clock.seconds, "tokens_per_second": tokens / clock.seconds, "held_out_loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1:])
