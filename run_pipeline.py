"""Runs the compiled graph here or on a cluster: configuration and data -> a published model, or why there is none.

python run_pipeline.py --config FILE --sft-dataset sft.jsonl --preference-dataset preferences.jsonl
python run_pipeline.py --config FILE --endpoint URL --token-file FILE     run on a cluster, and follow the run there
python run_pipeline.py --config FILE --sweep configs/sweep_config.yaml    run many trials, and go on with the best
python run_pipeline.py --config FILE --estimate                           time a few steps, say what a run will cost

Exit code: 0 the model was promoted (for a sweep that ends there: its winner qualifies on unseen rows too), 2 a gate
stopped the run, 130 the run was interrupted, 1 anything else. It comes from what the run left in its storage (the
publish receipt, the verdicts), never from the state that a runner or Kubeflow reports.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runner import streams
from runner.exit_codes import ERROR, INTERRUPTED

GOES_ON = "Interrupted ({cause}). To go on, run:\n{command}"


class Parser(argparse.ArgumentParser):
    """Exits 1 for a wrong command line: argparse's own 2 means here that a gate stopped the run."""

    def error(self, message: str):
        self.print_usage(sys.stderr)
        self.exit(ERROR, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    default = ["configs/pipeline_config.yaml"]
    add("--config", nargs="+", default=default, metavar="FILE", help="later files override earlier ones")
    add("--sft-dataset", metavar="URI", help="path, gs://, s3:// or Hub id")
    add("--preference-dataset", metavar="URI", help="path, gs://, s3:// or Hub id")
    add("--base-model", metavar="URI", help="folder, gs://, s3:// or Hub id[@revision]")
    add("--storage-root", metavar="URI", help="where records, results, checkpoints and published models are kept")
    add("--model-name", metavar="NAME", help="name to publish under (default: from the configuration)")
    add("--overrides", default="{}", metavar="JSON", help='sft and dpo settings for this run: {"sft": {"epochs": 1}}')
    add("--sweep", metavar="FILE", help="run the trials that this file describes, and go on with the best")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings", help="override one key")
    add("--run-id", metavar="ID", help="id of the run (default: time and a random part); with --endpoint: follow it")
    add("--fresh", action="store_true", help="reuse nothing from earlier runs")
    add("--estimate", action="store_true", help="run nothing: time a few steps here, and say what a run will cost")
    add("--junit", metavar="FILE", help="also write the gates as JUnit XML for CI, however the run ends")
    add = parser.add_argument_group("in Docker").add_argument
    add("--runner", choices=["process", "docker"], default="process", help="run each step as a process or in its image")
    add("--gpus", metavar="GPUS", help="GPUs for the steps that need one: all, or a value of docker run --gpus")
    add("--env", action="append", default=[], metavar="NAME", help="pass this environment variable on to the steps")
    add = parser.add_argument_group("on a cluster").add_argument
    add("--endpoint", metavar="URL", help="Kubeflow Pipelines to run on; the run is followed from here")
    add("--experiment", metavar="NAME", help="Kubeflow experiment (default: pipeline_id of the configuration)")
    add("--namespace", metavar="NAME", help="namespace, if Kubeflow has several users")
    add("--token-file", metavar="FILE", help="file with the bearer token (default: $KF_PIPELINES_SA_TOKEN_PATH)")
    add(
        "--pipeline-root",
        metavar="URI",
        help='keep Kubeflow\'s artifacts here (default: <storage root>/kfp; "": its own)',
    )
    help_text = "submit the run up to N times in all if it fails by a fault, never after a gate's no (default: 1)"
    add("--attempts", type=int, default=1, metavar="N", help=help_text)
    add("--detach", action="store_true", help="submit the run and exit 0: print its id and page, and do not wait")
    add("--stop", metavar="RUN", help="end this run: its running steps are killed, and what is left is reported")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line. A flag that would have no effect is an error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    on_cluster = ("experiment", "namespace", "token_file", "detach", "stop", "pipeline_root")
    flags = [f"--{name.replace('_', '-')}" for name in on_cluster if getattr(args, name) not in (None, False)]
    if flags and not args.endpoint:
        parser.error(f"{', '.join(flags)}: for a cluster: give --endpoint URL too")
    if sum(map(bool, (args.run_id and args.endpoint, args.detach, args.stop))) > 1:
        parser.error("--run-id follows a run, --stop ends one, --detach submits one and leaves: give one of them")
    if args.attempts < 1 or args.attempts > 1 and (args.detach or args.stop or not args.endpoint):
        parser.error(
            "--attempts N is a number of runs that are followed on a cluster: give N from 1, and --endpoint URL"
        )
    if args.junit and (args.detach or args.stop):
        parser.error("--junit is written at the end of a run: leave out --detach and --stop, and follow the run")
    if args.estimate and (args.endpoint or args.sweep or args.junit or args.run_id or args.runner == "docker"):
        parser.error(
            "--estimate measures one run on this machine: leave out --endpoint, --sweep, --junit, --run-id and --runner"
        )
    if args.runner == "process" and (args.gpus or args.env):
        parser.error("--gpus and --env are for containers: give --runner docker too")
    if args.endpoint and args.runner == "docker":
        parser.error("--runner docker runs on this machine: leave out --runner or --endpoint")
    if args.endpoint and args.fresh:
        parser.error("--fresh is for this machine: on a cluster, give a new --storage-root, which has nothing to reuse")
    return args


def main(argv: list[str] | None = None) -> int:
    command = ["python", "run_pipeline.py", *(sys.argv[1:] if argv is None else argv)]
    # An exception could get lost in a callback of the import system.
    handle_signals(lambda number, _: leave_at_once(command, number))
    streams.keep_open()
    args = parse_args(argv)
    try:
        return run(args, command)
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, streams.Told):
            print(f"\n{GOES_ON.format(cause=cause_of(interrupt), command=shlex.join(command))}")
        cause, code = "interrupted", INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        cause, code = str(error), ERROR
    report_failure(args, cause, code)
    return code


