"""The parts that SFT and DPO share: choosing rows, the trainer's arguments, one training from start to end.

rows that fit, a trainer -> adapter folder, metrics.json, training curve, log history
"""

import argparse
import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from pathlib import Path
from typing import Any, TypeVar

from posttrain import storage
from posttrain.config import HALVINGS_ENV, DpoStep, LoraTraining, SftStep, Training
from posttrain.pages import curve
from posttrain.rows import chat
from posttrain.rows.formats import ANSWER_KEYS, check_row, read_jsonl
from posttrain.step import frame
from posttrain.step.run import configure_logging
from posttrain.step.running import Running
from posttrain.train import backend, best, callbacks, ranks, torchrun, tracking
from posttrain.train.checkpoints import Checkpoints, step_of
from posttrain.train.ends import LeaveInTime
from posttrain.train.evaluations import HeldOutLoss
from posttrain.train.uploads import Uploads

OUTPUTS = ("adapter", "metrics", "curve", "logs")
HISTORY = "history.jsonl"  # in the folder of logs
VOLATILE = ("_runtime", "_per_second", "num_tokens")  # timings, and what trl counts anew after a resume
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
T = TypeVar("T", bound=LoraTraining)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of a training, none of them longer than max_seq_length."""

    kind: str  # sft or preference
    train: list[dict]
    eval: list[dict]  # held out
    aside: list[dict]  # training rows to judge checkpoints by; none unless the best one is kept
    num_left_out: int  # rows that are longer


def run_step(
    args: argparse.Namespace,
    command: list[str],
    *,
    step: SftStep | DpoStep,
    inputs: dict[str, str],
    outputs: dict[str, str],
    work: frame.Work,
) -> None:
    """Runs a training stage by `frame.run_step`. If several processes train, this one starts and records them.

    `command` is the stage's module and arguments, with which each rank is started.
    """

    def in_ranks(running: Running) -> dict:
        torchrun.run(command, num_ranks=step.training.num_processes, fingerprint=running.fingerprint)
        return json.loads(Path(outputs["metrics"]).read_text(encoding="utf-8"))

    if orders := torchrun.read_orders():
        configure_logging()
        if not ranks.is_first():
            logging.disable(logging.ERROR)  # the first rank logs for all; an error in any other is raised, not logged
        with torchrun.reporting(orders):
            work(Running(args.step, args.storage_root, orders.fingerprint))
            ranks.leave()
        return
    if step.training.num_processes > 1:
        work = in_ranks
    frame.run_step(args, inputs=inputs, outputs=outputs, config=step.decisive, work=work)


def read_rows(files: dict[str, str], tokenizer: Any, config: LoraTraining, *, kind: str) -> Rows:
    """Reads the files train and eval, and sets training rows aside if the best checkpoint is to be kept.

    Raises:
        ValueError: a row is not of this kind (sft or preference), or no row of a file fits max_seq_length.
    """
    rows = {name: read_jsonl(path) for name, path in files.items()}
    limits = {"kind": kind, "max_length": config.max_seq_length}
    fitting = {name: _fitting(files[name], rows[name], tokenizer, **limits) for name in files}
    num_left_out = sum(len(rows[name]) - len(fitting[name]) for name in files)
    train, aside = best.set_aside(fitting["train"], config.keep_best)
    return Rows(kind, train, fitting["eval"], aside, num_left_out)


def _fitting(path: str, rows: list[dict], tokenizer: Any, *, kind: str, max_length: int) -> list[dict]:
    for number, row in enumerate(rows, start=1):
        try:
            check_row(row, kind)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
    lengths = [chat.num_tokens(tokenizer, row) for row in rows]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    if not kept:
        shortest = f", the shortest has {min(lengths)} tokens" if rows else ""
        raise ValueError(
            f"{path}: none of {len(rows)} rows fits max_seq_length {max_length}{shortest}: "
            "raise max_seq_length or shorten the rows"
        )
    if len(kept) < len(rows):
        num_long = len(rows) - len(kept)
        logger.warning("%s: %d of %d rows left out: longer than %d tokens", path, num_long, len(rows), max_length)
    return kept


def datasets(rows: Rows, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Returns the trainer's arguments with its data sets, below `folder`."""
    columns = {"sft": _sft_tokens, "preference": _pair_tokens}[rows.kind]
    sides = {"train_dataset": rows.train, "eval_dataset": rows.eval}
    return {name: _dataset(side, partial(columns, tokenizer), folder / name) for name, side in sides.items()}


def _dataset(rows: list[dict], columns: Callable[[dict], dict[str, list[int]]], folder: Path) -> Any:
    """Makes trl's data set of `rows` as token ids in `folder`; a node's ranks share what trl derives from it there."""
    from datasets import Dataset, load_from_disk

    if ranks.is_first_of_node():
        Dataset.from_list([columns(row) for row in rows]).save_to_disk(folder)
    ranks.wait()
    return load_from_disk(folder)


