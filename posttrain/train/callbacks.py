"""Callbacks of the trainer: a log line for each step, and an error at the first NaN or at a wrong reference.

trainer, handlers of its events -> the trainer calls them
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.config import DpoConfig
from posttrain.train import ranks
from posttrain.train.checkpoints import Checkpoints, Diverged
from posttrain.train.overrides import require

MAX_ROW_IDS = 8  # in one message
MAX_REWARD_AT_START = 0.02  # nats; the loss of the first step is then within 0.01 of its value

logger = logging.getLogger(__name__)


def attach(
    trainer: Any, *, on_log: Sequence[Callable], on_save: Sequence[Callable], on_step_end: Sequence[Callable]
) -> None:
    """Makes the trainer call these handlers.

    `on_log` gets (args, state, logs, dataloader), `on_save` (args, state), and `on_step_end` (args, state, control), on
    which it may set that the trainer saves or stops.
    """
    from transformers import TrainerCallback

    class Events(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            keep_buckets(trainer.model_wrapped)

        def on_log(self, args, state, control, logs, train_dataloader=None, **kwargs):
            for handle in on_log:
                handle(args, state, logs, train_dataloader)

        def on_save(self, args, state, control, **kwargs):
            for handle in on_save:
                handle(args, state)

        def on_step_end(self, args, state, control, **kwargs):
            for handle in on_step_end:
                handle(args, state, control)

    trainer.add_callback(Events())


def keep_buckets(model: Any) -> None:
    """Puts DDP's buckets into their final order before the first step, if `model` is DDP's.

    DDP itself does so after the first step of a process, and orders them as the gradients came. With more than two
    ranks the last bits of a sum depend on its place in a bucket, so that the step after a resume would differ.
    """
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(model, DistributedDataParallel):
        require(type(model.reducer), "_push_all_rebuilt_params", library="torch")
        model.reducer._push_all_rebuilt_params()
        model.reducer._rebuild_buckets()


def log_step(args, state, logs, dataloader) -> None:
    """Logs one line per optimizer step."""
    if "loss" in logs:
        logger.info("step %d/%d loss %.4f", state.global_step, state.max_steps, logs["loss"])


class StopOnDivergence:
    """Raises Diverged at the first loss or gradient norm that is not finite, before anything of that step is saved."""

    def __init__(self, checkpoints: Checkpoints, rows: list[dict]):
        self.checkpoints = checkpoints
        self.row_ids = [row["id"] for row in rows]

    def on_log(self, args, state, logs, dataloader) -> None:
        # The fp16 loss scaler skips a step whose gradient overflows, and lowers its scale: that is no divergence.
        names = ("loss", "eval_loss") if args.fp16 else ("loss", "eval_loss", "grad_norm")
        broken = [f"{name} {logs[name]}" for name in names if not math.isfinite(logs.get(name, 0.0))]
        if not broken:
            return
        rows = self.row_ids_of_step(args, state, dataloader) if "loss" in logs else []
        named = f", rows {', '.join(rows[:MAX_ROW_IDS])}{', ...' if len(rows) > MAX_ROW_IDS else ''}" if rows else ""
        message = (
            f"diverged at step {state.global_step}/{state.max_steps}: {', '.join(broken)}, learning rate "
            f"{logs.get('learning_rate', args.learning_rate):.3g}{named}: lower learning_rate, or look at these rows"
        )
        ranks.from_first(lambda: self.checkpoints.write_divergence(message, step=state.global_step, row_ids=rows))
        raise Diverged(message)

    def row_ids_of_step(self, args, state, dataloader) -> list[str]:
        """Returns the ids of the rows that all ranks used in the last step, by drawing the epoch's batches again.

        An epoch that does not divide into whole steps ends with a step that uses some of its first batches once more.
        """
        num_batches = args.gradient_accumulation_steps
        epoch, step = divmod(state.global_step - 1, math.ceil(len(dataloader) / num_batches))
        dataloader.set_epoch(epoch)
        batches = list(dataloader.batch_sampler)[step * num_batches : (step + 1) * num_batches]
        rows = [self.row_ids[index] for batch in batches for index in batch]
        return list(dict.fromkeys(row for rows in ranks.gather(rows) for row in rows))


class CheckReference:
    """Raises ValueError at the first step of DPO unless the reference is the start model.

    No weight has changed when the first loss is computed, so every reward is 0 and the sigmoid loss is ln 2.
    """

    def __init__(self, config: DpoConfig):
        self.config = config

    def on_log(self, args, state, logs, dataloader) -> None:
        if state.global_step != 1 or "loss" not in logs:
            return
        rewards = {name: logs[f"rewards/{name}"] for name in ("chosen", "rejected")}
        expected = self.expected_loss()
        is_start = all(abs(reward) <= MAX_REWARD_AT_START for reward in rewards.values())
        if not is_start or (expected is not None and not abs(logs["loss"] - expected) <= 0.01):
            measured = f"loss {logs['loss']:.4f} (expected {expected}), rewards {rewards} (expected 0)"
            raise ValueError(
                f"first step of DPO: {measured}: the reference is not the start model: "
                "give the merged model's folder, and set the dropout in its config.json to 0"
            )

    def expected_loss(self) -> float | None:
        """Returns the weighted sum of the losses at reward 0, or None if it depends on the model, as with `sft`."""
        starts = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 1 / (2 * self.config.beta) ** 2}
        if not set(self.config.loss_type) <= set(starts):
            return None
        weights = self.config.loss_weights or [1.0] * len(self.config.loss_type)
        return sum(weight * starts[name] for name, weight in zip(self.config.loss_type, weights, strict=True))
