"""Sweeps: 8 trials against 8 runs by hand, and successive halving against the whole grid, to the same winner.

a tiny model, 2 learning rates x 2 ranks x 2 numbers of epochs -> wall time, CPU seconds and optimizer steps of each way

By hand: `run_pipeline.py` once for each combination, with a storage root of its own, through a line that publishes
behind the gate that judges the trials. That is as the line's own tests train, a second or two: what counts is what
surrounds it. Halving is measured where training outweighs that, on more rows and epochs: each rung starts and judges
its trials anew, and what it spares is training alone.

    python -m benchmarks.sweep
"""

import argparse
import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measuring import ROOT, Side, Table, build_parser, in_turn, report
from examples.task_api.generate import generate, write
from runner.exit_codes import PROMOTED, STOPPED

STEP = re.compile(r" step \d+/\d+ loss ")  # what a training logs at each step
ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SHORT = {"sft.learning_rate": [5e-3, 1e-3], "sft.lora_r": [8, 16], "sft.epochs": [2, 3]}
LONG = SHORT | {"sft.epochs": [16, 32]}
AT_ONCE = 2
HALVING = {"reduction_factor": 8, "num_rungs": 2}
NUM_ROWS = {"short": 160, "long": 600}
LINE = {
    "stages": {"dpo": {"enabled": False}, "merge": {"enabled": False}},
    "data": {"eval_fraction": 0.3},
}

# argv: folder of the results, how -> runs it, and prints how many optimizer steps were made, and the winner's loss
RUN = "import sys; from benchmarks.sweep import run; run(*sys.argv[1:])"


def run(folder: str, how: str) -> None:
    """Runs the sweep `how`.yaml of the folder, or all of its trials by hand, and prints what came of it."""
    result = by_hand(Path(folder)) if how == "by hand" else sweep(Path(folder), how)
    print(json.dumps(result))


def sweep(folder: Path, how: str) -> dict[str, float]:
    """A sweep from nothing."""
    root = folder / f"root of {how}"
    pipeline(folder, root, "--sweep", str(folder / f"{how}.yaml"), "--run-id", "bench")
    with open(root / "runs" / "bench" / "compare_trials" / "trials.csv", newline="") as file:
        best = next(csv.DictReader(file))
    (folder / f"{how}.winner.json").write_text(json.dumps({name: float(best[name]) for name in SHORT}))
    return {"optimizer_steps": num_steps(root), "held_out_loss": float(best["check_sft.held_out_loss"])}


def by_hand(folder: Path) -> dict[str, float]:
    """Each combination as a run of its own."""
    trials = list(itertools.product(*SHORT.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        trained = list(pool.map(partial(one_by_hand, folder), range(len(trials)), trials))
    return {"optimizer_steps": sum(steps for _, steps in trained), "held_out_loss": min(loss for loss, _ in trained)}


def one_by_hand(folder: Path, number: int, values: tuple[float, ...]) -> tuple[float, int]:
    """Held-out loss and optimizer steps of one."""
    root = folder / f"root {number}"
    settings = [word for name, value in zip(SHORT, values, strict=True) for word in ("--set", f"{name}={value}")]
    pipeline(folder, root, "--run-id", "bench", *settings)
    verdict = json.loads((root / "runs" / "bench" / "check_sft.1.json").read_text())["verdict"]
    return verdict["numbers"]["held_out_loss"], num_steps(root)


def pipeline(folder: Path, root: Path, *more: str) -> None:
    shutil.rmtree(root, ignore_errors=True)
    files = ["--config", str(folder / "pipeline.yaml"), "--storage-root", str(root)]
    ended = subprocess.run([sys.executable, "run_pipeline.py", *files, *more], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode not in (PROMOTED, STOPPED):
        sys.exit(ended.stdout[-2000:] + ended.stderr[-2000:])


def num_steps(root: Path) -> int:
    """Optimizer steps that a run's trainings have made."""
    return sum(len(STEP.findall(log.read_text())) for log in (root / "runs" / "bench" / "logs").glob("*.log"))


def write_line(folder: Path, *, num_rows: int, sweeps: dict[str, dict[str, Any]]) -> Path:
    """Writes the line with so many rows, and the sweeps over it."""
    from examples.task_api.tiny import build_tiny_model
    from tests import tiny_line

    folder.mkdir()
    tiny_line.write_line(folder, build_tiny_model(folder / "taught", seed=0, num_steps=60), **LINE)
    write(generate(num_sft=num_rows, seed=0), folder)
    config = yaml.safe_load((folder / "pipeline.yaml").read_text())
    config["validation"]["custom_checks"] = ["output_format_valid"]  # without a merge there is no model to be safe
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(config))
    for name, settings in sweeps.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"continue_with_best": False} | settings))
    return folder


def side(folder: Path, how: str) -> Side:
    return Side([sys.executable, "-c", RUN, str(folder), how], env=ENV)


def winner_of(folder: Path, *hows: str) -> str:
    """Settings of the winner that all of these sweeps have chosen.

    Raises:
        RuntimeError: their winners differ.
    """
    winners = {(folder / f"{how}.winner.json").read_text() for how in hows}
    if len(winners) > 1:
        raise RuntimeError(f"{' and '.join(hows)} have different winners: {' and '.join(sorted(winners))}")
    return ", ".join(f"{name} {value:g}" for name, value in json.loads(winners.pop()).items())


def tables(folder: Path, args: argparse.Namespace) -> tuple[list[Table], str]:
    """Runs both comparisons; returns their tables and the winner of the second."""
    short = write_line(
        folder / "short", num_rows=NUM_ROWS["short"], sweeps={"sweep": {"space": SHORT, "parallelism": AT_ONCE}}
    )
    sides = {"a sweep": side(short, "sweep"), "8 runs by hand": side(short, "by hand")}
    by_hand = Table("8 short trials, 2 at once", "a sweep", in_turn(sides, args))
    grid = {"space": LONG, "parallelism": AT_ONCE}
    sweeps = {"grid": grid, "halving": grid | {"halving": HALVING}}
    long = write_line(folder / "long", num_rows=NUM_ROWS["long"], sweeps=sweeps)
    runs = in_turn({"grid": side(long, "grid"), "halving": side(long, "halving")}, args)
    winner = winner_of(long, "grid", "halving")
    return [by_hand, Table("8 long trials, 2 at once", "grid", runs, compared="cpu_seconds")], winner


def main(argv: list[str] | None = None) -> None:
    args = build_parser(__doc__, name="sweep", rounds=1, minutes=3).parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        comparisons, winner = tables(Path(name), args)
    note = (
        "2 learning rates x 2 ranks x 2 numbers of epochs on the examples' tiny model, one OpenMP thread. Halving has "
        f"one in {HALVING['reduction_factor']} trials go on from its checkpoint after as small a share of its steps. "
        f"Both found the same winner: {winner}. A sweep has half of the held-out rows choose, and the other half judge "
        "its winner once more; by hand all of them choose."
    )
    report(args, note=note, tables=comparisons)


if __name__ == "__main__":
    main()
