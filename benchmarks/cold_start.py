"""Seconds from process start to verdict of the gate that loads no model: `python -m validators.data` on small rows.

number of rounds (and a tokenizer's folder) -> a table on stdout, JSON with every run

The rows are those of the Task API example (200 SFT rows, 100 preference rows), split as a run splits them. The tiny
tokenizer has 600 tokens; give a real one with --tokenizer, whose own file of some MB then has to be read. Beside the
gate stand what it cannot go below: the interpreter that does nothing, and its own --help, which imports and parses. CPU
seconds are those of all its processes: on a busy machine they say more than the clock.

    python -m benchmarks.cold_start
    python -m benchmarks.cold_start --tokenizer build/function_calling/base --output benchmarks/cold_start.json
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.task_api.generate import generate
from examples.task_api.tiny import build_tokenizer
from posttrain import data

OUTPUTS = ("verdict", "report", "summary", "metrics", "passed", "manifest")
KINDS = {"sft": ("sft",), "preference": ("preference",), "all": ("sft", "preference")}
STEPS = {"sft": "check_sft_data", "preference": "check_preference_data", "all": "check_data"}


def write_rows(folder: Path) -> int:
    """Writes the four files and gives the number of rows in them."""
    raw = generate(seed=0)
    for kind, name in (("sft", "sft"), ("preference", "preferences")):
        rows, _ = data.convert(raw[name], kind=kind, source=name)
        for side, part in zip(("train", "eval"), data.split(rows, 0.25), strict=True):
            data.write_jsonl(folder / f"{kind}_{side}.jsonl", part)
    return len(raw["sft"]) + len(raw["preferences"])


def write_tokenizer(folder: Path, model: Path | None) -> None:
    """The files that a run hands to the gate: no weights, which it would have to hash."""
    if model is None:
        build_tokenizer().save_pretrained(folder)
        return
    folder.mkdir()
    for pattern in ("tokenizer*.json", "chat_template.jinja", "special_tokens_map.json"):
        for file in model.glob(pattern):
            shutil.copy(file, folder)


def gate(folder: Path, tokenizer: Path, shape: str) -> list[str]:
    """The command of a gate in this shape of the graph."""
    files = [f"{kind}_{side}" for kind in KINDS[shape] for side in ("train", "eval")]
    return [
        sys.executable, "-m", "validators.data", f"--step={STEPS[shape]}", f"--tokenizer={tokenizer}",
        *(f"--{name.replace('_', '-')}={folder / name}.jsonl" for name in files),
        *(f"--{name}={folder / 'out' / name}" for name in OUTPUTS),
    ]  # fmt: skip


def commands(folder: Path, tokenizer: Path) -> dict[str, list[str]]:
    gates = {STEPS[shape]: gate(folder, tokenizer, shape) for shape in KINDS}
    floor = {"python": [sys.executable, "-c", "pass"], "--help": [sys.executable, "-m", "validators.data", "--help"]}
    return floor | gates


def run(command: list[str]) -> dict[str, float]:
    """Seconds on the clock and of CPU."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise RuntimeError(f"{command[:4]} exited {ended.returncode}: {ended.stderr[-500:]}")
    return {"seconds": seconds, "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(folder: Path, tokenizer: Path, *, rounds: int) -> dict[str, list[dict[str, float]]]:
    """All take turns. Each gate finds an empty storage root: it reuses no verdict."""
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds + 1):
        for name, command in commands(folder, tokenizer).items():
            storage = [f"--storage-root={folder / 'runs' / str(number)}"] if name.startswith("check") else []
            found = run([*command, *storage])
            if storage and (folder / "out" / "passed").read_text() != "true":
                raise RuntimeError(f"{name} did not pass: its time says nothing")
            if number:  # the first only warms the page cache
                runs.setdefault(name, []).append(found)
    return runs


def table(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, float | str]]:
    rows = []
    for name, results in runs.items():
        seconds = [one["seconds"] for one in results]
        rows.append(
            {
                "what": name,
                "median_seconds": round(statistics.median(seconds), 3),
                "fastest": round(min(seconds), 3),
                "slowest": round(max(seconds), 3),
                "cpu_seconds": round(statistics.median(one["cpu_seconds"] for one in results), 3),
            }
        )
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="runs of each (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="a model's folder (default: the example's tiny tokenizer)")
    parser.add_argument("--output", type=Path, help="JSON with every run (default: none)")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rows = write_rows(folder)
        write_tokenizer(folder / "tokenizer", args.tokenizer)
        runs = measure(folder, folder / "tokenizer", rounds=args.rounds)
    rows = table(runs)
    print(f"{num_rows} rows, {args.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':22}{'median s':>10}{'min':>8}{'max':>8}{'cpu s':>8}")
    for row in rows:
        seconds = f"{row['median_seconds']:>10.3f}{row['fastest']:>8.3f}{row['slowest']:>8.3f}"
        print(f"{row['what']:22}{seconds}{row['cpu_seconds']:>8.3f}")
    if args.output:
        report = {"num_rows": num_rows, "load": os.getloadavg()[0], "rows": rows, "runs": runs}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
