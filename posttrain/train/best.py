"""Keeps the checkpoint whose answers are most often right, and ends a training that no longer gets better.

trainer, training rows set aside -> accuracy at evenly spaced steps in the trainer's log, its best adapter in the model

A module that the configuration names answers and judges in a process of its own, as the gates do: random numbers and
memory of the training are not touched, so that it stays the same bit for bit. What was judged, and the best adapter so
far, lie beside the checkpoints: a resume judges no step twice. Of several ranks the first judges, and the others wait.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config import DpoTraining, KeepBest, SftTraining
from posttrain.rows.formats import prompt_key, write_jsonl
from posttrain.step.parent import tie_to_parent
from posttrain.train import ranks
from posttrain.train.checkpoints import Checkpoints

ACCURACY = "checkpoint_accuracy"  # in the trainer's log
WEIGHTS = "adapter_model.safetensors"
SALT = "posttrain-aside-1"

logger = logging.getLogger(__name__)


def set_aside(rows: list[dict], settings: KeepBest | None) -> tuple[list[dict], list[dict]]:
    """Returns the rows to train on and, for other prompts chosen by their hash, one row each to judge checkpoints by.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if settings is None:
        return rows, []
    first: dict[str, dict] = {}
    for row in rows:
        first.setdefault(prompt_key(row), row)
    chosen = set(sorted(first, key=lambda key: hashlib.sha256(f"{SALT}:{key}".encode()).digest())[: settings.num_rows])
    if len(chosen) == len(first):
        raise ValueError(
            f"keep_best.num_rows = {settings.num_rows} sets all {len(first)} training prompts aside: lower it"
        )
    trained = [row for row in rows if prompt_key(row) not in chosen]
    return trained, [row for key, row in first.items() if key in chosen]


class BestCheckpoint:
    """Judges the adapter at evenly spaced steps, the last one among them, and remembers the best."""

    def __init__(self, trainer: Any, rows: list[dict], step: SftTraining | DpoTraining, checkpoints: Checkpoints):
        self.trainer, self.rows, self.settings, self.judged_by = trainer, rows, step.keep_best, step.selection
        self.store = storage.join(checkpoints.root, f"best-{checkpoints.run_id}" if checkpoints.is_fresh else "best")
        self.base = Path(trainer.model.peft_config["default"].base_model_name_or_path)
        self.accuracies: dict[int, float] = ranks.from_first(self._read)

    def on_step_end(self, args, state, control) -> None:
        """Judges this step if it is its turn, before its checkpoint is saved: a resume from there does not judge it."""
        step = state.global_step
        if step in self.steps(state.max_steps):
            if step not in self.accuracies:
                self.accuracies[step] = ranks.from_first(partial(self._judge, step))
            state.log_history.append({"step": step, "epoch": state.epoch, ACCURACY: self.accuracies[step]})
        if self._num_without_gain(step) >= (self.settings.patience or float("inf")):
            logger.info("step %d: no gain in %d evaluations, the training ends", step, self.settings.patience)
            control.should_training_stop = True

    def steps(self, max_steps: int) -> set[int]:
        """The optimizer steps after which the adapter is judged."""
        number = self.settings.num_checkpoints
        return {max_steps * part // number for part in range(1, number + 1)} - {0}

    def best(self, until: int) -> int:
        """Returns the first of the best steps up to this one."""
        return max(self._until(until), key=lambda step: (self.accuracies[step], -step))

    def restore(self) -> None:
        """Puts the best adapter into the trainer's model."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load

        last = self.trainer.state.global_step
        if (best := self.best(last)) != last:
            set_peft_model_state_dict(self.trainer.model, load(storage.read_bytes(self._weights(best))))

    @property
    def metrics(self) -> dict[str, float | str]:
        """The step that is kept, and the reason."""
        last = self.trainer.state.global_step
        best, judged = self.best(last), self._until(last)
        seen = ", ".join(f"{self.accuracies[step]:.3g} at step {step}" for step in judged)
        return {
            "kept_step": best,
            "kept_accuracy": self.accuracies[best],
            "kept_because": f"best of {len(judged)} checkpoints on {len(self.rows)} rows set aside: {seen}",
        }

    def _until(self, step: int) -> list[int]:
        return sorted(one for one in self.accuracies if one <= step)

    def _num_without_gain(self, step: int) -> int:
        judged = self._until(step)
        return sum(one > self.best(step) for one in judged) if judged else 0

    def _judge(self, step: int) -> float:
        from posttrain.train.stage import save_adapter

        with tempfile.TemporaryDirectory() as folder:
            save_adapter(self.trainer.model, Path(folder, "adapter"))
            scores = self._scores(Path(folder))
            self.accuracies[step] = sum(scores) / len(scores)
            logger.info("step %d: %.3g right of %d rows set aside", step, self.accuracies[step], len(scores))
            if self.best(step) == step:
                storage.write_bytes(self._weights(step), Path(folder, "adapter", WEIGHTS).read_bytes())
        text = json.dumps({str(one): accuracy for one, accuracy in self.accuracies.items()})
        storage.write_bytes(storage.join(self.store, "accuracies.json"), text.encode())
        return self.accuracies[step]

    def _scores(self, folder: Path) -> list[float]:
        """Has the module answer and judge in a process of its own."""
        rows, output = folder / "rows.jsonl", folder / "scores.json"
        write_jsonl(rows, self.rows)
        flags = {"base": self.base, "adapter": folder / "adapter", "rows": rows, "output": output}
        flags |= {"config": self.judged_by.model_dump_json()}
        command = [sys.executable, "-m", self.judged_by.module]
        alone = {name: value for name, value in os.environ.items() if name not in ranks.VARIABLES}
        command += [f"--{name}={value}" for name, value in flags.items()]
        subprocess.run(tie_to_parent(command), check=True, env=alone)
        return json.loads(output.read_text(encoding="utf-8"))

    def _read(self) -> dict[int, float]:
        uri = storage.join(self.store, "accuracies.json")
        if not storage.exists(uri):
            return {}
        return {int(step): accuracy for step, accuracy in json.loads(storage.read_bytes(uri)).items()}

    def _weights(self, step: int) -> str:
        return storage.join(self.store, f"step-{step:08}.safetensors")
