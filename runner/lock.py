"""Tells which runs on this machine are under way, and which were killed before they could write a report.

A run holds a lock on `<run folder>/RUNNING`. The kernel releases it when the process ends, however it ends.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.config import ReportStep

RUNNING = "RUNNING"


@contextmanager
def under_way(run_folder: Path, settings: ReportStep) -> Iterator[None]:
    """Marks a run as running for the length of the block; `settings` are what its report needs."""
    path = run_folder / RUNNING
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(settings.model_dump_json())
        file.flush()
        yield
        path.unlink()


def killed_runs(runs: Path) -> Iterator[tuple[str, ReportStep]]:
    """Yields id and report settings of runs that were killed; each goes to one process, once."""
    for path in sorted(runs.glob(f"*/{RUNNING}")):
        with open(path, encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it is running
            if text := file.read():
                yield path.parent.name, ReportStep.model_validate_json(text)
            path.unlink(missing_ok=True)
