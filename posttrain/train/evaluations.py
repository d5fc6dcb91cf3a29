"""Measures the held-out loss a few times during a training, so that its curve shows where learning turns to learning
by heart. The training is the same, bit for bit, with and without.

trainer -> entries `eval_loss` and its like in the trainer's log
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUM_BEFORE_END = 3  # the end has an evaluation of its own, on all held-out rows
MAX_COST = 0.05  # of the training's time
COST_OF_ROW = 0.5  # of a held-out row, which has no backward pass, in training rows
MIN_ROWS = 4
MIN_STEPS = 8  # fewer have no course to show


def affordable_rows(num_train_rows: int, num_eval_rows: int, *, epochs: float) -> int:
    """Returns how many held-out rows each of these evaluations has."""
    affordable = int(MAX_COST * num_train_rows * epochs / (NUM_BEFORE_END * COST_OF_ROW))
    return min(affordable, num_eval_rows)


def steps_of(max_steps: int, *, num_rows: int) -> set[int]:
    """Returns the optimizer steps after which a training evaluates on `num_rows` rows."""
    if num_rows < MIN_ROWS or max_steps < MIN_STEPS:
        return set()
    return {max_steps * part // (NUM_BEFORE_END + 1) for part in range(1, NUM_BEFORE_END + 1)}


class HeldOutLoss:
    """Has the trainer evaluate at evenly spaced steps, on as many held-out rows as the time allows."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.num_rows = affordable_rows(
            len(trainer.train_dataset), len(trainer.eval_dataset), epochs=trainer.args.num_train_epochs
        )

    def on_step_end(self, args, state, control) -> None:
        """Asks for an evaluation if this step has one; a training that stops here has no time for it."""
        if state.global_step in self.steps(state.max_steps) and not control.should_training_stop:
            control.should_evaluate = True

    def steps(self, max_steps: int) -> set[int]:
        """The optimizer steps after which the trainer evaluates."""
        return steps_of(max_steps, num_rows=self.num_rows)

    @contextmanager
    def during_training(self) -> Iterator[None]:
        """Makes the trainer evaluate on the first `num_rows` held-out rows, without drawing from the training's
        random numbers.
        """
        whole, evaluate = self.trainer.eval_dataset, self.trainer.evaluate

        def evaluate_apart(*args: Any, **kwargs: Any) -> dict[str, float]:
            with random_numbers_kept():
                return evaluate(*args, **kwargs)

        self.trainer.eval_dataset = whole.select(range(self.num_rows))
        self.trainer.evaluate = evaluate_apart
        try:
            yield
        finally:
            self.trainer.eval_dataset = whole
            del self.trainer.evaluate


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Restores every random number generator: a data loader draws a seed even if it shuffles nothing."""
    import numpy as np
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
