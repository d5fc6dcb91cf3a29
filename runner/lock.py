"""Tells which runs on this machine are under way, and which were killed before they could write a report.

A run holds a lock on `<run folder>/RUNNING`. The kernel releases it when the process ends, however it ends. Other
machines see no lock: an id that somebody chose is claimed in the storage, see claim.py.
"""

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from posttrain.config import ReportStep
from posttrain.storage.local import naming

RUNNING = "RUNNING"

logger = logging.getLogger(__name__)


@contextmanager
def under_way(run_folder: Path, settings: ReportStep) -> Iterator[None]:
    """Marks a run as running for the length of the block; `settings` are what its report needs.

    The file gets its name when it is locked and whole, so that nobody takes a run that starts for one that was killed.

    Raises:
        ValueError: a run of this id is running already.
    """
    path = run_folder / RUNNING
    partial = path.with_name(f".{RUNNING}.{uuid.uuid4().hex}")
    with open(partial, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with naming(partial):
                file.write(settings.model_dump_json())
                file.flush()
            path.hardlink_to(partial)
        except FileExistsError:
            raise ValueError(f"--run-id {run_folder.name!r} is running already; choose another id") from None
        finally:
            partial.unlink()
        yield
        path.unlink(missing_ok=True)


def killed_runs(runs: Path) -> Iterator[tuple[str, ReportStep]]:
    """Yields id and report settings of runs that were killed; each goes to one process, once."""
    for path in sorted(runs.glob(f"*/{RUNNING}")):
        try:
            file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  closed by the block below
        except FileNotFoundError:
            continue  # it has ended since
        with file:
            if not _is_left_behind(file, path):
                continue
            settings = _settings(path, file.read())
            if settings:
                yield path.parent.name, settings
            path.unlink(missing_ok=True)


def _is_left_behind(file: TextIO, path: Path) -> bool:
    """Locks the file, and tells whether nobody else does and it has still its name: its run has neither ended."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except (BlockingIOError, FileNotFoundError):
        return False


def _settings(path: Path, text: str) -> ReportStep | None:
    try:
        return ReportStep.model_validate_json(text)
    except ValidationError:
        logger.warning("%s: is damaged, so run %s gets no report; it is removed", path, path.parent.name)
        return None
