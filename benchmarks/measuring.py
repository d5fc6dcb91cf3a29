"""The frame of all benchmarks: runs what is compared in turn, each in a process of its own, and keeps every figure.

sides (name -> command), rounds -> benchmarks/results/<name>.json, from which benchmarks/table.py makes README.md

A script describes its sides and lets them take turns:

    sides = {"ours": Side([sys.executable, "-m", "posttrain.merge", ...]), "cp -r": Side(["cp", "-r", base, model])}
    runs = in_turn(sides, args)
    report(args, note="what was compared", tables=[Table("1.5B", ours="ours", runs=runs)])

Wall time and CPU seconds are those of the process with all that it starts and waits for; peak memory is that of the
largest of them. What a side prints as a JSON object on its last line is kept beside these, and may replace them:
{"seconds": 1.5} from a clock of its own.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import table

ROOT = Path(__file__).parents[1]

# A child's peak memory starts at what its parent holds: a small process starts it, and writes what it took to argv[1].
LAUNCH = """
import json, os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
usage_of_child = {"seconds": time.monotonic() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
with open(sys.argv[1], "w") as file:
    json.dump(usage_of_child | {"peak_mb": usage.ru_maxrss / 1e3}, file)
sys.exit(min(os.waitstatus_to_exitcode(status), 125) % 256)
"""

Numbers = dict[str, float]
Runs = dict[str, list[Numbers]]  # by side, in the order of the rounds


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Side:
    """One of what is compared. `before` and `after` are not timed; `after` raises where the result is wrong."""

    command: list[str]
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """One comparison. Each side's `compared` is divided by that of side `ours`, round by round."""

    title: str
    ours: str
    runs: Runs
    compared: str = "seconds"


def build_parser(doc: str, *, name: str, rounds: int, minutes: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each side (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="begin no round that would end later (default: %(default)s)"
    )
    output = table.RESULTS / f"{name}.json"
    parser.add_argument("--output", type=Path, default=output, help="JSON with every run (default: %(default)s)")
    parser.set_defaults(title=doc.strip().partition("\n")[0].rstrip("."))
    return parser


def in_turn(sides: dict[str, Side], args: argparse.Namespace, *, warm_up: bool = False) -> Runs:
    """Every side once a round, `args.rounds` times, or as often as `args.minutes` allow, and once at least.

    Args:
        warm_up: whether a first round only fills the page cache.
    """
    runs: Runs = {name: [] for name in sides}
    started = begun = time.monotonic()
    for number in range(-1 if warm_up else 0, args.rounds):
        for name, side in sides.items():
            numbers = run(side)
            if number >= 0:
                runs[name].append(numbers)
                print(f"round {number + 1}, {name}: {numbers['seconds']:.2f} s", file=sys.stderr, flush=True)
        now = time.monotonic()
        if number >= 0 and 2 * now - begun - started > 60 * args.minutes:
            break
        begun = now
    return runs


def run(side: Side) -> Numbers:
    """Seconds, CPU seconds and peak memory of one process, and what it tells itself."""
    side.before()
    with tempfile.NamedTemporaryFile() as figures:
        command = [sys.executable, "-ISc", LAUNCH, figures.name, *side.command]
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT, env=os.environ | side.env
        )
        if ended.returncode:
            said = ended.stderr.strip() or ended.stdout.strip()
            raise RuntimeError(f"{side.command[:4]} exited {ended.returncode}: {said[-800:]}")
        numbers = json.load(figures)
    side.after()
    last = ended.stdout.strip().rpartition("\n")[2]
    return numbers | (json.loads(last) if last.startswith("{") else {})


def report(args: argparse.Namespace, *, note: str, tables: list[Table], quiet: bool = False) -> None:
    """Writes all figures to `args.output`, and their tables to stdout unless `quiet`."""
    results = {
        "title": args.title,
        "note": note,
        "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 2),
        "settings": {key: value for key, value in vars(args).items() if isinstance(value, int | float)},
        "tables": [asdict(one) for one in tables],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if not quiet:
        print(table.section(results))


def machine() -> str:
    """GPU if there is one, processor, cores that may be used, memory, Python."""
    cpu = re.search(r"model name\s*: (.+)", _read("/proc/cpuinfo"))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = cpu[1] if cpu else platform.machine()
    return (
        f"{gpu()}{name}, {len(os.sched_getaffinity(0))} cores, {memory_gb:.0f} GB, Python {platform.python_version()}"
    )


def gpu() -> str:
    """Name and memory of each GPU, by NVIDIA's tool."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return "".join(f"{line}, " for line in done.stdout.splitlines()) if done.returncode == 0 else ""


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
