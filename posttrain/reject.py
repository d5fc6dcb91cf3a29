"""End the run FAILED with the verdict of the gate that stopped it.

verdict -> the checks that did not pass on stderr, exit 1

A branch that is merely skipped would leave the run green.
"""

import argparse
import sys
from pathlib import Path

from posttrain import config
from posttrain.pages import wording
from posttrain.step import frame, kfp_io
from posttrain.step.running import Running
from posttrain.verdict import Verdict


class Rejected(RuntimeError):
    """The gate did what it is for. Its message names the gate and what failed."""


def reject(verdict: Verdict) -> None:
    """Prints each check that did not pass on a line.

    Raises:
        Rejected: always; that a passed verdict came here is an error of the graph, and the run does not go on either.
    """
    if verdict.outcome == "passed":
        raise Rejected(f"{verdict.gate} passed, but its reject was run: the graph does not follow its gates")
    for check in verdict.failed_checks:
        print(f"{check.status}: {wording.line(check.sentence)}", file=sys.stderr)
    undecided = ", which is undecided" if verdict.outcome == "undecided" else ""
    raise Rejected(f"rejected by {verdict.gate}{undecided}: {wording.reason(verdict)}")


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--verdict", required=True, help="verdict of the gate that did not pass, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.StepSection, args.config, args.overrides)

    def work(_: Running) -> None:
        reject(Verdict.read(Path(args.verdict).read_bytes()))

    try:
        frame.run_step(args, inputs={"verdict": args.verdict}, outputs={}, config=step, work=work, reusable=False)
    except Rejected as rejected:
        sys.exit(str(rejected))


if __name__ == "__main__":
    main()
