"""What SFT and DPO share: which rows are trained on, the trainer's arguments, one training from start to end.

rows that fit, a trainer -> adapter folder, metrics.json, training curve, log history
"""

import argparse
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config import DpoStep, LoraTraining, SftStep, Training
from posttrain.pages import curve
from posttrain.rows.chat import render
from posttrain.rows.formats import ANSWER_KEYS, check_row, read_jsonl
from posttrain.step import frame
from posttrain.step.run import configure_logging
from posttrain.step.running import Running
from posttrain.train import backend, callbacks, ranks, torchrun, tracking
from posttrain.train.checkpoints import Checkpoints, step_of
from posttrain.train.ends import LeaveInTime
from posttrain.train.uploads import Uploads

OUTPUTS = ("adapter", "metrics", "curve", "logs")
HISTORY = "history.jsonl"  # in the folder of logs
NOT_KEPT = ("_runtime", "_per_second", "num_tokens")  # other each time, or after a resume: trl counts from there
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
T = TypeVar("T", bound=LoraTraining)

logger = logging.getLogger(__name__)


def run_step(
    args: argparse.Namespace, command: list[str], *, step: SftStep | DpoStep, inputs: dict[str, str],
    outputs: dict[str, str], work: frame.Work,
) -> None:  # fmt: skip
    """`frame.run_step` of a training stage. Where several processes train, they do the work and this one records it.

    `command` is the stage's module and its arguments, with which each of them starts.
    """

    def in_ranks(running: Running) -> dict:
        torchrun.run(command, num_ranks=step.training.num_processes, fingerprint=running.fingerprint)
        return json.loads(Path(outputs["metrics"]).read_text(encoding="utf-8"))

    if told := torchrun.orders():
        configure_logging()
        if not ranks.is_first():
            logging.disable(logging.ERROR)  # the first speaks for all, and what breaks another one that raises
        with torchrun.reporting(told):
            work(Running(args.step, args.storage_root, told.fingerprint))
            ranks.part()
        return
    if step.training.num_processes > 1:
        work = in_ranks
    frame.run_step(args, inputs=inputs, outputs=outputs, config=step.decisive, work=work)


def read_rows(
    files: dict[str, str], tokenizer: Any, *, kind: str, max_length: int
) -> tuple[dict[str, list[dict]], int]:
    """The rows of the train and the eval file that have at most `max_length` tokens, and how many have more.

    Raises:
        ValueError: a row is not of this kind (sft or preference), or none of a file fits.
    """
    rows = {name: read_jsonl(path) for name, path in files.items()}
    fitting = {name: _fitting(files[name], rows[name], tokenizer, kind=kind, max_length=max_length) for name in files}
    return fitting, sum(len(rows[name]) - len(fitting[name]) for name in files)


def _fitting(path: str, rows: list[dict], tokenizer: Any, *, kind: str, max_length: int) -> list[dict]:
    for number, row in enumerate(rows, start=1):
        try:
            check_row(row, kind)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from None
    lengths = [max(len(render(tokenizer, row["prompt"], row[key])) for key in ANSWER_KEYS[kind]) for row in rows]
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


def dataset(rows: list[dict], *, kind: str, folder: Path) -> Any:
    """What trl is given: without the ids, for which it has no use. In `folder` ranks find what another made of it."""
    from datasets import Dataset, load_from_disk

    if ranks.is_first():
        names = ("prompt", *ANSWER_KEYS[kind])
        Dataset.from_list([{name: row[name] for name in names} for row in rows]).save_to_disk(folder)
    ranks.wait()
    return load_from_disk(folder)


