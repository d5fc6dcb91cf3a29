"""How a gate runs: it measures part by part, judges, and exits 0 with its verdict written.

flags of the gate, inputs, `work` -> verdict.json, report.html, metrics.json, output parameter `passed`

    def main(argv=None):
        args = build_parser().parse_args(argv)  # kfp_io.parser(__doc__), the inputs, add_gate_flags(parser)
        step = config.parse_step(config.CheckMergeStep, args.config, args.overrides)
        inputs = {"model": args.model}

        def work() -> Verdict:
            measured, failures = measure(...)  # measure_each({...}): the expensive part, once
            found = [*judge(measured, step.validation), *failures]
            return Verdict(gate=args.step, subject=subject(inputs), checks=found)

        run_gate(args, inputs=inputs, config=step, work=work)

A number that could not be measured is missing, and every builder of `posttrain.verdict` fails on a missing number.
Only a gate that cannot measure at all raises.
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from posttrain import record
from posttrain.verdict import Check, Verdict, holds
from validators import page

logger = logging.getLogger(__name__)


class VerdictOnAnswers(Verdict):
    """A verdict on generated answers. The worst of them are shown on its page and stand nowhere else."""

    answers: tuple[page.ShownAnswer, ...] = Field((), exclude=True)


def add_gate_flags(parser: argparse.ArgumentParser) -> None:
    """The outputs that every gate has."""
    parser.add_argument("--verdict", required=True, help="output: verdict, JSON")
    parser.add_argument("--report", required=True, help="output: the same as a page, HTML")
    parser.add_argument("--metrics", required=True, help="output: measured numbers, JSON")
    parser.add_argument("--passed", required=True, help="output: true or false")


def run_gate(
    args: argparse.Namespace, *, inputs: dict[str, str | None], config: BaseModel, work: Callable[[], Verdict]
) -> None:
    """Runs `work` inside the run record, writes what it found in every form, and logs each check on a line.

    Raises:
        whatever `work` raises: the gate could not measure at all, and there is no verdict.
    """
    outputs = {"verdict": args.verdict, "report": args.report, "metrics": args.metrics}

    def judge() -> dict[str, bool | float]:
        verdict = work()
        measured = {"passed": verdict.passed, **verdict.numbers}
        _write(args.verdict, verdict.model_dump_json(indent=2))
        _write(args.report, page.html(verdict, answers=getattr(verdict, "answers", ())))
        _write(args.metrics, json.dumps(measured, indent=2, allow_nan=False))
        return measured

    result = record.run_step(args, inputs=inputs, outputs=outputs, config=config, work=judge)
    for check in Verdict.read(Path(args.verdict).read_bytes()).checks:
        logger.log(logging.INFO if check.status == "passed" else logging.ERROR, "%s: %s", check.status, check.sentence)
    _write(args.passed, json.dumps(result.measured["passed"]))


def subject(inputs: dict[str, str | None]) -> dict[str, str]:
    """What the verdict binds to: input name -> SHA-256."""
    return {name: record.digest(path) for name, path in inputs.items() if path}


def measure_each(parts: dict[str, Callable[[], dict[str, Any]]]) -> tuple[dict[str, Any], list[Check]]:
    """Measures part after part and joins what they give, by name.

    A part that raises becomes a failed check of its name and hides no other part; what it would have given is missing.
    """
    measured, failures = {}, []
    for name, measure in parts.items():
        try:
            measured |= measure()
        except Exception as error:  # noqa: BLE001  whatever breaks one part, the others are still measured, and the gate does not pass
            logger.exception("%s: could not be measured", name)
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            failures.append(holds(name, False, detail=f"could not be measured, {cause}", remedy="Repair what raised."))
    return measured, failures


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
