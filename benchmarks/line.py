"""The line's own cost: a whole local run on a tiny model, and the same again with nothing changed.

-> wall time of both runs; of each step the wall time of its process, and what of it is not the step's work

Own cost is all but the work of the steps: the start of processes, imports, digests, copies, records, walking the graph.
The import of torch, transformers, peft and trl is made once, in the process from which steps with a model are forked:
the first of them waits for the rest of it. What it takes a process of its own stands beside it.

    python -m benchmarks.line
"""

import json
import os
import re
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.measuring import Numbers, Runs, Side, Table, build_parser, in_turn, report

ENDED = re.compile(r"(?P<step>\w+) +(?:done|reused) +(?P<seconds>[\d.]+) s")
IMPORTS = "import torch, transformers, peft; from trl import SFTTrainer"
NUM_MODEL_STEPS = 6
ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Runs the line, and tells what the rows of its view and its records say of each step.
RUN = """
import subprocess, sys
from benchmarks.line import steps_of
root, *command = sys.argv[1:]
ended = subprocess.run(command, capture_output=True, text=True)
if ended.returncode:
    sys.exit(ended.stdout[-2000:] + ended.stderr[-2000:])
print(steps_of(root, ended.stdout))
"""


def steps_of(root: str, view: str) -> str:
    """JSON: seconds of the run's steps by name, and in total those that are not work."""
    wall = {match["step"]: float(match["seconds"]) for match in ENDED.finditer(view)}
    newest = max(Path(root, "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    records = [json.loads(file.read_text()) for file in newest.glob("*.*.json")]
    work = {one["step"]: one["work_seconds"] for one in records}
    own = {f"own {step}": round(seconds - work.get(step, 0.0), 2) for step, seconds in wall.items()}
    return json.dumps({"steps": len(wall), "work": round(sum(work.values()), 2), **own})


def write_line(folder: Path) -> Path:
    from examples.task_api.tiny import build_tiny_model
    from tests import tiny_line

    return tiny_line.write_line(folder, build_tiny_model(folder / "taught", seed=0, num_steps=60))


def sides(folder: Path) -> dict[str, Side]:
    command = [sys.executable, "run_pipeline.py", "--config", str(folder / "pipeline.yaml")]
    line = [sys.executable, "-c", RUN, str(folder / "root"), *command]
    forget = partial(shutil.rmtree, folder / "root", ignore_errors=True)
    return {
        "first run": Side(line, before=forget, env=ENV),
        "nothing changed": Side(line, env=ENV),
        "the imports in a process of their own": Side([sys.executable, "-W", "ignore", "-c", IMPORTS], env=ENV),
    }


def by_step(runs: Runs) -> Runs:
    """Makes each step of the first run a side."""
    steps = [key for key in runs["first run"][0] if key.startswith("own ")]
    return {step.removeprefix("own "): [{"seconds": one[step]} for one in runs["first run"]] for step in steps}


def totals(runs: Runs) -> Runs:
    own = [{"seconds": one["seconds"] - one["work"]} for one in runs["first run"]]
    plain: Runs = {name: [_without_steps(one) for one in rounds] for name, rounds in runs.items()}
    return plain | {"own cost of the first run": own}


def _without_steps(one: Numbers) -> Numbers:
    return {key: value for key, value in one.items() if not key.startswith("own ")}


def main(argv: list[str] | None = None) -> None:
    args = build_parser(__doc__, name="line", rounds=3, minutes=4).parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_line(folder)
        runs = in_turn(sides(folder), args)
    note = f"{os.cpu_count()} cores; {NUM_MODEL_STEPS} of the steps load a model."
    tables = [
        Table("run", "first run", totals(runs)),
        Table("own cost of a step", next(iter(by_step(runs))), by_step(runs)),
    ]
    report(args, note=note, tables=tables)


if __name__ == "__main__":
    main()