def training_args(config: LoraTraining, training: Training, *, num_train_rows: int, output: str) -> dict[str, Any]:
    """The trainer arguments that SFT and DPO share.

    An optimizer step takes batch_size * gradient_accumulation rows, whatever the number of ranks that share them.
    """
    batch_size = min(config.batch_size, num_train_rows)
    num_batches = math.ceil(math.ceil(num_train_rows / batch_size) / ranks.count())  # of one rank
    accumulation = min(config.gradient_accumulation // ranks.count(), num_batches)
    num_steps = math.ceil(math.ceil(num_batches / accumulation) * config.epochs)
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
        # Rounded down: the first step of a warm-up has learning rate 0, which a short training cannot spare.
        "warmup_steps": int(config.warmup_ratio * num_steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_seq_length,
        "save_strategy": "steps",
        "save_steps": min(config.save_steps, training.checkpoint_every_n_steps),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log a NaN as 0.0
        "disable_tqdm": True,
        **backend.device_args(config),
    }


def run(
    trainer: Any, *, training: Training, checkpoints: Checkpoints, rows: list[dict], checks: Sequence[Callable] = ()
) -> dict[str, float]:
    """Trains on `rows`, from the newest whole checkpoint or from the start, evaluates and gives the numbers of that.

    Raises:
        Diverged: a loss or gradient norm was not finite.
        Unfinished: the deadline is near or SIGTERM has come; a checkpoint is stored.
        whatever one of `checks` raises, which see each step's log.
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    stop, leave = callbacks.StopOnDivergence(checkpoints, rows), LeaveInTime(training)
    with Uploads(checkpoints) as uploads, leave.on_sigterm():
        trainer.remove_callback(PrinterCallback)
        callbacks.attach(
            trainer, on_log=[stop.on_log, *checks, callbacks.log_step], on_save=[uploads.on_save, leave.on_save],
            on_step_end=[leave.on_step_end],
        )  # fmt: skip
        newest = ranks.of_first(lambda: checkpoints.newest_whole(trainer.args.output_dir))
        uploads.kept_step = step_of(newest) if newest else None
        set_seed(trainer.args.seed)  # what came before must not decide which dropout there is
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    leave.leave(trainer.state, kept_step=ranks.of_first(lambda: uploads.kept_step))
    with tracking.same_run(trainer.args.report_to):
        return trainer.evaluate()


def halving_batches(fit: Callable[[T], dict], config: T) -> dict:
    """`fit(config)`; where memory runs out, once more with micro-batches of half the size and twice as many of them.

    An optimizer step takes the same rows as before, so the second goes on from the checkpoint of the first. Of several
    ranks the others stand in the midst of a step, and the stage ends.
    """
    try:
        return fit(config)
    except (RuntimeError, MemoryError) as error:
        if not backend.is_out_of_memory(error) or config.batch_size == 1:
            raise
        if ranks.count() > 1:
            smaller = _halved(config)
            raise ValueError(
                f"out of memory with batch_size {config.batch_size} on each of {ranks.count()} GPUs: set batch_size to "
                f"{smaller.batch_size} and gradient_accumulation to {smaller.gradient_accumulation}"
            ) from error
    backend.free_memory()  # here: the error held the model
    smaller = _halved(config)
    logger.warning(
        "out of memory with batch_size %d: going on with batch_size %d and gradient_accumulation %d",
        config.batch_size, smaller.batch_size, smaller.gradient_accumulation,
    )  # fmt: skip
    return fit(smaller)


def _halved(config: T) -> T:
    """An odd batch_size becomes 1: the rows of an optimizer step stay as many."""
    factor = 2 if config.batch_size % 2 == 0 else config.batch_size
    changes = {
        "batch_size": config.batch_size // factor,
        "gradient_accumulation": config.gradient_accumulation * factor,
    }
    return config.model_copy(update=changes)


def summary(state: Any, *, rows: dict[str, list[dict]], num_left_out: int) -> dict[str, Any]:
    """The metrics that SFT and DPO share, from the state of the trainer."""
    return {
        **progress(state),
        "samples_processed": round(state.epoch * len(rows["train"])),
        "num_train_rows": len(rows["train"]),
        "num_eval_rows": len(rows["eval"]),
        "num_rows_left_out": num_left_out,
    }


def progress(state: Any) -> dict[str, float]:
    """How far a training has come, and how: also of one that is not at its end, from a checkpoint's state."""
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
    """The largest of all steps, before clipping; nothing where none is finite.

    Those that are not belong to steps that the scaler of float16 skipped; any other has ended the training.
    """
    norms = [norm for entry in history if math.isfinite(norm := entry.get("grad_norm", math.nan))]
    return {"max_gradient_norm": max(norms)} if norms else {}


def write_results(
    trainer: Any, config: LoraTraining, outputs: dict[str, str], *, metrics: dict[str, Any], title: str
) -> None:
    """Writes the adapter folder, metrics.json, training curve and log history; of several ranks the first does."""
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    weights = backend.adapter_weights(trainer, config)
    if not ranks.is_first():
        return
    save_adapter(trainer.model, outputs["adapter"], weights)
    Path(outputs["metrics"]).write_text(text, encoding="utf-8")
    curve.write_curve(trainer.state.log_history, outputs["curve"], title=title)
    Path(outputs["logs"]).mkdir(parents=True, exist_ok=True)
    Path(outputs["logs"], HISTORY).write_text(history(trainer.state.log_history), encoding="utf-8")


def history(entries: list[dict]) -> str:
    """The trainer's log as JSON lines: losses and what belongs to them, the same however often it was killed."""
    kept = [entry for entry in entries if "loss" in entry or "eval_loss" in entry]
    timeless = [{key: value for key, value in entry.items() if not key.endswith(NOT_KEPT)} for entry in kept]
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in timeless)


def save_adapter(model: Any, path: str | Path, weights: dict[str, Any] | None = None) -> None:
    """Writes the adapter folder: the same weights always give the same bytes, whatever the process and its folders.

    `weights` are given where the model itself holds only a part of them.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    # `selected_adapters`: trl may add a frozen reference adapter, which is no result.
    model.save_pretrained(partial, selected_adapters=["default"], state_dict=weights)
    for file in partial.iterdir():
        if file.name not in ADAPTER_FILES:
            file.unlink()
    settings = json.loads((partial / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "base"  # the folder it was loaded from means nothing elsewhere
    if isinstance(settings["target_modules"], list):
        settings["target_modules"] = sorted(settings["target_modules"])  # peft writes a set: its order is random
    (partial / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
