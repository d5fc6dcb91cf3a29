"""Times a few optimizer steps of a training, and a few answers of a gate, each in a process of its own.

base model, rows, settings of the step -> seconds of each part of it, peak memory

The training is the stage's own `train`, on some of its rows: first on the longest ones, which take the most memory,
then on rows of every length. What it does once (imports, loading the model) and for each row (token ids, the
reference's log-probabilities, the evaluation) is told apart by the difference between the two.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from posttrain.config import CheckSftStep, DpoStep, LoraTraining, SftStep, Training
from posttrain.rows import chat
from posttrain.rows.formats import write_jsonl
from posttrain.step import usage
from posttrain.step.run import configure_logging
from posttrain.train.ends import LeaveInTime
from validators import measuring

NUM_STEPS = 4  # optimizer steps on rows of every length; the first of them warms up
NUM_EVAL_ROWS = 32  # at most
NUM_ANSWERS = 16
TIMEOUT_SECONDS = 3600.0

Rows = dict[str, list[dict]]  # by side: train, eval


class Stopwatch(LeaveInTime):
    """Notes when the parts of a training end; the training comes to its own end."""

    def __init__(self, training: Training):
        super().__init__(training)
        self.made_at = self.clock()  # the trainer is there
        self.steps: list[float] = []
        self.trained_at = self.made_at

    def on_step_end(self, args, state, control) -> None:
        self.steps.append(self.clock())

    def raise_if_stopped(self, state, *, stored_step: int | None) -> None:
        self.trained_at = self.clock()
        super().raise_if_stopped(state, stored_step=stored_step)


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One training on some of the rows, in seconds."""

    num_rows: int  # that the trainer was made with, held-out ones included
    num_eval_rows: int
    setup: float  # until the trainer was there: the model, token ids, the reference
    step: float  # of an optimizer step
    begin: float  # that the first step took longer
    save: float  # of a checkpoint, at the end
    finish: float  # the evaluation, and what is written


@dataclass(frozen=True, kw_only=True)
class TimedTraining:
    """A training stage as it was measured."""

    num_rows: int  # that fit
    num_eval_rows: int
    num_tokens: int  # of one pass
    imports: float  # seconds
    longest: Lap
    typical: Lap
    memory: int  # bytes, of the process
    gpu_memory: int = 0  # bytes, of the GPU
    device: str = "cpu"

    def seconds(self, *, num_steps: int, num_saves: int, num_evaluated: int) -> float:
        """Returns how long the whole stage takes.

        Args:
            num_evaluated: held-out rows in all evaluations.
        """
        lap, first = self.typical, self.longest
        for_row = _slope(lap.setup - first.setup, lap.num_rows - first.num_rows)
        for_eval = _slope(lap.finish - first.finish, lap.num_eval_rows - first.num_eval_rows)
        setup = lap.setup + for_row * (self.num_rows + self.num_eval_rows - lap.num_rows)
        finish = lap.finish + for_eval * (num_evaluated - lap.num_eval_rows)
        return self.imports + setup + lap.begin + num_steps * lap.step + num_saves * lap.save + finish


@dataclass(frozen=True, kw_only=True)
class TimedAnswers:
    """Answers of the base model as they were measured."""

    imports: float  # seconds
    load: float  # seconds, of one model
    answer: float  # seconds for one, in a batch
    num_tokens: float  # of one, on average
    memory: int
    gpu_memory: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Sample:
    """Settings and rows with which a lap is run."""

    config: LoraTraining
    rows: Rows


def time_training(step: str, section: SftStep | DpoStep, base: Path, rows: Rows) -> TimedTraining:
    """Times a training stage in a process of its own."""
    return TypeAdapter(TimedTraining).validate_python(_apart(step, lambda: _training(section, base, rows)))


def time_answers(section: CheckSftStep, base: Path, prompts: list[list[dict]]) -> TimedAnswers:
    """Times answers of the base model in a process of its own."""
    return TypeAdapter(TimedAnswers).validate_python(_apart("answers", lambda: _answers(section, base, prompts)))


def _apart(name: str, measure: measuring.Measure) -> dict[str, Any]:
    return measuring.whole(measuring.in_order({name: measure}, measuring.Timeouts(TIMEOUT_SECONDS))).numbers


def _slope(difference: float, num: int) -> float:
    """Returns seconds for one more; none if the clock says less."""
    return max(0.0, difference / num) if num > 0 else 0.0


def _training(section: SftStep | DpoStep, base: Path, rows: Rows) -> dict[str, Any]:
    configure_logging()
    started = time.monotonic()
    _import(section)
    imports = time.monotonic() - started
    name = "sft" if isinstance(section, SftStep) else "dpo"
    config: LoraTraining = getattr(section, name).model_copy(update={"keep_best": None})
    ordered, num_tokens = _by_length(rows, base, config.max_seq_length)
    longest = _lap(section, name, base, longest_rows(config, ordered))
    typical = _lap(section, name, base, typical_rows(config, ordered))
    return {
        "num_rows": len(ordered["train"]), "num_eval_rows": len(ordered["eval"]), "num_tokens": num_tokens,
        "imports": imports, "longest": longest, "typical": typical, **_memory(),
    }  # fmt: skip


