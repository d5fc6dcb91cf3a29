"""Runs the compiled graph here or on a cluster: configuration and data -> a published model, or why there is none.

python run_pipeline.py --config FILE --sft-dataset sft.jsonl --preference-dataset preferences.jsonl
python run_pipeline.py --config FILE --endpoint URL --token-file FILE     on a cluster, and follow the run there
python run_pipeline.py --config FILE --sweep configs/sweep_config.yaml    many trials, and go on with the best

Exit code: 0 the model was promoted (of a sweep that ends there: a winner was found), 2 a gate stopped it, 1 anything
else, 130 interrupted. It comes from what the run left in its storage (the publish receipt, the verdicts), never from
the word of the runner.
"""

import argparse
import shlex
import signal
import sys
from contextlib import suppress

from posttrain import preflight
from posttrain.config import load_config, masking
from posttrain.config.sweep import SweepConfig
from posttrain.pages import wording
from runner import junit
from runner.here import Here, run_here, runner_of
from runner.parameters import absolute_paths, local_folder, new_run_id, run_parameters
from runner.summary import ERROR, INTERRUPTED, write_junit
from runner.there import run_on_cluster
from validators import custom


class Parser(argparse.ArgumentParser):
    """Its own exit code for a wrong command line is 2, which here says that a gate stopped the run."""

    def error(self, message: str):
        self.print_usage(sys.stderr)
        self.exit(ERROR, f"error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", nargs="+", default=["configs/pipeline_config.yaml"], metavar="FILE", help="the later on top"
    )
    parser.add_argument("--sft-dataset", metavar="URI", help="path, gs://, s3:// or Hub id")
    parser.add_argument("--preference-dataset", metavar="URI")
    parser.add_argument("--base-model", metavar="URI", help="folder, gs://, s3:// or Hub id[@revision]")
    parser.add_argument(
        "--storage-root", metavar="URI", help="keeps records, results, checkpoints and published models"
    )
    parser.add_argument("--model-name", metavar="NAME", help="name to publish under (default: the configuration's)")
    parser.add_argument(
        "--overrides", default="{}", metavar="JSON", help='this run\'s sft and dpo settings: {"sft": {"epochs": 1}}'
    )
    parser.add_argument("--sweep", metavar="FILE", help="try what this file says, and go on with the best")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    parser.add_argument(
        "--run-id", metavar="ID", help="default: the time and a random part; with --endpoint: only follow this run"
    )
    parser.add_argument("--fresh", action="store_true", help="take nothing over from earlier runs")
    parser.add_argument(
        "--junit", metavar="FILE", help="also write all gates as JUnit XML, for CI; however the run ends"
    )
    group = parser.add_argument_group("in Docker")
    group.add_argument(
        "--runner", choices=["process", "docker"], default="process", help="each step as a process, or in its image"
    )
    group.add_argument("--gpus", metavar="GPUS", help="for the steps that want one: all, or what docker run takes")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="a variable of this environment that steps get too"
    )
    group = parser.add_argument_group("on a cluster")
    group.add_argument("--endpoint", metavar="URL", help="of Kubeflow Pipelines: run there, and follow the run")
    group.add_argument("--experiment", metavar="NAME", help="default: the configuration's pipeline_id")
    group.add_argument("--namespace", metavar="NAME", help="of a Kubeflow with several users")
    group.add_argument(
        "--token-file", metavar="FILE", help="with the bearer token; read at every call ($KF_PIPELINES_SA_TOKEN_PATH)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    masking.mask_output()
    again = shlex.join(["python", "run_pipeline.py", *(sys.argv[1:] if argv is None else argv)])
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # both end the running step too, also where a shell ignores the first
        signal.signal(number, signal.default_int_handler)
    try:
        write_junit(args.junit, junit.of_error("ended without a result"))  # stays if this process is killed
        config = absolute_paths(load_config(args.config, args.settings))
        parameters = run_parameters(config, args)
        sweep = SweepConfig.read(args.sweep) if args.sweep else None
        if args.endpoint:
            return run_on_cluster(config, parameters, args, again, sweep=sweep)
        preflight.check(config, parameters, disk=local_folder(parameters["storage_root"]))
        runner = runner_of(args, config, local_folder(parameters["storage_root"]))
        if args.runner == "process":  # else they are in the image
            custom.check_importable(config.validation.custom_checks)
        here = Here(new_run_id(parameters["storage_root"], args.run_id), runner, is_fresh=args.fresh, sweep=sweep)
        return run_here(config, parameters, here, junit_file=args.junit)
    except (ValueError, OSError, ImportError) as error:
        cause, code = wording.line(str(error)), ERROR
        print(f"error: {cause}", file=sys.stderr)
    except KeyboardInterrupt:
        cause, code = "interrupted", INTERRUPTED
    with suppress(OSError):  # it may be what the error is about
        write_junit(args.junit, junit.of_error(cause))
    return code


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A flag that would have no effect is an error."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not args.endpoint and (args.experiment or args.namespace or args.token_file):
        parser.error("--experiment, --namespace and --token-file say where on a cluster: give --endpoint URL too")
    if args.runner == "process" and (args.gpus or args.env):
        parser.error("--gpus and --env say what a container gets: give --runner docker too")
    if args.endpoint and args.runner == "docker":
        parser.error("--runner docker is for this machine: leave it or --endpoint out")
    if args.endpoint and args.fresh:
        parser.error("--fresh is for this machine: on a cluster a new --storage-root has nothing to take over either")
    return args


if __name__ == "__main__":
    sys.exit(main())
