"""Train a LoRA adapter on the base model by supervised fine-tuning, with the loss on completions only.

base model, train and eval rows -> adapter folder, metrics.json, training-curve HTML
"""

import argparse
import sys
from collections.abc import Callable

from posttrain.config import SftConfig, SftStep, Training, parse_step
from posttrain.rows import chat
from posttrain.step import kfp_io
from posttrain.step.running import Running
from posttrain.train import backend, ranks, stage, tracking
from posttrain.train.checkpoints import Checkpoints
from posttrain.train.ends import LeaveInTime
from posttrain.train.fast.trainers import sft_trainer


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--base", required=True, help="base model folder")
    parser.add_argument("--train", required=True, help="training rows, JSONL: id, prompt, completion")
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
    step: SftStep,
    checkpoints: Checkpoints,
    deadline: Callable[[Training], LeaveInTime] = LeaveInTime,
) -> dict:
    """Trains, writes the outputs, and returns the metrics.

    `files` holds the paths of train and eval, `outputs` those of `stage.OUTPUTS`.

    Raises:
        ValueError: no row fits max_seq_length.
        Diverged: a loss or gradient norm was not finite; nothing is written.
        Unfinished: the training stopped before its deadline or on SIGTERM; a checkpoint is stored.
    """
    backend.prepare(step.training.gpu_memory_fraction)
    from trl import SFTConfig

    checkpoints.refuse_if_diverged()
    tracking_args = tracking.reporting_args(step.training.report_to, step=checkpoints.step, logs=outputs["logs"])
    tokenizer = chat.load_tokenizer(base)
    rows = stage.read_rows(files, tokenizer, step.sft, kind="sft")

    def fit(config: SftConfig) -> dict:
        model, peft_config = backend.load_for_training(base, config)
        with ranks.shared_folder() as folder:
            trainer = sft_trainer(model, config)(
                model=model,
                args=SFTConfig(
                    completion_only_loss=True,
                    **stage.training_args(config, step.training, num_train_rows=len(rows.train), output=str(folder)),
                    **tracking_args,
                ),
                processing_class=tokenizer,
                **stage.datasets(rows, tokenizer, folder),
                peft_config=peft_config,
            )
            metrics, evaluation = stage.run(trainer, rows, step, checkpoints=checkpoints, deadline=deadline)
        metrics |= {
            "eval_loss": evaluation["eval_loss"],
            "eval_token_accuracy": evaluation["eval_mean_token_accuracy"],
            "learning_rate": config.learning_rate,
        }
        stage.write_results(trainer, config, outputs, metrics=metrics, title="Supervised fine-tuning")
        return metrics

    return stage.halving_batches(fit, step.sft, base=base)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    step = parse_step(SftStep, args.config, args.overrides)
    files = {"train": args.train, "eval": args.eval}
    outputs = {name: getattr(args, name) for name in stage.OUTPUTS}

    def work(running: Running) -> dict:
        checkpoints = Checkpoints.of(running, limit=step.sft.save_total_limit, is_elastic=step.sft.elastic)
        return train(args.base, files=files, outputs=outputs, step=step, checkpoints=checkpoints)

    inputs = {"base": args.base, **files}
    stage.run_step(args, ["posttrain.sft", *argv], step=step, inputs=inputs, outputs=outputs, work=work)


if __name__ == "__main__":
    main()