def _import(section: SftStep | DpoStep) -> None:
    from posttrain.train import backend

    backend.prepare(section.training.gpu_memory_fraction)
    import peft  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.sft_trainer  # noqa: F401


def _by_length(rows: Rows, base: Path, max_length: int) -> tuple[Rows, int]:
    """Returns the rows that fit, the shortest first, and the tokens of the training rows.

    Raises:
        ValueError: none fits.
    """
    tokenizer, ordered, num_tokens = chat.load_tokenizer(base), {}, 0
    for side, some in rows.items():
        lengths = [(chat.num_tokens(tokenizer, row), at) for at, row in enumerate(some)]
        fitting = sorted(pair for pair in lengths if pair[0] <= max_length)
        if not fitting:
            raise ValueError(f"none of {len(some)} {side} rows fits max_seq_length {max_length}: raise it")
        ordered[side] = [some[at] for _, at in fitting]
        num_tokens = sum(length for length, _ in fitting) if side == "train" else num_tokens
    return ordered, num_tokens


def longest_rows(config: LoraTraining, ordered: Rows) -> Sample:
    """Chooses the longest rows, one micro-batch of them, for one optimizer step and an evaluation of one row."""
    rows = {"train": ordered["train"][-config.batch_size :], "eval": ordered["eval"][-1:]}
    return Sample(config.model_copy(update={"gradient_accumulation": 1, "epochs": 1.0}), rows)


def typical_rows(config: LoraTraining, ordered: Rows) -> Sample:
    """Chooses rows of every length, evenly, for a few optimizer steps of full size."""
    num_rows = NUM_STEPS * config.batch_size * config.gradient_accumulation
    rows = {"train": evenly(ordered["train"], num_rows), "eval": evenly(ordered["eval"], NUM_EVAL_ROWS)}
    epochs = math.ceil(num_rows / len(rows["train"]))
    return Sample(config.model_copy(update={"epochs": float(epochs)}), rows)


def evenly(rows: list, num: int) -> list:
    """Returns `num` of the rows, or all, spread evenly."""
    num = min(num, len(rows))
    return [rows[(2 * at + 1) * len(rows) // (2 * num)] for at in range(num)]


def _lap(section: SftStep | DpoStep, name: str, base: Path, sample: Sample) -> Lap:
    """Runs the stage on a sample."""
    watches: list[Stopwatch] = []

    def watch(training: Training) -> Stopwatch:
        watches.append(Stopwatch(training))
        return watches[-1]

    training = section.training.model_copy(update={"report_to": [], "leave_at": None, "num_processes": 1})
    step = section.model_copy(update={name: sample.config, "training": training, "selection": None})
    with _folder(sample.rows) as (files, outputs, checkpoints):
        started = time.monotonic()
        _train(name)(str(base), files=files, outputs=outputs, step=step, checkpoints=checkpoints, deadline=watch)
        ended = time.monotonic()
    ends = watches[-1].steps
    length = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - watches[-1].made_at
    return Lap(
        num_rows=sum(map(len, sample.rows.values())),
        num_eval_rows=len(sample.rows["eval"]),
        setup=watches[-1].made_at - started,
        step=length,
        begin=max(0.0, ends[0] - watches[-1].made_at - length),
        save=watches[-1].trained_at - ends[-1],
        finish=ended - watches[-1].trained_at,
    )


def _train(name: str):
    from posttrain import dpo, sft

    return {"sft": sft, "dpo": dpo}[name].train


@contextmanager
def _folder(rows: Rows) -> Iterator[tuple[dict[str, str], dict[str, str], Any]]:
    """Yields files with the rows, places for the outputs of a training, and its checkpoints, which go with it."""
    from posttrain.train import stage
    from posttrain.train.checkpoints import Checkpoints

    with tempfile.TemporaryDirectory(prefix="estimate-") as folder:
        files = {side: str(Path(folder, f"{side}.jsonl")) for side in rows}
        for side, some in rows.items():
            write_jsonl(files[side], some)
        outputs = {name: str(Path(folder, name)) for name in stage.OUTPUTS}
        yield files, outputs, Checkpoints(str(Path(folder, "root")), "estimate", "0", run_id="estimate", limit=1)


def _answers(section: CheckSftStep, base: Path, prompts: list[list[dict]]) -> dict[str, Any]:
    from validators.session import Session

    configure_logging()
    started = time.monotonic()
    from posttrain.train import backend

    backend.import_libraries()
    session = Session(section.validation)
    imported = time.monotonic()
    session.load(base)
    session.answer(prompts[:1])  # warms up
    loaded = time.monotonic()
    answered = session.answer(prompts)
    ended = time.monotonic()
    return {
        "imports": imported - started,
        "load": loaded - imported,
        "answer": (ended - loaded) / len(prompts),
        "num_tokens": sum(one.answer.num_tokens for one in answered) / len(prompts),
        **_memory(),
    }


def _memory() -> dict[str, Any]:
    """Returns the peak memory of this process, and of its GPU."""
    from posttrain.train import backend

    if backend.current().device == "cpu":
        return {"memory": usage.peak_memory_of(*usage.here())}
    import torch

    device, gpu_memory = torch.cuda.get_device_name(), torch.cuda.max_memory_reserved()
    return {"memory": usage.peak_memory_of(*usage.here()), "gpu_memory": gpu_memory, "device": device}
