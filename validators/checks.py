"""How a gate runs: it measures, judges, and exits 0 with its verdict written.

flags of the gate, inputs, `work` -> verdict.json, report.html, summary.md, metrics.json, output parameter `passed`;
answers.jsonl where models answer

    def main(argv=None):
        args = build_parser().parse_args(argv)  # kfp_io.parser(...), the inputs, add_gate_flags(parser)
        step = config.parse_step(config.CheckMergeStep, args.config, args.overrides)
        inputs = {"model": args.model}

        def work(running: Running) -> GateVerdict:
            measured = measuring.side_by_side({...}, checks.timeouts(step.validation))  # the expensive part, once
            judged = (*judge(measured.read(Numbers), step.validation), *measured.failures)
            return GateVerdict(gate=running.step, subject=running.inputs, checks=judged, seconds=measured.seconds)

        run_gate(args, inputs=inputs, config=step, work=work)

Each gate has a frozen dataclass `Numbers`, in which None stands for what could not be measured. No builder of
`posttrain.verdict` passes on None. Only a gate that cannot measure at all raises.
"""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, Field

from posttrain import storage
from posttrain.config import CheckTimeouts, masking
from posttrain.pages import answers
from posttrain.pages.answers import AnsweredPrompt
from posttrain.step import frame
from posttrain.step.running import Running
from posttrain.verdict import Check, Verdict
from validators import measuring, page, summary

OUTPUTS = ("verdict", "report", "summary", "metrics")  # files that every gate writes, beside `passed`
ANSWERS = "answers"  # a file of the gates in which models answer

logger = logging.getLogger(__name__)


class GateVerdict(Verdict):
    """A verdict with the answers it judged. They stand in answers.jsonl, and some of them on its page."""

    answers: tuple[AnsweredPrompt, ...] = Field((), exclude=True)


def add_gate_flags(parser: argparse.ArgumentParser, *, with_answers: bool = False) -> None:
    """Adds the outputs that every gate writes, and that of the gates in which models answer."""
    if with_answers:
        parser.add_argument("--answers", required=True, help="output: prompts and answers of each model, JSONL")
    parser.add_argument("--verdict", required=True, help="output: verdict, JSON")
    parser.add_argument("--report", required=True, help="output: the same as a page, HTML")
    parser.add_argument("--summary", required=True, help="output: the same as text, Markdown")
    parser.add_argument("--metrics", required=True, help="output: measured numbers, JSON")
    parser.add_argument("--passed", required=True, help="output: true or false")


def run_gate(
    args: argparse.Namespace,
    *,
    inputs: dict[str, str | None],
    config: BaseModel,
    work: Callable[[Running], GateVerdict],
    outputs: dict[str, str] | None = None,
    reusable: bool = True,
) -> None:
    """Runs `work` as a recorded step, writes its verdict in every form, and logs one line per check.

    Args:
        outputs: further files that `work` itself writes, output name -> path.
        reusable: False if the verdict depends on something that the record cannot see, such as the user's code.

    Raises:
        whatever `work` raises: the gate could not measure at all, and there is no verdict.
    """
    names = [name for name in (*OUTPUTS, ANSWERS) if getattr(args, name, None)]
    outputs = {name: getattr(args, name) for name in names} | (outputs or {})

    def judge(running: Running) -> dict[str, bool | float]:
        verdict = without_secrets(work(running))
        measured = {**verdict.numbers, "passed": verdict.passed}
        _write(args.verdict, verdict.model_dump_json(indent=2))
        _write(args.report, page.html(verdict, answers=verdict.answers))
        _write(args.summary, summary.markdown(verdict))
        if ANSWERS in outputs:
            _write(outputs[ANSWERS], answers.to_jsonl(verdict.answers))
        _write(args.metrics, json.dumps(measured, indent=2, allow_nan=False))
        return measured

    result = frame.run_step(args, inputs=inputs, outputs=outputs, config=config, work=judge, reusable=reusable)
    verdict = Verdict.read(Path(args.verdict).read_bytes())
    if verdict.passed is not result.measured["passed"]:
        raise ValueError(f"{args.verdict}: says passed = {verdict.passed}, its record says otherwise: it was changed")
    for check in verdict.checks:
        logger.log(logging.INFO if check.status == "passed" else logging.ERROR, "%s: %s", check.status, check.sentence)
    _write(args.passed, json.dumps(verdict.passed))


def without_secrets(verdict: GateVerdict) -> GateVerdict:
    """Masks what checks say: a check of the user's may put a variable's value into its detail or its error."""

    def masked(check: Check) -> Check:
        return check.model_copy(update={key: masking.mask(getattr(check, key)) for key in ("detail", "remedy")})

    return verdict.model_copy(update={"checks": tuple(map(masked, verdict.checks))})


def timeouts(limits: CheckTimeouts) -> measuring.Timeouts:
    return measuring.Timeouts(limits.check_timeout_seconds, limits.check_timeouts)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    storage.write_text(path, text)
