"""Starts the ranks of a training under torchrun, and raises the first error of any rank.

module and command line of a stage, number of ranks -> `python -m <module> ...` once per rank

torchrun exits with a code of its own and passes on no error, so each rank writes how it ended to a file. A deadline, a
divergence or bad input in one rank therefore ends the stage just as it would end a single process.
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

from posttrain import storage
from posttrain.config import STARTED_ENV
from posttrain.step.parent import tie_to_parent
from posttrain.step.run import Unfinished
from posttrain.train import ends
from posttrain.train.checkpoints import Diverged

ORDERS_ENV = "POSTTRAIN_RANK"  # `Orders` as JSON, set by the process that starts a rank
ERRORS = {error.__name__: error for error in (Unfinished, Diverged, ValueError, MemoryError)}  # a stage's, by contract

logger = logging.getLogger(__name__)


class Orders(BaseModel):
    """Values that the launching process passes to every rank."""

    fingerprint: str
    folder: str  # of the files in which ranks say how they ended


class Ending(BaseModel):
    """How a rank ended."""

    rank: int
    at: float  # seconds, time.time()
    error: str | None = None  # name of the class that it raised
    message: str = ""


def run(command: list[str], *, num_ranks: int, fingerprint: str) -> None:
    """Runs `python -m <command>` in `num_ranks` ranks and waits for all. SIGTERM and SIGINT reach them as SIGTERM.

    Raises:
        Unfinished, Diverged, ValueError, MemoryError: the first error of any rank.
        RuntimeError: a rank raised anything else first, or died without an error.
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
        cause = _cause(_endings(folder, num_ranks), num_ranks=num_ranks, exit_code=exit_code, got_signal=bool(signals))
    if isinstance(cause, Unfinished):
        logger.error("%s", cause)  # the last line of the log, after torchrun's own
    if cause:
        raise cause


def read_orders() -> Orders | None:
    """Returns the orders of this process, or None if it is not a rank."""
    text = os.environ.get(ORDERS_ENV)
    return Orders.model_validate_json(text) if text else None


@contextmanager
def reporting(orders: Orders) -> Iterator[None]:
    """Tells the process that started this rank how the block ended."""
    ending = Ending(rank=int(os.environ["RANK"]), at=time.time())
    try:
        yield
    except BaseException as caught:
        ending = Ending(rank=ending.rank, at=time.time(), error=type(caught).__name__, message=str(caught))
        raise
    finally:
        partial = Path(orders.folder, f"{ending.rank}.part")
        storage.write_text(partial, ending.model_dump_json())
        partial.rename(partial.with_suffix(".json"))


@contextmanager
def _passing_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Passes SIGTERM and SIGINT on to `process` as SIGTERM, and yields the list of those that arrived."""
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
    """Reads how ranks ended, in the order in which they did; a rank that was killed has left nothing."""
    files = [file for rank in range(num_ranks) if (file := Path(folder, f"{rank}.json")).is_file()]
    endings = [Ending.model_validate_json(file.read_text(encoding="utf-8")) for file in files]
    return sorted(endings, key=lambda ending: ending.at)


def _cause(endings: list[Ending], *, num_ranks: int, exit_code: int, got_signal: bool) -> BaseException | None:
    """Returns the error that ended the ranks, or None if all finished their work.

    The first one counts: later ones, such as a lost connection to a peer, are its consequences.
    """
    first = next((ending for ending in endings if ending.error), None)
    silent = sorted(set(range(num_ranks)) - {ending.rank for ending in endings})
    if first and first.error in ERRORS:
        return ERRORS[first.error](first.message)
    if got_signal and (first or silent):
        return Unfinished("stopped on SIGTERM without a new checkpoint; the next attempt resumes from the newest one")
    causes = [f"rank {first.rank}: {first.error}: {first.message}"] if first else []
    causes += [f"rank {', '.join(map(str, silent))} died without an error"] if silent else []
    return RuntimeError(f"{'; '.join(causes)}; torchrun exited with {exit_code}, see its log above") if causes else None
