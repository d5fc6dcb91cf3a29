"""Keeps the record of a running step up to date: every few seconds it gets the time and the step's progress.

lines of the step's log, also of its ranks and measurements -> `Progress`; a beat every few seconds -> calls of a writer

A record that says `running` and was last written longer ago than `LEASE_SECONDS` is of a step that was killed.
"""

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from posttrain.pages.wording import duration
from posttrain.step.beside import beside

BEAT_SECONDS = 15.0
LEASE_SECONDS = 60.0  # four beats
WRITE_SECONDS = 0.5  # between two writes of a progress that nobody reads more often than every beat
NUM_PACE_STEPS = 3  # optimizer steps before the time that is left is told
FILE_ENV = "POSTTRAIN_PROGRESS"  # file in which this process and its children leave their newest progress
TRAINED = re.compile(r"step (?P<done>\d+)/(?P<total>\d+)(?: (?P<text>loss \S+))?")
MEASURED = re.compile(  # a gate
    r"(?P<who>\w+): (?P<verb>answered|measured) (?P<done>\d+) of (?P<total>\d+) "
    r"(?P<things>\w+)(?P<left>, about .+ left)?$"
)
RESUMED = re.compile(r"resuming from checkpoint .*/step-(\d{8})/")

logger = logging.getLogger(__name__)


class Progress(BaseModel):
    """How far a training or a gate has come."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    done: int
    total: int  # 0: not known yet
    text: str = ""  # `loss 0.5234, about 20 s left`, or of a gate `prompts answered by base, about 20 s left`
    resumed_at: int = 0  # optimizer step of the checkpoint from which this attempt goes on; 0: none

    @property
    def is_training(self) -> bool:
        """Tells whether it counts optimizer steps. A gate counts what it measures, and says what that is."""
        return not self.text or self.text.startswith("loss")

    @property
    def words(self) -> str:
        """Returns `step 12/40`, or `16/48 prompts answered by base`."""
        count = f"{self.done}/{self.total}" if self.total else str(self.done)
        return f"step {count}" if self.is_training else f"{count} {self.text.partition(', about')[0]}"


def progress_of(line: str) -> Progress | None:
    """Parses a progress line; returns None for any other line."""
    if match := TRAINED.search(line):
        return Progress(done=int(match["done"]), total=int(match["total"]), text=match["text"] or "")
    if match := MEASURED.search(line):
        text = f"{match['things']} {match['verb']} by {match['who']}{match['left'] or ''}"
        return Progress(done=int(match["done"]), total=int(match["total"]), text=text)
    return None


class Pace:
    """Adds to a training's progress the time that is left, by its optimizer steps since the first one that was seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.first: tuple[int, float] | None = None  # that step, and when it was done: it has warmed up

    def extended(self, progress: Progress) -> Progress:
        """Returns the progress with `, about 2 min 05 s left` in its text, from `NUM_PACE_STEPS` steps on."""
        if not progress.text.startswith("loss"):
            return progress
        now = self.clock()
        if self.first is None or progress.done < self.first[0]:  # another attempt
            self.first = (progress.done, now)
        num_steps, since = progress.done - self.first[0], now - self.first[1]
        if num_steps < NUM_PACE_STEPS or progress.done >= progress.total:
            return progress
        left = max(round(since / num_steps * (progress.total - progress.done)), 1)
        return progress.model_copy(update={"text": f"{progress.text}, about {duration(left)} left"})


class Follower(logging.Handler):
    """Writes the newest progress in the log to the file that `FILE_ENV` names, about twice a second."""

    resumed_at = 0
    written_at = 0.0  # time.monotonic()

    def __init__(self):
        super().__init__()
        self.pace = Pace()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if match := RESUMED.search(line):
            self.resumed_at = int(match[1])
            progress = Progress(done=self.resumed_at, total=0)
        elif progress := progress_of(line):
            progress = self.pace.extended(progress)
        else:
            return
        is_due = time.monotonic() - self.written_at >= WRITE_SECONDS or progress.done in (
            progress.total,
            self.resumed_at,
        )
        if is_due and (file := os.environ.get(FILE_ENV)):
            self.written_at = time.monotonic()
            _write(file, progress.model_copy(update={"resumed_at": self.resumed_at}))


def _write(file: str, progress: Progress) -> None:
    """Replaces the file at once: another process may be reading it."""
    partial = Path(f"{file}.{os.getpid()}")
    with suppress(FileNotFoundError):  # the step has ended, and its folder is gone
        partial.write_text(progress.model_dump_json(), encoding="utf-8")
        partial.replace(file)


def follow() -> None:
    """Makes this process leave its progress, if it belongs to a step that is recorded."""
    if os.environ.get(FILE_ENV) and not any(isinstance(handler, Follower) for handler in logging.root.handlers):
        logging.root.addHandler(Follower())


@contextmanager
def beating(note: Callable[[Progress | None], None], write: Callable[[], None]) -> Iterator[None]:
    """Calls `note` with the step's progress, and then `write`, every `BEAT_SECONDS` while the block runs.

    At the end `note` is called once more. A beat that fails is left out: the storage may be away for a while, and the
    step goes on without it.
    """

    def beat(file: Path, over: threading.Event) -> None:
        for seconds in chain((BEAT_SECONDS / 5, BEAT_SECONDS / 2), repeat(BEAT_SECONDS)):  # a step may be short
            if over.wait(seconds):
                return
            note(_read(file))
            try:
                write()
            except OSError as error:
                logger.warning("the record of this step could not be renewed: %s", error)

    with tempfile.TemporaryDirectory(prefix="progress-") as folder, _leaving_in(Path(folder, "progress.json")) as file:
        try:
            with beside(partial(beat, file), name="record"):
                yield
        finally:
            note(_read(file))


@contextmanager
def _leaving_in(file: Path) -> Iterator[Path]:
    """Makes this process and its children leave their progress in a file."""
    before = os.environ.get(FILE_ENV)
    os.environ[FILE_ENV] = str(file)
    follow()
    try:
        yield file
    finally:
        os.environ.pop(FILE_ENV)
        if before is not None:
            os.environ[FILE_ENV] = before


def _read(file: Path) -> Progress | None:
    try:
        return Progress.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
