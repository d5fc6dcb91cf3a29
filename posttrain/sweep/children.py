"""Runs a step of the line as a child process of a trial, which survives the child and learns why it ended.

a `Command`, the paths of its inputs -> its outputs, how it ended, what it cost

On a CPU a child is a fork of the trial, which has imported torch, transformers, peft and trl once for all steps.
Everything else is as in a new process, our own modules included. With a GPU or unsloth nothing is imported before the
fork: a fork cannot use its parent's GPU, and unsloth has to be imported first.
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

from posttrain.config import EXIT_AGAIN, HALVINGS_ENV, RUN_ID_ENV, STARTED_ENV
from posttrain.config.sweep import Command
from posttrain.step import become, records, usage
from posttrain.step.attempts import OUT_OF_MEMORY
from posttrain.step.parent import die_with_parent
from posttrain.step.run import Unfinished
from posttrain.sweep.ranking import Cost
from posttrain.train import backend

GRACE_SECONDS = 15.0  # from SIGTERM to SIGKILL: a training saves a checkpoint

# How a step without a result ended -> whether the same trial would end so again, and need not be repeated.
DIVERGED, NO_MEMORY, KILLED, NO_TIME, FAILED = "diverged", "out of memory", "killed", "out of time", "failed"
IS_FINAL = {DIVERGED: True, NO_MEMORY: True, KILLED: False, NO_TIME: False, FAILED: False}


@dataclass(frozen=True)
class Trial:
    """Settings that all steps of a trial share."""

    storage_root: str
    run_id: str
    overrides: dict[str, Any]
    folder: Path  # where their outputs go
    given: dict[str, str]  # `<step>.<output>` of the graph -> local path
    judged: dict[str, str]  # paths that gates get instead

    def output(self, step: str, name: str) -> Path:
        return self.folder / step / name

    def path_of(self, source: str, *, for_gate: bool) -> str:
        """Returns the path of `<step>.<output>`, of a step before the trial or in it."""
        paths = self.given | (self.judged if for_gate else {})
        return paths.get(source) or str(self.output(*source.split(".")))


@dataclass(frozen=True)
class Ended:
    """The end of a child."""

    exit_code: int
    cost: Cost
    status: str = ""  # why it has no result; empty if it has one
    reason: str = ""


def import_libraries() -> Cost:
    """Imports the libraries of the children, unless a fork may not have them, and returns what that cost."""
    clock, before = time.monotonic(), usage.here()
    backend.import_libraries()
    spent = usage.cpu_seconds_of(*usage.here()) - usage.cpu_seconds_of(*before)
    return Cost(seconds=time.monotonic() - clock, cpu_seconds=spent)


def run(command: Command, trial: Trial, *, config: dict[str, Any], num_gpus: int) -> Ended:
    """Runs the command to its end.

    Raises:
        Unfinished: SIGTERM came; the child had time to save its state.
    """
    (trial.folder / command.step).mkdir(parents=True, exist_ok=True)
    clock, before = time.monotonic(), usage.of_children()
    process = multiprocessing.get_context("fork").Process(
        target=_become, args=(command.module, argv_of(command, trial, config), {RUN_ID_ENV: trial.run_id})
    )
    process.start()
    with _ends_with_us(process):
        process.join(command.seconds or None)
    is_late = process.is_alive()
    _end(process)
    seconds, spent = time.monotonic() - clock, usage.of_children()
    cost = Cost(
        seconds=seconds,
        cpu_seconds=usage.cpu_seconds_of(spent) - usage.cpu_seconds_of(before),
        peak_memory=usage.peak_memory_of(spent),
        gpu_seconds=seconds * num_gpus if usage.has_gpu() else 0.0,
    )
    if process.exitcode == 0:
        return Ended(0, cost)
    if is_late:
        return Ended(process.exitcode, cost, NO_TIME, f"{command.step}: ended when its time was up (timeout_minutes)")
    return Ended(process.exitcode, cost, *why(command.step, trial, process.exitcode))


def _end(process: BaseProcess) -> None:
    """Ends a child that still runs; a training has time to save a checkpoint."""
    if process.is_alive():
        process.terminate()
        process.join(GRACE_SECONDS)
        process.kill()
        process.join()


def argv_of(command: Command, trial: Trial, config: dict[str, Any]) -> list[str]:
    """Returns the arguments of a step, as its component passes them."""
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
    die_with_parent(multiprocessing.parent_process().pid)
    for name in (STARTED_ENV, HALVINGS_ENV):  # the trial's
        os.environ.pop(name, None)
    os.environ |= environment
    # The trial has exit functions of its own, which are not the child's to run.
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    # The trial's state goes with its modules: when it started, its connections.
    become.forget({*become.OURS, module.partition(".")[0]})
    become.run([module, *argv])


def why(step: str, trial: Trial, exit_code: int) -> tuple[str, str]:
    """Returns status and reason of a step without a result: from its record, or else from its exit code."""
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
    """Passes a SIGTERM for the trial to the child, which has time to end; works in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_) -> None:
        raise Unfinished("stopped on SIGTERM; the next attempt continues")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException:
        _end(process)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
