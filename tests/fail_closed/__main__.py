"""Every gate with every outcome -> a table in Markdown: did the next stage run, and how did the run end?

python -m tests.fail_closed                     a few hundred runs, a minute or two
python -m tests.fail_closed --output FILE       the table also in a file

Exits 1 if anything but a pass went on or ended green.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fail_closed import runs
from tests.fail_closed.outcomes import OUTCOMES
from tests.fail_closed.runs import GATES


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="the table in a file too")
    args = parser.parse_args(argv)
    started = time.monotonic()
    endings = {(*gate, outcome): play(*gate, outcome) for outcome in OUTCOMES for gate in GATES}
    faults = [f"{key}: {fault}" for key, ending in endings.items() for fault in runs.faults(ending, key[2])]
    text = table(endings) + f"\n{summary(endings, time.monotonic() - started)}\n"
    print(text, *faults, sep="\n")
    if args.output:
        Path(args.output).write_text(text, encoding="utf-8")
    return int(bool(faults))


def play(shape: str, gate: str, outcome: str) -> runs.Ending:
    with tempfile.TemporaryDirectory() as folder:
        return runs.play(Path(folder), shape, gate, outcome)


def table(endings: dict[tuple[str, str, str], runs.Ending]) -> str:
    """A row for each outcome, a column for each gate of each shape."""
    head = ["outcome", *(f"{gate}, {shape}" for shape, gate in GATES)]
    rows = [[outcome, *(cell(endings[*gate, outcome]) for gate in GATES)] for outcome in OUTCOMES]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def cell(ending: runs.Ending) -> str:
    """`stopped, red (2)`: the next stage did not run, the run is FAILED, run_pipeline exits 2."""
    went_on, colour = "went on" if ending.next_stage_ran else "stopped", "green" if ending.green else "red"
    return f"{went_on}, {colour} ({ending.exit_code})"


def summary(endings: dict[tuple[str, str, str], runs.Ending], seconds: float) -> str:
    promoted = [key for key, ending in endings.items() if ending.is_current]
    green = [key for key, ending in endings.items() if ending.green]
    return (
        f"{len(endings)} runs in {seconds:.0f} s. Promoted: {len(promoted)}, green: {len(green)}, of which with an "
        f"outcome other than a pass: {sum(not OUTCOMES[key[2]].passes for key in {*promoted, *green})}. "
        "In brackets the exit code of run_pipeline: 0 promoted, 2 stopped by a gate, 1 anything else."
    )


if __name__ == "__main__":
    sys.exit(main())
