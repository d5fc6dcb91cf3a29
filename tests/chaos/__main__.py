"""Kills the line at random moments and submits it again, until it is through: are the weights those of a quiet run?

    python -m tests.chaos --kills 20 [--seed 0] [--output chaos.md]

The whole line on a tiny model, as plain processes. One run is left in peace. Then others are killed with SIGKILL, the
runner and all its steps at once, as a node that goes away does; after each kill the same command is given again, and
once a run is through its adapters and its published model are compared, byte for byte. After each kill whatever stands
under a final name must be whole. Exit code: 0 if all that holds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from examples.task_api.tiny import build_tiny_model
from posttrain import promote
from posttrain.step import results
from posttrain.step.digests import digest
from posttrain.step.records import StepRecord, read_records
from posttrain.train.checkpoints import COMPLETE, Manifest
from tests.chaos import moments
from tests.tiny_line import write_line

TRAINED = ("train_sft", "merge_sft", "train_dpo", "merge_dpo")  # steps whose weights are compared
OUTPUT = {"train_sft": "adapter", "train_dpo": "adapter", "merge_sft": "model", "merge_dpo": "model"}
SAVE_STEPS = 3  # a checkpoint every few seconds
START_SECONDS = 1.0  # that a process takes before its record begins
MAX_SECONDS = 600  # of one run; more is a hang


@dataclass
class Tally:
    """Counts of kills, resumed trainings and rounds, and the faults."""

    kills: Counter = field(default_factory=Counter)  # kind of moment -> how often
    resumed: Counter = field(default_factory=Counter)  # step -> how often it went on from a checkpoint
    num_rounds: int = 0  # runs that came through in the end
    faults: list[str] = field(default_factory=list)


class Run:
    """One attempt of the line, which may be killed."""

    def __init__(self, config: Path, root: Path):
        self.process = subprocess.Popen(
            [sys.executable, "run_pipeline.py", "--config", str(config), "--storage-root", str(root)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.lines: list[str] = []
        self.started: set[str] = set()
        self.ended: set[str] = set()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            match line.split():
                case [_, step, "started"]:
                    self.started.add(step)
                case [_, step, "done" | "reused" | "failed", *_]:
                    self.ended.add(step)

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """The runner and whatever it has started, at once."""
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        exit_code = self.process.wait(MAX_SECONDS)
        self.reader.join()
        self.process.stdout.close()
        return exit_code


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_tiny_model(folder / "model", seed=0, num_steps=60)
        config = write_line(folder, model, checkpoint_every_n_steps=SAVE_STEPS)
        tally = storm(config, folder, args.kills, random.Random(args.seed), *quiet_run(config, folder / "quiet"))
    text = table(tally, seconds=time.monotonic() - started, seed=args.seed)
    print(f"\n{text}")
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    print(f"{tally.num_rounds} passed, {len(tally.faults)} failed")
    return 1 if tally.faults else 0


def quiet_run(config: Path, root: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Digests of the weights that nothing disturbed, and for how long each step runs, in seconds."""
    started, run = time.monotonic(), Run(config, root)
    if run.wait() != 0:
        raise RuntimeError("the run that nobody killed was not promoted:\n" + "".join(run.lines))
    print(f"left in peace: {time.monotonic() - started:.0f} s", flush=True)
    return weights(root), {entry.step: entry.seconds + START_SECONDS for entry in latest(root).values()}


def storm(config: Path, folder: Path, num_kills: int, random_: random.Random, expected: dict, durations: dict) -> Tally:
    """Kills until there were enough, and lets the last run come through."""
    tally, root = Tally(), folder / "root"
    while True:
        is_last = tally.kills.total() >= num_kills
        is_through = attempt(config, root, tally, None if is_last else random_, durations)
        tally.faults += broken(root)
        if is_through:
            tally.num_rounds += 1
            different = [step for step, digest in weights(root).items() if digest != expected[step]]
            tally.faults += [f"round {tally.num_rounds}: other weights of {step}" for step in different]
            tally.faults += [f"round {tally.num_rounds}: {fault}" for fault in not_current(root)]
            shutil.rmtree(root)
            if is_last:
                return tally


