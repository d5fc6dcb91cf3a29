"""End the run as FAILED, with the verdict of the gate that stopped it.

verdict -> the checks that did not pass on stderr, exit 1; where one is configured, a message to a webhook

Merely skipping the rest of the graph would leave the run green.
"""

import argparse
import sys
from pathlib import Path

from posttrain import config
from posttrain.pages import wording
from posttrain.step import frame, kfp_io, run, webhook
from posttrain.step.running import Running
from posttrain.verdict import Verdict

MAX_CHECKS = 5  # in a message


class Rejected(RuntimeError):
    """A gate did not pass. The message names the gate and its first failed check."""


def reject(verdict: Verdict) -> None:
    """Prints one line for each check that did not pass.

    Raises:
        Rejected: always. A passed verdict here is a fault of the graph, and ends the run too.
    """
    if verdict.outcome == "passed":
        raise Rejected(f"{verdict.gate} passed, but its reject step ran: the graph does not follow its gates")
    for check in verdict.failed_checks:
        print(f"{check.status}: {wording.line(check.sentence)}", file=sys.stderr)
    undecided = " (undecided)" if verdict.outcome == "undecided" else ""
    raise Rejected(f"rejected by {verdict.gate}{undecided}: {wording.reason(verdict)}")


def tell(verdict: Verdict, pipeline_id: str) -> str:
    """Tells the webhook which gate stops the run, and by which checks; returns what came of that."""
    how = "cannot decide" if verdict.outcome == "undecided" else "stops the run"
    title = f"{pipeline_id}: {verdict.gate} {how}"
    sentences = [f"{check.status}: {check.sentence}" for check in verdict.failed_checks]
    return webhook.send(title, [*sentences[:MAX_CHECKS], f"run {run.run_id()}"])


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--verdict", required=True, help="verdict of the gate that did not pass, JSON")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    step = config.parse_step(config.RejectStep, args.config, args.overrides)

    def work(_: Running) -> None:
        verdict = Verdict.read(Path(args.verdict).read_bytes())
        if step.notify:
            tell(verdict, step.pipeline_id)
        reject(verdict)

    try:
        frame.run_step(args, inputs={"verdict": args.verdict}, outputs={}, config=step, work=work, reusable=False)
    except Rejected as rejected:
        sys.exit(str(rejected))


if __name__ == "__main__":
    main()
