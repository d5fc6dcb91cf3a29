"""Starts the ranks of a training under torchrun, and tells what they came to.

module and command line of a stage, number of ranks -> `python -m <module> ...` once per rank; the first error of any

torchrun gives an exit code of its own and no word of theirs, so each rank leaves how it ended in a file. A rank that is
to leave in time, diverges or finds bad input so ends its stage as a single process would.
"""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from posttrain.step.parent import tie_to_parent
from posttrain.step.run import Unfinished
from posttrain.train import ends
from posttrain.train.checkpoints import Diverged
from posttrain.train.ends import STARTED_ENV

ORDERS_ENV = "POSTTRAIN_RANK"  # what a rank is told by the process that starts it: `Orders` as JSON
ENDS = {error.__name__: error for error in (Unfinished, Diverged, ValueError)}  # what a stage may raise by contract

logger = logging.getLogger(__name__)


class Orders(BaseModel):
    """What a rank is told."""

    fingerprint: str
    folder: str  # for how it ended


class Ending(BaseModel):
    """How a rank ended."""

    rank: int
    at: float  # seconds, time.time()
    error: str | None = None  # class of what it raised
    message: str = ""


def run(command: list[str], *, num_ranks: int, fingerprint: str) -> None:
    """Runs `python -m <command>` in so many ranks and waits for all. SIGTERM and SIGINT reach each of them as SIGTERM.

    Raises:
        Unfinished, Diverged, ValueError: the first that a rank raised.
        RuntimeError: it raised anything else, or died without a word.
    """
    rank = tie_to_parent([sys.executable, "-m", *command])
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={num_ranks}", "--no-python"]
    with tempfile.TemporaryDirectory() as folder:
        orders = Orders(fingerprint=fingerprint, folder=folder)
        process = subprocess.Popen(
            tie_to_parent([sys.executable, "-m", "torch.distributed.run", *options, *rank]),
            env=os.environ | {ORDERS_ENV: orders.model_dump_json(), STARTED_ENV: str(ends.STARTED)},
            start_new_session=True,  # Ctrl-C reaches it through this process alone
        )
        with _passing_on(process) as signals:
            exit_code = process.wait()
        cause = _cause(_endings(folder, num_ranks), num_ranks=num_ranks, exit_code=exit_code, is_told=bool(signals))
    if isinstance(cause, Unfinished):
        logger.error("%s", cause)  # the last line of the log, after torchrun's own
    if cause:
        raise cause


def orders() -> Orders | None:
    """What this process was told, if it is a rank."""
    text = os.environ.get(ORDERS_ENV)
    return Orders.model_validate_json(text) if text else None


@contextmanager
def reporting(told: Orders) -> Iterator[None]:
    """Leaves how this rank ended for the process that started it."""
    ending = Ending(rank=int(os.environ["RANK"]), at=time.time())
    try:
        yield
    except BaseException as caught:
        ending = Ending(rank=ending.rank, at=time.time(), error=type(caught).__name__, message=str(caught))
        raise
    finally:
        partial = Path(told.folder, f"{ending.rank}.part")
        partial.write_text(ending.model_dump_json(), encoding="utf-8")
        partial.rename(partial.with_suffix(".json"))


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """The signals that came while it ran."""
    signals: list[int] = []

    def pass_on(number: int, _) -> None:
        signals.append(number)
        process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _endings(folder: str, num_ranks: int) -> list[Ending]:
    """Of the ranks that told theirs, in the order in which they ended."""
    files = [file for rank in range(num_ranks) if (file := Path(folder, f"{rank}.json")).is_file()]
    found = [Ending.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    return sorted(found, key=lambda ending: ending.at)


def _cause(endings: list[Ending], *, num_ranks: int, exit_code: int, is_told: bool) -> BaseException | None:
    """What ended the ranks, if it was not their work. The first error counts: others, as of a lost peer, follow it."""
    first = next((ending for ending in endings if ending.error), None)
    silent = sorted(set(range(num_ranks)) - {ending.rank for ending in endings})
    if first and first.error in ENDS:
        return ENDS[first.error](first.message)
    if is_told and (first or silent):
        return Unfinished("left on SIGTERM without a new checkpoint; the next attempt goes on from the newest")
    causes = [f"rank {first.rank}: {first.error}: {first.message}"] if first else []
    causes += [f"rank {', '.join(map(str, silent))} died without a word"] if silent else []
    return RuntimeError(f"{'; '.join(causes)}; torchrun gave {exit_code}, see its log above") if causes else None
