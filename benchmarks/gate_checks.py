"""Times a gate with 8 checks, one of which sleeps: side by side, in order, and as plain calls.

number of checks, work and sleep of a check -> wall time of each way

Side by side, each check has its own process, as many at once as there are cores for this one; in order, they share a
process. Both kill a check that takes too long. Plain calls cannot, and show what that costs. The clock starts after all
imports.

    python -m benchmarks.gate_checks
    python -m benchmarks.gate_checks --sleep 0 --work 0      # the cost of the processes themselves
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial

from benchmarks.measuring import Side, Table, build_parser, in_turn, report
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
    """Uses this many seconds of CPU time, however many processes share the core."""
    end, rounds = time.process_time() + seconds, 0
    while time.process_time() < end:
        rounds += 1
    return {name: rounds}


def sleep(name: str, seconds: float) -> dict[str, int]:
    time.sleep(seconds)
    return {name: 0}


def checks(num: int, work_seconds: float, sleep_seconds: float) -> dict[str, Measure]:
    """The checks; the one that sleeps comes first, where it delays the others most."""
    parts = {"sleeps": partial(sleep, "sleeps", sleep_seconds)}
    return parts | {name: partial(work, name, work_seconds) for name in (f"works_{n}" for n in range(1, num))}


def seconds_of(way: str, parts: dict[str, Measure]) -> float:
    start = time.monotonic()
    measured = WAYS[way](parts, TIMEOUTS)
    seconds = time.monotonic() - start
    if measured.failures or measured.numbers.keys() != parts.keys():
        raise RuntimeError(f"{way}: {[check.sentence for check in measured.failures]}")
    return seconds


def side(way: str, *sizes: float) -> Side:
    """A process that runs one way and prints its seconds."""
    return Side([sys.executable, "-m", "benchmarks.gate_checks", "--way", way, *_flags(*sizes)])


def _flags(checks: int, work: float, sleep: float) -> list[str]:
    return [f"--checks={checks}", f"--work={work}", f"--sleep={sleep}"]


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="gate_checks", rounds=7, minutes=1)
    parser.add_argument("--checks", type=int, default=8, help="number of checks (default: %(default)s)")
    parser.add_argument("--work", type=float, default=0.2, help="CPU seconds of a check (default: %(default)s)")
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds that one sleeps (default: %(default)s)")
    parser.add_argument("--way", choices=WAYS, help="run this one once, in this process")
    args = parser.parse_args(argv)
    sizes = (args.checks, args.work, args.sleep)
    if args.way:
        print(json.dumps({"seconds": seconds_of(args.way, checks(*sizes))}))
        return
    runs = in_turn({way: side(way, *sizes) for way in WAYS}, args)
    note = f"{args.checks} checks, {args.work:g} s of work each, one of them sleeps {args.sleep:g} s instead."
    report(args, note=note, tables=[Table("way", "side by side", runs)])


if __name__ == "__main__":
    main()
