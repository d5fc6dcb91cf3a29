"""Stands for every module that fetches, trains, merges or judges: no work, but the real frame of a step.

flags of a step, environment FAIL_CLOSED = {"gate": step, "outcome": name} -> its outputs, or what the outcome says

A gate measures through `validators.measuring`, judges with the builders of `posttrain.verdict` and runs in
`validators.checks.run_gate`, as the real ones do; only what is measured is scripted.
"""

import argparse
import json
import os
import signal
from pathlib import Path

from posttrain import config
from posttrain.config.line import PREFLIGHT, step_of
from posttrain.make_current import FOLLOWS
from posttrain.step import frame, kfp_io, settings
from posttrain.step.running import Running
from posttrain.verdict import at_most, holds
from tests.fail_closed.outcomes import HOSTILE, LIMIT, OUTCOMES
from validators import checks, measuring

PLAN = "FAIL_CLOSED"
GOOD = {"loss": 0.5, "num_files": 3, "num_answers": 4}
OTHER = "not this gate"  # passes without a measurement

# Metrics of sample_pairs, which the report counts; any step's here.
SAMPLED = ("num_prompts", "num_sampled_answers", "num_sampled_pairs", "num_train_pairs", "num_brought_pairs")


def main(argv: list[str] | None = None) -> None:
    parser = kfp_io.parser(__spec__.name, __doc__)
    for name in (*checks.OUTPUTS, checks.ANSWERS, "passed"):
        parser.add_argument(f"--{name}")
    args, _ = parser.parse_known_args(argv)
    if not args.step.startswith("check_"):
        work_step(args)
        return
    plan = json.loads(os.environ[PLAN])
    run_gate(args, plan["outcome"] if plan["gate"] == args.step else OTHER)


def work_step(args: argparse.Namespace) -> None:
    """Writes each output, with the weights of a model in a folder."""
    inputs, outputs = _artifacts(args, "inputs"), _artifacts(args, "outputs")

    def work(_: Running) -> dict[str, float | str]:
        for name, path in outputs.items():
            is_folder = name in ("model", "export")
            if is_folder:
                Path(path).mkdir()
            file = Path(path, "weights") if is_folder else Path(path)
            file.write_text(f"{name} of {args.step}")
        source = {} if inputs else {"source": f"address of {args.step}", "digest": "0" * 64}
        return {"final_loss": 0.5} | dict.fromkeys(SAMPLED, 1) | source

    if args.step == PREFLIGHT:
        settings.write(args.storage_root, config.table.settings_of(json.loads(args.config)))
    step = config.parse_step(config.StepSection, "{}")
    frame.run_step(args, inputs=inputs, outputs=outputs, config=step, work=work)


def run_gate(args: argparse.Namespace, name: str) -> None:
    """The gate with one of `OUTCOMES`."""
    inputs = _artifacts(args, "inputs")
    step = config.parse_step(step_of(args.step).section, args.config, args.overrides)

    def work(running: Running) -> checks.GateVerdict:
        if name == "the gate is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        measured = measure(name, checks.timeouts(step.validation))
        return checks.GateVerdict(
            gate=args.step, subject=running.inputs, checks=judge(name, measured), seconds=measured.seconds,
            numbers={FOLLOWS: 0.0},  # check_champion's; the others have no use for it
        )  # fmt: skip

    if name == "it tells true, without a verdict":
        tell(args, passed=True)
    elif name != "no output file":
        checks.run_gate(args, inputs=inputs, config=step, work=work)
    if name == "the gate is killed after its verdict":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "its file says true, its verdict failed":
        Path(args.passed).write_text("true")
    if name == "it tells true, its verdict failed":
        tell(args, passed=True)


def measure(name: str, timeouts: measuring.Timeouts) -> measuring.Measured:
    """Cheap parts side by side, then one after the other what shares a model; `hangs` has a time limit of its own."""
    if name == OTHER:
        return measuring.Measured(GOOD)
    scripted = "hangs" if name == "a check hangs" else "scripted"
    files = measuring.side_by_side({"files": lambda: {"num_files": 3}, "sizes": dict}, timeouts)
    loaded = {"load": dict, scripted: OUTCOMES[name].measure, "answers": lambda: {"num_answers": 4}}
    return files | measuring.in_order(loaded, timeouts)


def judge(name: str, measured: measuring.Measured) -> list:
    numbers = measured.numbers
    found = [
        at_most("num_files", numbers.get("num_files"), 3, detail=HOSTILE),
        at_most("loss", numbers.get("loss"), LIMIT, interval=numbers.get("interval")),
        at_most("num_answers", numbers.get("num_answers"), 4),
        *measured.failures,
    ]
    if name == "quotes, newlines, braces":
        found.append(holds(HOSTILE, False, detail=HOSTILE, remedy=HOSTILE))
    return [] if name == "empty check list" else found


def tell(args: argparse.Namespace, *, passed: bool) -> None:
    """Writes the outputs that the graph goes by, past `checks.run_gate`."""
    kfp_io.write_outputs(args.executor_input, parameters={"passed": passed}, metadata={})
    Path(args.passed).write_text(json.dumps(passed))


def _artifacts(args: argparse.Namespace, side: str) -> dict[str, str]:
    found = json.loads(args.executor_input)[side].get("artifacts", {})
    return {name: one["artifacts"][0]["uri"] for name, one in found.items()}


if __name__ == "__main__":
    main()
