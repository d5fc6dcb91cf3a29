"""A step of the line as a child process of a trial: however it ends, the trial goes on and knows why.

a `Command`, where its inputs lie -> its outputs, how it ended, what it has cost

On a CPU a child is a fork of a trial that has imported torch, transformers, peft and trl: once, and not in each step.
All else is as in a process of its own, our modules among it. With a GPU or unsloth nothing is imported before the fork:
a fork does not inherit a GPU, and unsloth has to come first.
"""

import atexit
import json
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from posttrain.config import EXIT_AGAIN, RUN_ID_ENV
from posttrain.config.sweep import Command
from posttrain.step import become, records, usage
from posttrain.step.run import Unfinished
from posttrain.sweep.ranking import Cost
from posttrain.train import backend

GRACE_SECONDS = 15.0  # from SIGTERM to SIGKILL: a training saves a checkpoint
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory")

# How a step ended that gave nothing -> whether the same trial would end so again: then its row is not made anew.
DIVERGED, NO_MEMORY, KILLED, NO_TIME, FAILED = "diverged", "out of memory", "killed", "out of time", "failed"
IS_FINAL = {DIVERGED: True, NO_MEMORY: True, KILLED: False, NO_TIME: False, FAILED: False}


@dataclass(frozen=True)
class Trial:
    """What all steps of a trial share."""

    storage_root: str
    run_id: str
    overrides: dict[str, Any]
    folder: Path  # of their outputs
    given: dict[str, str]  # `<step>.<output>` of the graph -> local path
    judged: dict[str, str]  # the same for gates, where they are given others

    def output(self, step: str, name: str) -> Path:
        return self.folder / step / name

    def path_of(self, source: str, *, for_gate: bool) -> str:
        """Where the output `<step>.<output>` lies, of a step that ran before the trial or in it."""
        given = self.given | (self.judged if for_gate else {})
        return given.get(source) or str(self.output(*source.split(".")))


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    exit_code: int
    cost: Cost
    status: str = ""  # why it gave nothing; empty if it did
    reason: str = ""


def import_libraries() -> Cost:
    """What it costs to import what every child would import; nothing where a fork may not have it or we are one."""
    clock, before = time.monotonic(), usage.here()
    backend.import_libraries()
    spent = usage.cpu_seconds_of(*usage.here()) - usage.cpu_seconds_of(*before)
    return Cost(seconds=time.monotonic() - clock, cpu_seconds=spent)


def run(command: Command, trial: Trial, *, config: dict[str, Any], num_gpus: int) -> Ended:
    """Runs the command to its end.

    Raises:
        Unfinished: SIGTERM has come, and the child has been given time to save its state.
    """
    (trial.folder / command.step).mkdir(parents=True, exist_ok=True)
    clock, before = time.monotonic(), usage.of_children()
    process = multiprocessing.get_context("fork").Process(
        target=_become, args=(command.module, argv_of(command, trial, config), {RUN_ID_ENV: trial.run_id})
    )
    process.start()
    with _ends_with_us(process):
        process.join()
    seconds, spent = time.monotonic() - clock, usage.of_children()
    cost = Cost(
        seconds=seconds, cpu_seconds=usage.cpu_seconds_of(spent) - usage.cpu_seconds_of(before),
        peak_memory=usage.peak_memory_of(spent), gpu_seconds=seconds * num_gpus if usage.has_gpu() else 0.0,
    )  # fmt: skip
    if process.exitcode == 0:
        return Ended(0, cost)
    return Ended(process.exitcode, cost, *why(command.step, trial, process.exitcode))


def argv_of(command: Command, trial: Trial, config: dict[str, Any]) -> list[str]:
    """The step's arguments, as its component would have them."""
    flags = {
        "step": command.step,
        "storage_root": trial.storage_root,
        "config": json.dumps(config),
        "overrides": json.dumps(trial.overrides),
        **{name: trial.path_of(source, for_gate=command.is_gate) for name, source in command.inputs.items()},
        **{name: str(trial.output(command.step, name)) for name in command.outputs},
    }
    return [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]


def _become(module: str, argv: list[str], environment: dict[str, str]) -> None:
    """Turns the fork into `python -m module argv`."""
    os.environ |= environment
    # The trial has exit functions of its own, which are not the child's to run.
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    # The trial's state goes with its modules: when it started, its connections.
    become.forget({*become.OURS, module.partition(".")[0]})
    become.run([module, *argv])


def why(step: str, trial: Trial, exit_code: int) -> tuple[str, str]:
    """Status and reason of a step that gave nothing: by its record, and where it could leave none by its exit code."""
    entries = [entry for entry in records.read_records(trial.storage_root, trial.run_id) if entry.step == step]
    error = entries[-1].error if entries and entries[-1].status in ("failed", "unfinished") else None
    if exit_code == EXIT_AGAIN:
        return NO_TIME, f"{step}: {error}"
    if exit_code < 0:
        memory = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
        return KILLED, f"{step}: ended by {signal.Signals(-exit_code).name}{memory}"
    if error is None:
        return FAILED, f"{step}: exit code {exit_code}; see its log"
    kind, _, message = error.partition(": ")
    if kind == "Diverged":
        return DIVERGED, f"{step}: {message}"
    return NO_MEMORY if any(words in error for words in OUT_OF_MEMORY) else FAILED, f"{step}: {error}"


@contextmanager
def _ends_with_us(process: BaseProcess) -> Iterator[None]:
    """A SIGTERM to the trial ends the child first, in its own time; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_) -> None:
        raise Unfinished("left on SIGTERM; the next attempt goes on")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException:
        process.terminate()
        process.join(GRACE_SECONDS)
        process.kill()
        process.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
