"""Wall time of a gate with 8 checks of which one sleeps: side by side, in order, and as plain calls.

number of checks, work and sleep of a check (--checks, --work, --sleep) -> a table on stdout, JSON with every round

Side by side each check has a process of its own, as many at once as this process may use cores; in order they share
one. Both end a check that takes too long. Plain calls cannot, and are here as the price of that. The three take turns.

    python benchmarks/gate_checks.py
    python benchmarks/gate_checks.py --sleep 0 --work 0      # what the processes themselves cost
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from validators import measuring
from validators.measuring import Measure, Timeouts

TIMEOUTS = Timeouts(600)


def plain(parts: dict[str, Measure], _: Timeouts) -> measuring.Measured:
    """One call after the other in this process."""
    return measuring.Measured({name: number for measure in parts.values() for name, number in measure().items()})


WAYS: dict[str, Callable] = {
    "side by side": measuring.side_by_side,
    "in order": measuring.in_order,
    "plain calls": plain,
}


def work(name: str, seconds: float) -> dict[str, int]:
    """Keeps a core busy for so many seconds of its time, however many processes share it."""
    end, rounds = time.process_time() + seconds, 0
    while time.process_time() < end:
        rounds += 1
    return {name: rounds}


def sleep(name: str, seconds: float) -> dict[str, int]:
    time.sleep(seconds)
    return {name: 0}


def checks(num: int, work_seconds: float, sleep_seconds: float) -> dict[str, Measure]:
    """The one that sleeps comes first, where it delays the others most."""
    parts = {"sleeps": partial(sleep, "sleeps", sleep_seconds)}
    return parts | {name: partial(work, name, work_seconds) for name in (f"works_{n}" for n in range(1, num))}


def measure(parts: dict[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, run in WAYS.items():
            start = time.monotonic()
            found = run(parts, TIMEOUTS)
            seconds[way].append(time.monotonic() - start)
            if found.failures or found.numbers.keys() != parts.keys():
                raise RuntimeError(f"{way}: {[check.sentence for check in found.failures]}")
    return seconds


def table(seconds: dict[str, list[float]]) -> list[dict[str, float | str]]:
    """Median, fastest, slowest, and how many times the median of side by side; ours is the divisor."""
    ours = statistics.median(seconds["side by side"])
    return [
        {
            "what": way,
            "median_seconds": round(statistics.median(found), 3),
            "fastest": round(min(found), 3),
            "slowest": round(max(found), 3),
            "times_side_by_side": round(statistics.median(found) / ours, 2),
        }
        for way, found in seconds.items()
    ]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=8, help="number of checks (default: %(default)s)")
    parser.add_argument("--work", type=float, default=0.2, help="CPU seconds of a check (default: %(default)s)")
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds that one sleeps (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="JSON with every round")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    seconds = measure(checks(args.checks, args.work, args.sleep), args.rounds)
    rows, cores, load = table(seconds), len(os.sched_getaffinity(0)), os.getloadavg()[0]
    shape = f"{args.checks} checks, {args.work:g} s of work each, one of them sleeps {args.sleep:g} s instead"
    print(f"{shape}; {args.rounds} rounds, {cores} cores, load {load:.1f}")
    print(f"{'':14}{'median s':>10}{'min':>8}{'max':>8}{'x side by side':>16}")
    for row in rows:
        spread = f"{row['median_seconds']:>10}{row['fastest']:>8}{row['slowest']:>8}"
        print(f"{row['what']:14}{spread}{row['times_side_by_side']:>16}")
    if args.output:
        report = vars(args) | {"cores": cores, "load": round(load, 2), "rows": rows, "seconds": seconds}
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
