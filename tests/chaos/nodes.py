"""Kills a training on several nodes at random moments, and lets it go on: are the weights those of a quiet one?

    python -m tests.chaos.nodes --kills 20 [--seed 0] [--stage dpo]

A stub of the Kubernetes API starts the nodes as real groups of torchrun on this machine, two with two ranks each. What
is killed: the first rank or another one, the node of the first rank, the launch step, with one that adopts its TrainJob
at once or only when the lease has lapsed, and the step as Kubernetes ends one, by SIGTERM. Besides, the time of an
attempt is up, by the clock of its ranks or by Trainer's. Each kind comes before any comes again, and counts only if it
has hit a TrainJob at work. No two TrainJobs may ever train the same side by side, and no process may be left in the
end. Exit code: 0 if all that holds.
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
from tests.trainer_server import Running, Trainer, serving

KINDS = ("rank", "first rank", "first node", "launch", "launch and lease", "SIGTERM", "time limit", "deadline")
ADOPTED, TIME_LIMIT = "adopted: an earlier pod", "the time limit is near"  # in the log of launch step and workers
WORKERS = {"num_nodes": 2, "image": f"train@sha256:{'0' * 64}", "runtime": "posttrain", "placement": {},
           "deadline_minutes": 10, "queue_minutes": 10}  # fmt: skip
# 160 steps, which take about as long as the start of the processes before them.
SETTINGS = {
    "epochs": 40,
    "max_seq_length": 256,
    "lora_r": 4,
    "batch_size": 1,
    "gradient_accumulation": 4,
    "save_steps": 10,
}
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

    def start(self, root: Path, *, limit_seconds: float | None = None) -> subprocess.Popen:
        """Starts the launch step. An attempt that it creates may have less time than others."""
        settings = {self.stage: SETTINGS, "training": {"num_processes": 4}, "workers": WORKERS}
        flags = {"step": f"train_{self.stage}", "storage-root": root, "config": json.dumps(settings)}
        flags |= {MODEL[self.stage]: self.model} | self.rows
        flags |= {name: root / "out" / name for name in OUTPUTS}
        argv = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
        environment = {
            "KUBERNETES_SERVICE_HOST": "localhost",
            "KUBERNETES_SERVICE_PORT": str(self.trainer.port),
            "KFP_POD_NAME": "train-1",
            "LAPSE_SECONDS": str(LAPSE_SECONDS),
            "LIMIT_SECONDS": str(limit_seconds or ""),
            RUN_ID_ENV: root.name,
        }
        command = [sys.executable, "-m", "tests.launch_step", str(self.trainer.folder), *argv]
        with (self.folder / "launch.log").open("a") as log:
            return subprocess.Popen(command, env=os.environ | environment, stderr=log, stdout=log)

    def alive(self) -> list[str]:
        """Returns the TrainJobs that have nodes which run."""
        jobs = dict(self.trainer.jobs | self.trainer.gone)
        return [name for name, job in jobs.items() if any(node.poll() is None for node in job.nodes)]

    def job(self) -> Running | None:
        """Returns the TrainJob that is at work: nobody has ended it, and neither has it ended itself."""
        jobs = list(self.trainer.jobs.values())
        return next((job for job in jobs if job.nodes and job.stopped_at is None and job.ended is None), None)

    def ranks(self) -> dict[int, psutil.Process]:
        """Returns the processes of all ranks, once torchrun has started them on all nodes; before, none."""
        job = self.job()
        ranks = ranks_of(job) if job else {}
        return ranks if len(ranks) == 4 else {}

    def wait_for_end(self) -> list[str]:
        """Waits until no TrainJob has nodes that run, and returns those that still have."""
        deadline = time.monotonic() + MAX_SECONDS / 3
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.alive()

    def log(self) -> str:
        """Returns what all launch steps and workers have logged so far."""
        return (self.folder / "launch.log").read_text()


@dataclass
class Kills:
    """Deals out kinds of kills in random order: each comes before any comes again, and until it has hit."""

    random: random.Random
    waiting: list[str] = field(default_factory=list)

    def next(self) -> str:
        if not self.waiting:
            self.waiting = self.random.sample(KINDS, len(KINDS))
        return self.waiting[-1]

    def hit(self) -> None:
        self.waiting.pop()


def training_in(folder: Path, trainer: Trainer, stage: str) -> Training:
    """Makes a training of 16 rows on a tiny model."""
    write(generate(num_sft=48, num_preferences=32, num_eval=8, num_red_team=8, num_off_topic=8, seed=0), folder / "api")
    rows = write_rows(folder, folder / "api")[stage]
    return Training(stage, folder, trainer, build_tiny_model(folder / "model", seed=0), rows)


def quiet(training: Training, root: Path) -> tuple[str, float]:
    """Trains without a kill; returns the digest of the adapter, and how many seconds its ranks were at work."""
    process = training.start(root)
    while process.poll() is None and not training.ranks():
        time.sleep(0.05)
    began = time.monotonic()
    if process.wait(MAX_SECONDS) != 0:
        raise RuntimeError("the training that nobody killed failed:\n" + training.log())
    seconds = time.monotonic() - began
    training.wait_for_end()
    return digest(root / "out" / "adapter"), seconds


def storm(training: Training, root: Path, num_kills: int, tally: Tally, kills: Kills, seconds: float) -> None:
    """Kills a training until there were enough kills, or it is through before the next one."""
    first, is_through = len(training.trainer.created()), False
    for _ in range(MAX_ATTEMPTS):
        kind = kills.next() if tally.kills.total() < num_kills else ""
        if attempt(kind, training, root, kills.random.uniform(0.1, 0.95) * seconds, tally=tally, random_=kills.random):
            kills.hit()
            tally.kills[kind] += 1
            print(f"kill {tally.kills.total()}: {kind}", flush=True)
        elif is_through := (root / "out" / "logs").exists():
            break
    if not is_through:
        tally.faults.append(f"not through after {MAX_ATTEMPTS} attempts")
    created = training.trainer.created()[first:]
    tally.num_jobs += len(created)
    if len(set(created)) < len(created):
        tally.faults.append("an attempt had two TrainJobs")
    tally.faults += [f"{name} is left" for name in training.wait_for_end()]
    shutil.rmtree(root / "checkpoints")


def attempt(kind: str, training: Training, root: Path, seconds: float, *, tally: Tally, random_: random.Random) -> bool:
    """Starts the launch step, kills something when its ranks have worked for some seconds; tells whether that hit."""
    logged, has_hit = len(training.log()) if (training.folder / "launch.log").exists() else 0, False
    process = training.start(root, limit_seconds=seconds / 2 if kind == "time limit" else None)
    if kind and kind != "time limit":
        while not training.ranks() and watch(training, process, seconds=0.2, tally=tally):
            pass
        has_hit = watch(training, process, seconds=seconds, tally=tally) and kill(kind, training, process, random_)
    if watch(training, process, seconds=MAX_SECONDS, tally=tally):
        process.kill()
        tally.faults.append(f"{kind or 'an attempt'}: hangs")
    process.wait()
    return has_hit or (kind == "time limit" and TIME_LIMIT in training.log()[logged:])


def watch(training: Training, process: subprocess.Popen, *, seconds: float, tally: Tally) -> bool:
    """Waits while a launch step runs, and tells whether it still does."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        if len(alive := training.alive()) > 1 and f"side by side: {alive}" not in tally.faults:
            tally.faults.append(f"side by side: {alive}")
        time.sleep(0.05)
    return process.poll() is None