def attempt(config: Path, root: Path, tally: Tally, random_: random.Random | None, durations: dict) -> bool:
    """One run, killed at the first drawn moment that comes (never without `random_`); True if it was promoted."""
    finished = latest(root).keys()
    run = Run(config, root)
    while random_ and not run.is_over():
        coming = [step for step in durations if step not in finished and step not in run.ended]
        if not coming:
            break
        moment = moments.draw(random_, durations, coming)
        if moment.wait(root, run):
            run.kill()
            tally.kills[moment.kind] += 1
            print(f"kill {tally.kills.total()}: {moment.kind}", flush=True)
            break
    exit_code = run.wait()
    tally.resumed.update(
        words[-5] for line in run.lines if (words := line.split())[-4:-1] == ["resuming", "at", "step"]
    )
    if exit_code not in (0, -signal.SIGKILL):
        tally.faults.append(f"exit code {exit_code}: {''.join(run.lines[-12:])}")
    return exit_code == 0


def latest(root: Path) -> dict[str, StepRecord]:
    """The newest finished record of each step, of any run below the root."""
    runs = root / "runs"
    records = [entry for run in runs.iterdir() for entry in read_records(str(root), run.name)] if runs.exists() else []
    done = [entry for entry in records if entry.status in ("succeeded", "reused")]
    return {entry.step: entry for entry in sorted(done, key=lambda entry: entry.started_at)}


def weights(root: Path) -> dict[str, str]:
    """SHA-256 of the adapters and models, and of the published model."""
    entries = latest(root)
    digests = {step: entries[step].outputs[OUTPUT[step]] for step in TRAINED}
    return digests | {"publish_model": entries["publish_model"].measured["sha256"]}


def not_current(root: Path) -> list[str]:
    """Lists the models that were not promoted exactly once, or whose CURRENT does not say so."""
    folders = [str(path) for path in root.glob("published/*")]
    histories = {folder: promote.read_history(folder) for folder in folders}
    return [
        f"{folder}: {len(history)} promotions, CURRENT is {promote.read_pointer(folder)}"
        for folder, history in histories.items()
        if [promote.read_pointer(folder)] != history
    ]


def broken(root: Path) -> list[str]:
    """Lists artifacts that have a final name but are not whole."""
    faults = []
    for path in root.glob(f"checkpoints/*/*/*/*/{COMPLETE}"):
        manifest = Manifest.model_validate_json(path.read_bytes())
        faults += [
            f"{path.parent}: {name}" for name, file in manifest.files.items()
            if not (path.parent / name).is_file() or digest(path.parent / name) != file.sha256
        ]  # fmt: skip
    for path in root.glob(f"results/*/*/{COMPLETE}"):
        result = results.Result.model_validate_json(path.read_bytes())
        faults += [
            f"{root / result.kept}: {name}" for name, sha256 in result.outputs.items()
            if not (root / result.kept / name).exists() or digest(root / result.kept / name) != sha256
        ]  # fmt: skip
    for path in root.glob("published/*/*/manifest.json"):
        files = json.loads(path.read_bytes())["files"]
        faults += [f"{path.parent}: {name}" for name, sha256 in files.items() if digest(path.parent / name) != sha256]
    for path in root.glob("published/*"):
        try:
            promote.read_history(str(path))
        except ValueError as error:
            faults.append(str(error))
    for path in root.glob("runs/*/*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            faults.append(f"{path}: half a record")
    return faults


def table(tally: Tally, *, seconds: float, seed: int) -> str:
    lines = ["| killed in | kills |", "|:--|--:|"]
    lines += [f"| {kind} | {number} |" for kind, number in sorted(tally.kills.items())]
    resumed = ", ".join(f"{step} {number}" for step, number in sorted(tally.resumed.items())) or "none"
    verdict = "all with the weights of a run that nobody killed, byte for byte" if not tally.faults else "NOT ALL WELL"
    lines += [
        "", f"{sum(tally.kills.values())} kills, {tally.num_rounds} models published in the end, {verdict}.",
        f"Went on from a checkpoint: {resumed}. {seconds:.0f} s, seed {seed}.", *tally.faults,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
