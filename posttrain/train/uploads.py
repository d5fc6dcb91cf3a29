"""Moves checkpoints to storage beside the training, which does not wait for them until it ends.

local checkpoint folders of the trainer -> `Checkpoints.publish`, one at a time

While one goes up one more may wait; a newer one takes its place, so slow storage costs neither time nor disk. One that
storage does not take is told and given up: the training goes on, and the next one is tried.
"""

import logging
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from posttrain.train import ranks
from posttrain.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class Uploads:
    """Publishes the checkpoints of one training; leaving its block waits for what is under way."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.kept_step: int | None = None  # of the newest checkpoint in storage, as far as this process knows
        self._futures: list[Future] = []
        self._waiting: tuple[Path, int] | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._futures:
                future.result()  # raises what was no trouble of the storage

    def on_save(self, args, state) -> None:
        """Takes over the folder that the trainer has just written; of several ranks the first takes what all wrote."""
        ranks.wait()
        if ranks.is_first():
            self.submit(Path(args.output_dir, f"checkpoint-{state.global_step}"), step=state.global_step)

    def submit(self, folder: Path, *, step: int) -> None:
        with self._lock:
            skipped, self._waiting = self._waiting, (folder, step)
        if skipped:
            logger.warning("checkpoint of step %d gives way to that of step %d: storage is slow", skipped[1], step)
            shutil.rmtree(skipped[0])
        self._futures.append(self._pool.submit(self._publish_waiting))

    def _publish_waiting(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, None
        if taken is None:  # it gave way to one that is stored already
            return
        folder, step = taken
        try:
            self.checkpoints.publish(folder, step=step)
            self.kept_step = step
        except OSError as error:
            logger.warning("checkpoint of step %d could not be stored, the training goes on: %s", step, error)
        finally:
            shutil.rmtree(folder)
