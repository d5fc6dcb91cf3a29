"""Kills a training on several nodes at random moments, and lets it go on: are the weights those of a quiet one?

    python -m tests.chaos.nodes --kills 20 [--seed 0] [--stage dpo]

A stub of the Kubernetes API starts the nodes as real groups of torchrun on this machine, two with two ranks each. What
is killed: a rank, the node of the first rank, the launch step, with one that adopts its TrainJob at once or only when
the lease has lapsed, and the step as Kubernetes ends one, by SIGTERM. No two TrainJobs may ever train the same side by
side, and no process may be left in the end. Exit code: 0 if all that holds.
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
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from examples.task_api.generate import generate, write
from examples.task_api.tiny import build_tiny_model
from posttrain.config import RUN_ID_ENV
from posttrain.step.digests import digest
from tests.stages import MODEL, OUTPUTS, write_rows
from tests.trainer_server import Trainer, serving

KINDS = ("rank", "first node", "launch", "launch and lease", "SIGTERM")
WORKERS = {"num_nodes": 2, "image": f"train@sha256:{'0' * 64}", "runtime": "posttrain", "placement": {},
           "deadline_minutes": 10, "queue_minutes": 10}  # fmt: skip
SETTINGS = {"max_seq_length": 256, "lora_r": 4, "batch_size": 1, "gradient_accumulation": 4, "save_steps": 2}
LAPSE_SECONDS = 4
MAX_SECONDS = 300  # of one attempt; more is a hang
MAX_ATTEMPTS = 30


@dataclass
class Tally:
    """Counts of kills and attempts, and the faults."""

    kills: Counter = field(default_factory=Counter)
    num_jobs: int = 0
    num_rounds: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass
class Training:
    """A stage on two nodes, with its files in a folder."""

    stage: str
    folder: Path
    trainer: Trainer
    model: Path
    rows: dict[str, str]

    def start(self, root: Path) -> subprocess.Popen:
        """Starts the launch step."""
        settings = {self.stage: SETTINGS | {"epochs": 2}, "training": {"num_processes": 4}, "workers": WORKERS}
        flags = {"step": f"train_{self.stage}", "storage-root": root, "config": json.dumps(settings)}
        flags |= {MODEL[self.stage]: self.model} | self.rows
        flags |= {name: root / "out" / name for name in OUTPUTS}
        argv = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
        environment = {
            "KUBERNETES_SERVICE_HOST": "localhost",
            "KUBERNETES_SERVICE_PORT": str(self.trainer.port),
            "KFP_POD_NAME": "train-1",
            "LAPSE_SECONDS": str(LAPSE_SECONDS),
            RUN_ID_ENV: root.name,
        }
        command = [sys.executable, "-m", "tests.launch_step", str(self.trainer.folder), *argv]
        with (self.folder / "launch.log").open("a") as log:
            return subprocess.Popen(command, env=os.environ | environment, stderr=log, stdout=log)

    def alive(self) -> list[str]:
        """Returns the TrainJobs that have nodes which run."""
        jobs = dict(self.trainer.jobs | self.trainer.gone)
        return [name for name, job in jobs.items() if any(node.poll() is None for node in job.nodes)]

    def active(self) -> list[str]:
        """Returns the TrainJobs that neither are complete nor have failed; pods of a failed one are being ended."""
        return [name for name in self.alive() if self.trainer.jobs.get(name) and self.trainer.jobs[name].ended is None]

    def wait_for_end(self) -> list[str]:
        """Waits until no TrainJob has nodes that run, and returns those that still have."""
        deadline = time.monotonic() + MAX_SECONDS / 3
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.alive()

    def nodes(self) -> list[subprocess.Popen]:
        return next((job.nodes for job in list(self.trainer.jobs.values()) if job.nodes and job.ended is None), [])


def training_in(folder: Path, trainer: Trainer, stage: str) -> Training:
    """Makes a training of 16 rows on a tiny model."""
    write(generate(num_sft=48, num_preferences=32, num_eval=8, num_red_team=8, num_off_topic=8, seed=0), folder / "api")
    rows = write_rows(folder, folder / "api")[stage]
    return Training(stage, folder, trainer, build_tiny_model(folder / "model", seed=0), rows)


def quiet(training: Training, root: Path) -> tuple[str, float]:
    """Trains without a kill; returns the digest of the adapter, and seconds."""
    began, process = time.monotonic(), training.start(root)
    if process.wait(MAX_SECONDS) != 0:
        raise RuntimeError("the training that nobody killed failed:\n" + (training.folder / "launch.log").read_text())
    seconds = time.monotonic() - began
    training.wait_for_end()
    return digest(root / "out" / "adapter"), seconds


def storm(training: Training, root: Path, num_kills: int, tally: Tally, random_: random.Random, seconds: float) -> None:
    """Kills a training until there were enough kills, or it is through before the next one."""
    first, is_through = len(training.trainer.created()), False
    for _ in range(MAX_ATTEMPTS):
        process = training.start(root)
        kind = random_.choice(KINDS) if tally.kills.total() < num_kills else None
        if kind and watch(training, process, seconds=random_.uniform(0.1, 1.0) * seconds, tally=tally):
            kill(kind, training, process, random_)
            tally.kills[kind] += 1
            print(f"kill {tally.kills.total()}: {kind}", flush=True)
        watch(training, process, seconds=MAX_SECONDS, tally=tally)
        if is_through := process.wait() == 0:
            break
    if not is_through:
        tally.faults.append(f"not through after {MAX_ATTEMPTS} attempts")
    created = training.trainer.created()[first:]
    tally.num_jobs += len(created)
    if len(set(created)) < len(created):
        tally.faults.append("an attempt had two TrainJobs")
    tally.faults += [f"{name} is left" for name in training.wait_for_end()]
    shutil.rmtree(root / "checkpoints")


def watch(training: Training, process: subprocess.Popen, *, seconds: float, tally: Tally) -> bool:
    """Waits while a launch step runs, and tells whether it still does."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if len(active := training.active()) > 1 and f"side by side: {active}" not in tally.faults:
            tally.faults.append(f"side by side: {active}")
        time.sleep(0.05)
    return process.poll() is None


