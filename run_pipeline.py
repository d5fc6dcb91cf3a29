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
import sys
from pathlib import Path

from runner import flags, signals, streams
from runner.exit_codes import ERROR, INTERRUPTED
from runner.failure import report_failure


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
    add("--sweep", metavar="FILE", help="run the trials that this file describes, and continue with the best")
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
    help_text = 'keep Kubeflow\'s artifacts here (default: <storage root>/kfp; "": its own)'
    add("--pipeline-root", metavar="URI", help=help_text)
    help_text = "submit the run up to N times in all if a fault ends it, never after a gate stopped it (default: 1)"
    add("--attempts", type=int, default=1, metavar="N", help=help_text)
    add("--detach", action="store_true", help="submit the run and exit 0: print its id and page, and do not wait")
    add("--stop", metavar="RUN", help="end this run: kill its running steps, and report what is there")
    return parser


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line. A flag that would have no effect is an error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if error := flags.first_error(args):
        parser.error(error)
    return args


def main(argv: list[str] | None = None) -> int:
    command = ["python", "run_pipeline.py", *(sys.argv[1:] if argv is None else argv)]
    # An exception could get lost in a callback of the import system.
    signals.handle_signals(lambda number, _: signals.leave_at_once(command, number))
    streams.keep_open()
    args = parse_args(argv)
    try:
        return run(args, command)
    except KeyboardInterrupt as interrupt:
        if not isinstance(interrupt, streams.Told):
            print(f"\n{signals.how_to_go_on(signals.cause_of(interrupt), command)}")
        cause, code = "interrupted", INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        cause, code = str(error), ERROR
    report_failure(args.junit, cause, code)
    return code


def run(args: argparse.Namespace, command: list[str]) -> int:
    """Runs the graph and returns the exit code. The imports take seconds, for which neither --help nor Ctrl-C waits."""
    if args.junit and Path(args.junit).is_file():
        Path(args.junit).unlink()  # CI must not take an earlier run's for this one's
    from posttrain.config import masking
    from runner import junit

    masking.mask_output()
    if args.estimate:
        from runner import estimate

        signals.handle_signals(signals.interrupt)
        return estimate.run(args)
    junit.write(args.junit, junit.of_error("ended without a result"))  # stays if this process is killed
    if args.endpoint:
        from runner import there as launcher
    else:
        from runner import here as launcher
    signals.handle_signals(signals.interrupt)
    return launcher.run(args, command)


if __name__ == "__main__":
    sys.exit(main())
