"""Checks the flags of `run_pipeline.py` against each other: one that would have no effect is an error.

parsed command line -> the first error, with its remedy

Imports nothing that takes time: a wrong command line is refused at once.
"""

from argparse import Namespace
from collections.abc import Iterator

ON_CLUSTER = ("experiment", "namespace", "token_file", "detach", "stop", "pipeline_root")


def first_error(args: Namespace) -> str | None:
    """Returns what is wrong with these flags together, or None."""
    return next((error for errors in (_cluster_errors, _local_errors) for error in errors(args)), None)


def _cluster_errors(args: Namespace) -> Iterator[str]:
    flags = [f"--{name.replace('_', '-')}" for name in ON_CLUSTER if getattr(args, name) not in (None, False)]
    if flags and not args.endpoint:
        yield f"{', '.join(flags)}: for a cluster: give --endpoint URL too"
    if sum(map(bool, (args.run_id and args.endpoint, args.detach, args.stop))) > 1:
        yield "--run-id follows a run, --stop ends one, --detach submits one and exits: give one of them"
    if args.attempts < 1 or args.attempts > 1 and (args.detach or args.stop or not args.endpoint):
        yield "--attempts N is a number of runs that are followed on a cluster: give N from 1, and --endpoint URL"
    if args.junit and (args.detach or args.stop):
        yield "--junit is written at the end of a run: leave out --detach and --stop, and follow the run"


def _local_errors(args: Namespace) -> Iterator[str]:
    if args.estimate and (args.endpoint or args.sweep or args.junit or args.run_id or args.runner == "docker"):
        yield (
            "--estimate measures one run on this machine: leave out --endpoint, --sweep, --junit, --run-id and --runner"
        )
    if args.runner == "process" and (args.gpus or args.env):
        yield "--gpus and --env are for containers: give --runner docker too"
    if args.endpoint and args.runner == "docker":
        yield "--runner docker runs on this machine: leave out --runner or --endpoint"
    if args.endpoint and args.fresh:
        yield "--fresh is for this machine: on a cluster, give a new --storage-root, which has nothing to reuse"