def kill(kind: str, training: Training, process: subprocess.Popen, random_: random.Random) -> None:
    """Kills a part of the training, or all of the launch step."""
    nodes = training.nodes()
    if kind == "SIGTERM":
        process.terminate()
    elif kind.startswith("launch"):
        process.kill()
        if kind == "launch and lease":
            training.wait_for_end()
    elif nodes:
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(nodes[0].pid if kind == "first node" else random_.choice(nodes).pid)
            ranks = family.children(recursive=True)
            victims = [family, *ranks] if kind == "first node" or not ranks else [random_.choice(ranks)]
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=MODEL, default="sft")
    args = parser.parse_args(argv)
    began, random_ = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "credentials") as trainer:
        folder, trainer.grace_seconds = Path(name), 60
        trainer.environment = {"OMP_NUM_THREADS": "1"}
        training = training_in(folder, trainer, args.stage)
        expected, seconds = quiet(training, folder / "quiet")
        print(f"left in peace: {seconds:.0f} s", flush=True)
        tally = Tally()
        while tally.kills.total() < args.kills and not tally.faults:
            root = folder / f"round-{tally.num_rounds}"
            storm(training, root, args.kills, tally, random_, seconds)
            tally.num_rounds += 1
            if digest(root / "out" / "adapter") != expected:
                tally.faults.append(f"round {tally.num_rounds}: other weights")
        log = (folder / "launch.log").read_text() if tally.faults else ""
    print(log, *(f"{kind}: {count}" for kind, count in sorted(tally.kills.items())), sep="\n")
    print(f"{tally.kills.total()} kills, {tally.num_rounds} trainings, {tally.num_jobs} TrainJobs, ", end="")
    print(f"{time.monotonic() - began:.0f} s, seed {args.seed}: {tally.faults or 'the weights of the quiet one'}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
