"""Keeps the checkpoint whose answers are most often right, and ends a training that no longer improves.

trainer, training rows set aside -> accuracy at evenly spaced steps in the trainer's log, its best adapter in the model

A module that the configuration names answers and judges in a process of its own, as the gates do: random numbers and
memory of the training are not touched, so that it stays the same bit for bit. What was judged, and the best adapter so
far, lie beside the checkpoints: a resume judges no step twice. An adapter's file is named by its SHA-256, so that two
runs of one training do not take each other's, and one that is damaged is not loaded: the next best is kept, and it is
said. Of several ranks the first judges, and the others wait.
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
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from posttrain import storage
from posttrain.config import DpoTraining, KeepBest, SftTraining
from posttrain.rows.formats import prompt_key, write_jsonl
from posttrain.step.parent import tie_to_parent
from posttrain.train import ranks
from posttrain.train.checkpoints import Checkpoints

ACCURACY = "checkpoint_accuracy"  # in the trainer's log
WEIGHTS, JUDGEMENTS = "adapter_model.safetensors", "accuracies.json"
SALT = "posttrain-aside-1"

logger = logging.getLogger(__name__)


class Judged(NamedTuple):
    """An adapter that was judged."""

    accuracy: float
    sha256: str | None  # of its weights; None if it was not the best when it was judged, and is not stored


JUDGED = TypeAdapter(dict[int, Judged])  # by optimizer step


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
        self.judged: dict[int, Judged] = ranks.from_first(self._read)
        self.kept = 0  # the step whose adapter is in the model in the end

    def on_step_end(self, args, state, control) -> None:
        """Judges this step if it is its turn, before its checkpoint is saved: a resume from there does not judge it."""
        step = state.global_step
        if step in self.steps(state.max_steps):
            if step not in self.judged:
                self.judged[step] = ranks.from_first(partial(self._judge, step))
            state.log_history.append({"step": step, "epoch": state.epoch, ACCURACY: self.judged[step].accuracy})
        if self._num_without_gain(step) >= (self.settings.patience or float("inf")):
            logger.info("step %d: no gain in %d evaluations, the training ends", step, self.settings.patience)
            control.should_training_stop = True

    def steps(self, max_steps: int) -> set[int]:
        """The optimizer steps after which the adapter is judged."""
        number = self.settings.num_checkpoints
        return {max_steps * part // number for part in range(1, number + 1)} - {0}

    def best(self, until: int) -> int:
        """Returns the first of the best steps up to this one."""
        return self._best_first(until)[0]

    def restore(self) -> None:
        """Puts the best adapter into the trainer's model."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load

        last = self.trainer.state.global_step
        self.kept, self.judged = ranks.from_first(partial(self._choose, last))
        if self.kept != last:
            set_peft_model_state_dict(self.trainer.model, load(self._stored(self.kept)))

    @property
    def metrics(self) -> dict[str, float | str]:
        """The step that is kept, and the reason."""
        last = self.trainer.state.global_step
        best, judged = self.best(last), self._until(last)
        seen = ", ".join(f"{self.judged[step].accuracy:.3g} at step {step}" for step in judged)
        lost = "" if self.kept == best else f"; not step {best}: its adapter is damaged or gone"
        return {
            "kept_step": self.kept,
            "kept_accuracy": self.judged[self.kept].accuracy,
            "kept_because": f"best of {len(judged)} checkpoints on {len(self.rows)} rows set aside: {seen}{lost}",
        }

    def _until(self, step: int) -> list[int]:
        return sorted(one for one in self.judged if one <= step)

    def _best_first(self, until: int) -> list[int]:
        return sorted(self._until(until), key=lambda step: (-self.judged[step].accuracy, step))

    def _choose(self, last: int) -> tuple[int, dict[int, Judged]]:
        """Returns the best step whose adapter is there, and what was judged: the last, in the model, if no other is."""
        for step in self._best_first(last):
            if step == last or self.judged[step].sha256 and self._is_stored(step):
                return step, self.judged
        self.judged[last] = self._judge(last)
        return last, self.judged

    def _is_stored(self, step: int) -> bool:
        try:
            self._stored(step)
        except (FileNotFoundError, ValueError) as error:
            logger.warning("the adapter of step %d cannot be kept: %s", step, error)
            return False
        return True

    def _stored(self, step: int) -> bytes:
        """Reads the adapter of a step; ValueError if it is not the one that was judged."""
        uri = self._weights(step)
        weights = storage.read_bytes(uri)
        if (actual := hashlib.sha256(weights).hexdigest()) != self.judged[step].sha256:
            raise ValueError(f"{uri}: has SHA-256 {actual}: it was changed or is damaged")
        return weights

    def _num_without_gain(self, step: int) -> int:
        judged = self._until(step)
        return sum(one > self.best(step) for one in judged) if judged else 0

    def _judge(self, step: int) -> Judged:
        from posttrain.train.stage import save_adapter

        with tempfile.TemporaryDirectory() as folder:
            save_adapter(self.trainer.model, Path(folder, "adapter"))
            scores = self._scores(Path(folder))
            judged = self.judged[step] = Judged(sum(scores) / len(scores), None)
            logger.info("step %d: %.3g right of %d rows set aside", step, judged.accuracy, len(scores))
            if self.best(step) == step:
                weights = Path(folder, "adapter", WEIGHTS).read_bytes()
                judged = self.judged[step] = judged._replace(sha256=hashlib.sha256(weights).hexdigest())
                storage.write_bytes(self._weights(step), weights)
        storage.write_bytes(storage.join(self.store, JUDGEMENTS), JUDGED.dump_json(self.judged))
        return judged

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

    def _read(self) -> dict[int, Judged]:
        """Reads what an earlier attempt has judged; a damaged file counts as none, with a warning."""
        uri = storage.join(self.store, JUDGEMENTS)
        if not storage.exists(uri):
            return {}
        try:
            return JUDGED.validate_json(storage.read_bytes(uri))
        except ValueError as error:
            logger.warning("%s skipped: damaged: %s", uri, " ".join(str(error).split()))
            return {}

    def _weights(self, step: int) -> str:
        return storage.join(self.store, f"step-{step:08}-{self.judged[step].sha256[:12]}.safetensors")