def _sft_tokens(tokenizer: Any, row: dict) -> dict[str, list[int]]:
    """Returns the columns that trl and unsloth take for a row that is tokenized already; -100 counts in no loss."""
    prompt, answer = chat.split(tokenizer, row["prompt"], row["completion"])
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def _pair_tokens(tokenizer: Any, row: dict) -> dict[str, list[int]]:
    """Returns the columns of trl's collator for pairs. Both answers follow the same prompt."""
    pair = [chat.split(tokenizer, row["prompt"], row[key]) for key in ANSWER_KEYS["preference"]]
    (prompt, chosen), (other, rejected) = pair
    num_shared = len(commonprefix([prompt, other]))
    return {
        "prompt_ids": prompt[:num_shared],
        "chosen_ids": prompt[num_shared:] + chosen,
        "rejected_ids": other[num_shared:] + rejected,
    }


def training_args(config: LoraTraining, training: Training, *, num_train_rows: int, output: str) -> dict[str, Any]:
    """Returns the trainer's arguments that SFT and DPO share.

    An optimizer step uses batch_size * gradient_accumulation rows, which any number of ranks divide among them.
    """
    batch_size, accumulation, num_steps = schedule(config, num_train_rows=num_train_rows, num_ranks=ranks.count())
    return {
        "output_dir": output,
        "seed": config.seed,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch_fused",  # where unsloth patches trl on a GPU, its default is an AdamW of 8 bits
        # Rounded down: the first step of a warm-up has learning rate 0, a step that a short training cannot waste.
        "warmup_steps": int(config.warmup_ratio * num_steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_seq_length,
        "save_strategy": "steps",
        "save_steps": min(config.save_steps, training.checkpoint_every_n_steps),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the filter logs a NaN as 0.0
        "disable_tqdm": True,
        **backend.device_args(config),
    }


def schedule(config: LoraTraining, *, num_train_rows: int, num_ranks: int = 1) -> tuple[int, int, int]:
    """Returns the micro-batch, the number of them that each rank accumulates, and the number of optimizer steps."""
    batch_size = min(config.batch_size, num_train_rows)
    num_batches = math.ceil(math.ceil(num_train_rows / batch_size) / num_ranks)  # of one rank
    accumulation = min(config.gradient_accumulation // num_ranks, num_batches)
    return batch_size, accumulation, math.ceil(math.ceil(num_batches / accumulation) * config.epochs)


def run(
    trainer: Any,
    rows: Rows,
    step: SftStep | DpoStep,
    *,
    checkpoints: Checkpoints,
    deadline: Callable[[Training], LeaveInTime],
    checks: Sequence[Callable] = (),
) -> tuple[dict[str, Any], dict[str, float]]:
    """Trains from the newest whole checkpoint or from the start, and evaluates the adapter that is kept.

    `checks` are handlers of each step's log that may raise errors of their own.

    Returns:
        The metrics that SFT and DPO share, and those of the evaluation.

    Raises:
        Diverged: a loss or gradient norm was not finite.
        Unfinished: the training stopped before its deadline or on SIGTERM; a checkpoint is stored.
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    divergence, held_out = callbacks.StopOnDivergence(checkpoints, rows.train), HeldOutLoss(trainer)
    until = deadline(step.training)
    keeper = best.BestCheckpoint(trainer, rows.aside, step.decisive, checkpoints) if rows.aside else None
    with Uploads(checkpoints) as uploads, until.on_sigterm():
        trainer.remove_callback(PrinterCallback)
        callbacks.attach(
            trainer,
            on_log=[divergence.on_log, *checks, callbacks.log_step],
            on_save=[uploads.on_save, until.on_save],
            on_step_end=[*([keeper.on_step_end] if keeper else []), until.on_step_end, held_out.on_step_end],
        )
        newest = _fetch_newest(checkpoints, trainer.args.output_dir)
        uploads.stored_step = step_of(newest) if newest else None
        set_seed(trainer.args.seed)  # dropout must not depend on how many random numbers were drawn before
        with held_out.during_training():
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    until.raise_if_stopped(trainer.state, stored_step=uploads.newest_step())
    if keeper:
        keeper.restore()
    with tracking.same_run(trainer.args.report_to):
        evaluation = trainer.evaluate()
    return summary(trainer.state, rows) | (keeper.metrics if keeper else {}), evaluation


def _fetch_newest(checkpoints: Checkpoints, path: str) -> Path | None:
    """Downloads the newest whole checkpoint, which the first rank chooses, to a folder below `path` on each node."""

    def choose() -> str | None:
        newest = checkpoints.fetch_newest(path)
        return newest and newest.relative_to(path).as_posix()

    folder = ranks.from_first(choose)
    if folder and ranks.is_first_of_node() and not ranks.is_first():
        checkpoints.fetch(folder, path)
    ranks.wait()
    return Path(path, folder) if folder else None


def halving_batches(fit: Callable[[T], dict], config: T, *, base: str | Path) -> dict:
    """Calls `fit(config)`, and if memory runs out once more with half the micro-batch and twice the accumulation.

    Before that, gradient checkpointing is turned on if `auto` had it off. An optimizer step still uses the same rows,
    so a later attempt resumes from the checkpoint of the one before. With several ranks the others are in the middle of
    a step, so the process ends with an error that names the settings; the container's next attempt starts with half the
    micro-batch.
    """
    for _ in range(int(os.environ.get(HALVINGS_ENV, "0"))):
        config = _halved(config)
    attempts = _attempts(config, base)
    for config, smaller in itertools.zip_longest(attempts, attempts[1:]):
        try:
            return fit(config)
        except (RuntimeError, MemoryError) as error:
            if not backend.is_out_of_memory(error) or smaller is None:
                raise
            changes = {name: value for name, value in smaller if value != getattr(config, name)}
            if ranks.count() > 1:
                settings = " and ".join(f"{name} to {json.dumps(value)}" for name, value in changes.items())
                raise MemoryError(
                    f"out of memory with batch_size {config.batch_size} on each of {ranks.count()} GPUs: set {settings}"
                ) from error
        backend.free_memory()  # not before: the error referred to the model
        settings = " and ".join(f"{name} {json.dumps(value)}" for name, value in changes.items())
        logger.warning("out of memory with batch_size %d: continuing with %s", config.batch_size, settings)
    raise AssertionError("there is at least one attempt, and the last one returns or raises")


def _attempts(config: T, base: str | Path) -> list[T]:
    """Lists the configurations to try, each in less memory than the one before."""
    attempts = [backend.with_checkpointing_decided(config, base)]
    was_off = config.gradient_checkpointing == "auto" and not attempts[0].gradient_checkpointing
    if was_off and backend.current().device == "cuda":
        attempts.append(config.model_copy(update={"gradient_checkpointing": True}))
    if config.batch_size > 1:
        attempts.append(_halved(attempts[-1]))
    return attempts


def _halved(config: T) -> T:
    """Halves batch_size, or sets it to 1 if it is odd, so that an optimizer step keeps its number of rows."""
    if config.batch_size == 1:
        return config
    factor = 2 if config.batch_size % 2 == 0 else config.batch_size
    changes = {
        "batch_size": config.batch_size // factor,
        "gradient_accumulation": config.gradient_accumulation * factor,
    }
    return config.model_copy(update=changes)


def summary(state: Any, rows: Rows) -> dict[str, Any]:
    """Computes the metrics that SFT and DPO share from the trainer's state."""
    return {
        **progress(state),
        "samples_processed": round(state.epoch * len(rows.train)),
        "num_train_rows": len(rows.train),
        "num_eval_rows": len(rows.eval),
        "num_rows_left_out": rows.num_left_out,
    }


def progress(state: Any) -> dict[str, float]:
    """Computes the metrics of a training so far; a checkpoint's state will do."""
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    last = losses[-max(3, len(losses) // 10) :]  # trl's own train_loss is wrong after a resume
    return {
        **_max_gradient_norm(state.log_history),
        "final_loss": sum(last) / len(last),
        "first_loss": losses[0],
        "total_steps": state.global_step,
        "epochs_completed": state.epoch,
    }


def _max_gradient_norm(history: list[dict]) -> dict[str, float]:
    """Returns the largest finite gradient norm of all steps, before clipping, if there is one.

    Non-finite norms come from steps that the fp16 loss scaler skipped; any other would have ended the training.
    """
    norms = [norm for entry in history if math.isfinite(norm := entry.get("grad_norm", math.nan))]
    return {"max_gradient_norm": max(norms)} if norms else {}


def write_results(
    trainer: Any, config: LoraTraining, outputs: dict[str, str], *, metrics: dict[str, Any], title: str
) -> None:
    """Writes the adapter folder, metrics.json, training curve and log history, in the first rank."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    weights = backend.adapter_weights(trainer, config)
    if not ranks.is_first():
        return
    save_adapter(trainer.model, outputs["adapter"], weights)
    storage.write_text(outputs["metrics"], text)
    curve.write_curve(trainer.state.log_history, outputs["curve"], title=title)
    Path(outputs["logs"]).mkdir(parents=True, exist_ok=True)
    storage.write_text(Path(outputs["logs"], HISTORY), history(trainer.state.log_history))


def history(entries: list[dict]) -> str:
    """Formats the losses of the trainer's log as JSON lines, which do not depend on how often it was resumed."""
    with_loss = [entry for entry in entries if entry.keys() & {"loss", "eval_loss", best.ACCURACY}]
    stable = [{key: value for key, value in entry.items() if not key.endswith(VOLATILE)} for entry in with_loss]
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in stable)


def save_adapter(model: Any, path: str | Path, weights: dict[str, Any] | None = None) -> None:
    """Writes the adapter folder, whose bytes depend on the weights alone, not on the process or its folders.

    Pass `weights` if the model itself has only a shard of them.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # `selected_adapters` leaves out a frozen reference adapter, which trl may have added.
    model.save_pretrained(partial, selected_adapters=["default"], state_dict=weights)
    for file in partial.iterdir():
        if file.name not in ADAPTER_FILES:
            file.unlink()
    settings = json.loads((partial / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "base"  # not the local folder, which means nothing elsewhere
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = sorted(settings["target_modules"])  # peft writes a set, in random order
    storage.write_text(partial / ADAPTER_FILES[0], json.dumps(settings, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
