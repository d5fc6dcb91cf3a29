"""Train a LoRA adapter on the merged model by direct preference optimization, with that model as the reference.

full model, train and eval preference rows -> adapter folder, metrics.json, training-curve HTML

The method is arXiv:2305.18290.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

from posttrain.config import DpoConfig, DpoStep, Training, parse_step
from posttrain.rows import chat
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.train import backend, ranks, stage, tracking
from posttrain.train.callbacks import CheckReference
from posttrain.train.checkpoints import Checkpoints
from posttrain.train.ends import LeaveInTime
from posttrain.train.fast.trainers import dpo_trainer
from posttrain.train.overrides import overrides


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--model", required=True, help="full model folder, no adapter")
    parser.add_argument("--train", required=True, help="training rows, JSONL: id, prompt, chosen, rejected")
    parser.add_argument("--eval", required=True, help="evaluation rows, JSONL")
    parser.add_argument("--adapter", required=True, help="output: adapter folder")
    parser.add_argument("--metrics", required=True, help="output: metrics, JSON")
    parser.add_argument("--curve", required=True, help="output: training curve, HTML")
    parser.add_argument("--logs", required=True, help="output: folder of the log history, and TensorBoard's files")
    return parser


def train(
    base: str,
    *,
    files: dict[str, str],
    outputs: dict[str, str],
    step: DpoStep,
    checkpoints: Checkpoints,
    deadline: Callable[[Training], LeaveInTime] = LeaveInTime,
) -> dict:
    """Trains, writes the outputs, and returns the metrics.

    `files` holds the paths of train and eval, `outputs` those of `stage.OUTPUTS`. `base` must be a folder with merged
    weights: of a model merged in memory, trl would use the unmerged one as the reference.

    Raises:
        ValueError: no row fits max_seq_length, or the reference is not the start model.
        Diverged: a loss or gradient norm was not finite; nothing is written.
        Unfinished: the training stopped before its deadline or on SIGTERM; a checkpoint is stored.
    """
    backend.prepare(step.training.gpu_memory_fraction)
    from trl import DPOConfig

    checkpoints.refuse_if_diverged()
    tracking_args = tracking.reporting_args(step.training.report_to, step=checkpoints.step, logs=outputs["logs"])
    tokenizer = chat.load_tokenizer(base)
    rows = stage.read_rows(files, tokenizer, step.dpo, kind="preference")

    def fit(config: DpoConfig) -> dict:
        model, peft_config = backend.load_for_training(base, config)
        with ranks.shared_folder() as folder:
            trainer = keeping_reference(on_token_ids(dpo_trainer(model, config)), checkpoints)(
                model=model,
                ref_model=None,  # the model with its adapter off
                args=DPOConfig(
                    **loss_args(config),
                    **stage.training_args(config, step.training, num_train_rows=len(rows.train), output=str(folder)),
                    **tracking_args,
                ),
                processing_class=tokenizer,
                **stage.datasets(rows, tokenizer, folder),
                peft_config=peft_config,
            )
            checks = [CheckReference(config).on_log]
            run = {"checkpoints": checkpoints, "deadline": deadline, "checks": checks}
            metrics, evaluation = stage.run(trainer, rows, step, **run)
        metrics |= reward_metrics(trainer.state.log_history, evaluation, config)
        stage.write_results(trainer, config, outputs, metrics=metrics, title="Direct preference optimization")
        return metrics

    return stage.halving_batches(fit, step.dpo, base=base)


def loss_args(config: DpoConfig) -> dict[str, Any]:
    """Returns trl's arguments of the loss and its reference."""
    return {
        "beta": config.beta,
        "loss_type": config.loss_type,
        "loss_weights": config.loss_weights,
        "disable_dropout": False,  # lora_dropout is the setting for it
        # A model that FSDP will shard is not on any GPU yet.
        "precompute_ref_log_probs": not backend.is_sharded(config),
    }


def reward_metrics(log_history: list[dict], evaluation: dict[str, float], config: DpoConfig) -> dict[str, float]:
    """Returns the metrics that only DPO has."""
    return {
        "start_loss": start_loss(log_history, config),
        "eval_loss": evaluation["eval_loss"],
        "eval_reward_accuracy": evaluation["eval_rewards/accuracies"],
        "eval_reward_margin": evaluation["eval_rewards/margins"],
        "eval_reward_chosen": evaluation["eval_rewards/chosen"],
        "eval_reward_rejected": evaluation["eval_rewards/rejected"],
        "beta_used": config.beta,
        "learning_rate": config.learning_rate,
    }


def on_token_ids(trainer_class: type) -> type:
    """Extends `DPOTrainer` so that it trains on the token ids of `stage.datasets`: trl would tokenize rows itself."""

    class OnTokenIds(trainer_class):
        @overrides(trainer_class)
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    return OnTokenIds


def keeping_reference(trainer_class: type, checkpoints: Checkpoints) -> type:
    """Extends `DPOTrainer` so that a resume reads the reference's log-probabilities from the checkpoints."""

    class KeepsReference(trainer_class):
        @overrides(trainer_class)
        def _precompute_ref_logps(self, dataset, name: str, batch_size: int):
            columns = ("ref_chosen_logps", "ref_rejected_logps")
            stored = ranks.from_first(lambda: checkpoints.read_reference(name, num_rows=len(dataset)))
            if stored is None:
                extended = self._extended(dataset, name, batch_size)
                stored = ranks.from_first(lambda: list(zip(*(extended[column] for column in columns), strict=True)))
                if ranks.is_first():
                    checkpoints.write_reference(name, stored)
                if ranks.num_nodes() == 1:
                    return extended
            for column, logprobs in zip(columns, zip(*stored, strict=True), strict=True):
                dataset = dataset.add_column(column, list(logprobs))
            return dataset

        def _extended(self, dataset, name: str, batch_size: int):
            """Returns what trl computes. It leaves that to a file of the first rank, which other nodes do not have."""
            try:
                return super()._precompute_ref_logps(dataset, name, batch_size)
            except FileNotFoundError:
                if ranks.node() == 0:
                    raise
                return None

    return KeepsReference


def start_loss(log_history: list[dict[str, float]], config: DpoConfig) -> float:
    """Returns the sigmoid loss before the first step: ln 2 if the reference is the start model.

    If other losses are mixed in, it is computed from the mean reward margin.
    """
    first = next(entry for entry in log_history if "loss" in entry)
    if config.loss_type == ["sigmoid"]:
        return first["loss"] / (config.loss_weights or [1.0])[0]
    return math.log1p(math.exp(-first["rewards/margins"]))


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    step = parse_step(DpoStep, args.config, args.overrides)
    files = {"train": args.train, "eval": args.eval}
    outputs = {name: getattr(args, name) for name in stage.OUTPUTS}

    def work(running: Running) -> dict:
        checkpoints = Checkpoints.of(running, limit=step.dpo.save_total_limit, is_elastic=step.dpo.elastic)
        return train(args.model, files=files, outputs=outputs, step=step, checkpoints=checkpoints)

    inputs = {"model": args.model, **files}
    stage.run_step(args, ["posttrain.dpo", *argv], step=step, inputs=inputs, outputs=outputs, work=work)


if __name__ == "__main__":
    main()