def kill(kind: str, training: Training, process: subprocess.Popen, random_: random.Random) -> bool:
    """Kills a part of a training that is at work, or all of its launch step; returns whether there was such a part."""
    job, ranks = training.job(), training.ranks()
    if not job or not ranks:
        return False
    if kind == "SIGTERM":
        process.terminate()
    elif kind == "deadline":
        job.job["spec"]["activeDeadlineSeconds"] = 0
    elif kind.startswith("launch"):
        process.kill()
        if kind == "launch and lease":
            training.wait_for_end()
    else:
        first = [psutil.Process(job.nodes[0].pid), ranks[0], ranks[1]]
        victims = {"first rank": [ranks[0]], "first node": first}.get(kind) or [ranks[random_.randint(1, 3)]]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
    return True


def ranks_of(job: Running) -> dict[int, psutil.Process]:
    """Returns the processes of a TrainJob that torchrun has started, by their ranks."""
    ranks = {}
    for node in job.nodes:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(node.pid).children():
                if rank := process.environ().get("RANK"):
                    ranks[int(rank)] = process
    return ranks


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=MODEL, default="sft")
    args = parser.parse_args(argv)
    if args.kills < len(KINDS):
        parser.error(f"--kills {args.kills}: there are {len(KINDS)} kinds, and each must come")
    began, kills = time.monotonic(), Kills(random.Random(args.seed))
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "credentials") as trainer:
        folder, trainer.grace_seconds = Path(name), 60
        trainer.environment = {"OMP_NUM_THREADS": "1"}
        training = training_in(folder, trainer, args.stage)
        expected, seconds = quiet(training, folder / "quiet")
        print(f"left in peace, its ranks worked for {seconds:.0f} s", flush=True)
        tally = Tally()
        while tally.kills.total() < args.kills and not tally.faults:
            root = folder / f"round-{tally.num_rounds}"
            storm(training, root, args.kills, tally, kills, seconds)
            tally.num_rounds += 1
            if digest(root / "out" / "adapter") != expected:
                tally.faults.append(f"round {tally.num_rounds}: other weights")
        if not (num_adopted := training.log().count(ADOPTED)):
            tally.faults.append("no TrainJob was adopted")
        log = training.log() if tally.faults else ""
    print(log, *(f"{kind}: {count}" for kind, count in sorted(tally.kills.items())), sep="\n")
    counts = (
        f"{tally.kills.total()} kills, {tally.num_rounds} trainings, {tally.num_jobs} TrainJobs, {num_adopted} adopted"
    )
    seconds, outcome = time.monotonic() - began, tally.faults or "the weights of the quiet one"
    print(f"{args.stage}: {counts}, {seconds:.0f} s, seed {args.seed}: {outcome}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
