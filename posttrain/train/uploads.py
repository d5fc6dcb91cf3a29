"""Uploads checkpoints in the background; the training waits for them only at its end.

local checkpoint folders of the trainer -> `Checkpoints.publish`, one at a time

During an upload at most one more checkpoint waits, and a newer one takes its place, so slow storage costs neither time
nor disk. An upload that fails is logged and given up: the training goes on, and the next checkpoint is tried. On
several nodes, a checkpoint that one of them has given up never becomes complete.
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
    """Publishes the checkpoints of one training. The end of its `with` block waits for the last upload."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.stored_step: int | None = None  # of the newest whole checkpoint in storage that this process knows of
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
                future.result()  # raises any error but those of storage

    def on_save(self, args, state) -> None:
        """Takes over the folder that the trainer has just written. The first rank of a node does so for all there."""
        ranks.wait()
        if ranks.is_first_of_node():
            self.submit(Path(args.output_dir, f"checkpoint-{state.global_step}"), step=state.global_step)

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint that any node knows of, once all have stored theirs."""
        return max((step for step in ranks.gather(self.stored_step) if step is not None), default=None)

    def submit(self, folder: Path, *, step: int) -> None:
        """Queues `folder` in place of any that still waits, and removes that one."""
        with self._lock:
            skipped, self._waiting = self._waiting, (folder, step)
        if skipped:
            logger.warning("checkpoint of step %d is dropped in favour of step %d: storage is slow", skipped[1], step)
            shutil.rmtree(skipped[0])
        self._futures.append(self._pool.submit(self._publish_waiting))

    def _publish_waiting(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, None
        if taken is None:  # it was dropped for a newer one, which is stored by now
            return
        folder, step = taken
        try:
            if self.checkpoints.publish(folder, step=step):
                self.stored_step = step
        except OSError as error:
            logger.warning("checkpoint of step %d could not be stored, the training goes on: %s", step, error)
        finally:
            shutil.rmtree(folder)