def leave_at_once(command: list[str], number: int) -> None:
    """Ends a process that still imports: nothing has begun that could be saved."""
    text = GOES_ON.format(cause=name_of(number), command=shlex.join(command))
    with suppress(OSError):  # the terminal is gone
        os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, f"{text}\n".encode())
    os._exit(INTERRUPTED)


def run(args: argparse.Namespace, command: list[str]) -> int:
    """Runs the graph and returns the exit code. The imports take seconds, for which neither --help nor Ctrl-C waits."""
    if args.junit and Path(args.junit).is_file():
        Path(args.junit).unlink()  # CI must not take an earlier run's for this one's
    from posttrain.config import masking
    from runner import junit

    masking.mask_output()
    if args.estimate:
        from runner import estimate

        handle_signals(interrupt)
        return estimate.run(args)
    junit.write(args.junit, junit.of_error("ended without a result"))  # stays if this process is killed
    if args.endpoint:
        from runner import there

        handle_signals(interrupt)
        return there.run(args, command)
    from runner import here

    handle_signals(interrupt)
    return here.run(args, command)


def handle_signals(handler: Callable) -> None:
    """Sets the handler of Ctrl-C too, because a shell may have it ignored in a job that runs in the background.

    A terminal that is closed sends SIGHUP; where that is ignored, as under nohup, it stays so.
    """
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


def report_failure(args: argparse.Namespace, cause: str, code: int) -> None:
    """Tells the terminal and CI why there is no result. Of an interrupt the terminal knows already."""
    from posttrain.pages import wording

    if code != INTERRUPTED:
        print(f"error: {wording.line(cause)}", file=sys.stderr)
    if args.junit:
        from runner import junit

        with suppress(ValueError):  # the file may be what the error is about
            junit.write(args.junit, junit.of_error(wording.line(cause)))


def interrupt(number: int, _) -> None:
    """Ends the run at SIGINT, SIGTERM and SIGHUP alike: the running steps save their state and the run is reported."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # shell and kernel both send it when a terminal is closed
    raise KeyboardInterrupt(name_of(number))


def name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def cause_of(interrupt: KeyboardInterrupt) -> str:
    return str(interrupt) or "Ctrl-C"


if __name__ == "__main__":
    sys.exit(main())
