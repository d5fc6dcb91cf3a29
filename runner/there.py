"""Runs the compiled graph on a cluster: submits it, follows the run and reports how it ended."""

import argparse
import json
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.compiler import check_images_are_pushed
from pipelines.package import Package
from posttrain import preflight, report, storage
from posttrain.config import line
from posttrain.pages import wording
from posttrain.step.progress import LEASE_SECONDS
from posttrain.storage import layout
from runner import junit, kubeflow, streams
from runner.exit_codes import ERROR, PROMOTED
from runner.follow import ClusterWatch, RunRecords, attempts_of
from runner.parameters import new_run_id, without
from runner.request import RunRequest
from runner.summary import finds_winner_alone, print_start, report_result, with_failed_winner
from runner.view import print_pairs, view_of

# What ends a step for good: bad input, a training that diverges, a name that is nowhere. Another run ends the same.
FINAL = re.compile(r"(ValueError|ValidationError|TypeError|Diverged|FileNotFoundError|PermissionError|ImportError)\b")
ARTIFACTS = "kfp"  # folder below the storage root
SMALL_ROOT = "where the installation keeps those of all runs, often on a 20 GiB disk: make sure that the models fit"
PIPELINE_ROOTS = ("gs://", "s3://", "minio://")
REPORTED = ("outcome", "errors", "steps")  # keys of a result by which it is compared with the one that is stored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """A Kubeflow, and the compiled graph of a run there."""

    request: RunRequest
    client: kubeflow.Client
    graph: Path
    command: list[str]  # of this process, without what names a run
    poll_seconds: float  # between two looks at a run
    pipeline_root: str | None  # where Kubeflow keeps the artifacts; None: where the installation says

    def submit(self, experiment: str | None) -> str:
        """Creates a run and returns its id."""
        config = self.request.config
        return kubeflow.submit(
            self.client,
            self.graph,
            experiment=experiment or config.pipeline_id,
            name=f"{config.pipeline_id} {new_run_id(self.request.storage_root, None)}",
            parameters=self.request.parameters,
            pipeline_root=self.pipeline_root,
        )

    def follow(self, run_id: str) -> tuple[str, bool]:
        """Shows the run until it has ended; returns the state in which it did, and whether somebody canceled it."""
        package = Package.read(self.graph)
        records = RunRecords(self.request.storage_root, run_id)
        with view_of(self.request.steps) as view:
            watch = ClusterWatch(records, view, attempts_of(package))
            tasks = kubeflow.steps_of_tasks(package)
            state = kubeflow.follow(self.client, run_id, tasks, watch, poll_seconds=self.poll_seconds)
            self._await_last_records(watch)
        return state, watch.was_canceled or state == "CANCELED"

    def _await_last_records(self, watch: ClusterWatch) -> None:
        """Waits for steps that are still being ended: of a run that was terminated they may be saving."""
        until = time.monotonic() + LEASE_SECONDS
        while watch.is_alive and time.monotonic() < until:
            time.sleep(self.poll_seconds)
            watch.looked("FAILED")

    def places(self, run_id: str) -> dict[str, str]:
        """Returns where the run is seen, and the commands that follow it and end it."""
        follow, stop = ([*self.command, flag, run_id] for flag in ("--run-id", "--stop"))
        page = {"Run page": self.client.page(run_id)}
        return page | {"To stop it": shlex.join(stop), "To follow it": shlex.join(follow)}


def run(args: argparse.Namespace, command: list[str]) -> int:
    """Runs what the command line asks for, or follows or ends the run that it names, and returns the exit code.

    `command` is printed, with the run's id, where somebody stops following the run: it follows it again, or ends it.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    request = RunRequest.read(args)
    with connected(request, args, command) as cluster:
        if args.stop:
            return stop(cluster, args.stop)
        run_id = args.run_id or cluster.submit(args.experiment)
        artifacts = None if args.run_id else cluster.pipeline_root or SMALL_ROOT
        print_start(request, run_id, logs=cluster.client.page(run_id), artifacts=artifacts)
        if args.detach:
            print_pairs(cluster.places(run_id))
            return PROMOTED
        return run_to_end(cluster, run_id, args)


def run_to_end(cluster: Cluster, run_id: str, args: argparse.Namespace) -> int:
    """Follows and reports a run, and submits it again if it fails by a fault; returns the last exit code."""
    for number in range(1, args.attempts + 1):
        ended = follow_to_end(cluster, run_id)
        junit.write(args.junit, junit.of_run(ended.result))
        exit_code = report_result(ended.result, cluster.request)
        if exit_code != ERROR or not ended.fault or number == args.attempts:
            break
        run_id = cluster.submit(args.experiment)
        print(f"\nSubmitted again, run {number + 1} of {args.attempts}, which continues from there: {ended.fault}\n")
        print_start(cluster.request, run_id, logs=cluster.client.page(run_id))
    return exit_code


@contextmanager
def connected(request: RunRequest, args: argparse.Namespace, command: list[str]) -> Iterator[Cluster]:
    """Compiles the graph and yields the cluster, after checking what a run there needs.

    Raises:
        ValueError: no pod could run the graph, or this machine could not read how the run ends.
    """
    if not (args.run_id or args.stop):
        check_images_are_pushed()
        preflight.check_for_cluster(request.config, request.parameters)
    pipeline_root = pipeline_root_of(request.storage_root, args.pipeline_root)
    if not args.detach:
        check_readable(request.storage_root)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.yaml")
        request.compile(graph)
        client = kubeflow.Client(args.endpoint, namespace=args.namespace, token_file=args.token_file)
        # A run that somebody ends is CANCELING for as little as three seconds, and must not be submitted again.
        poll_seconds = min(kubeflow.POLL_SECONDS, 2.0) if args.attempts > 1 else kubeflow.POLL_SECONDS
        yield Cluster(request, client, graph, without_run(command), poll_seconds, pipeline_root)


def pipeline_root_of(storage_root: str, wanted: str | None) -> str | None:
    """Returns where the artifacts of a run go, or None for the default of the installation.

    Raises:
        ValueError: Kubeflow has no such kind of storage.
    """
    if wanted is None:
        return storage.join(storage_root, ARTIFACTS)
    if wanted and not wanted.startswith(PIPELINE_ROOTS):
        known = ", ".join(PIPELINE_ROOTS)
        raise ValueError(f'--pipeline-root {wanted!r}: give an address with {known}, or "" for the installation\'s own')
    return wanted.rstrip("/") or None


def check_readable(storage_root: str) -> None:
    """Raises ValueError if this machine cannot read the records of a run, which say how it ends."""
    try:
        storage.list_files(layout.runs(storage_root, new_run_id(storage_root, None)))
    except (OSError, ImportError) as error:
        raise ValueError(
            f"{wording.line(str(error))}: this machine cannot read {storage_root}, and the run's progress and "
            "result come from the records there: give it access, or submit the run with --detach"
        ) from error


def without_run(command: list[str]) -> list[str]:
    """Returns the command without the flags that say which run it is about and whether to wait for it."""
    return without(command, flags=("--detach",), with_value=("--run-id", "--stop"))


def stop(cluster: Cluster, run_id: str) -> int:
    """Ends a run, waits until it has ended, and reports it."""
    kubeflow.terminate(cluster.client, run_id)
    report_result(follow_to_end(cluster, run_id).result, cluster.request)
    return PROMOTED


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    result: report.PipelineResult
    was_canceled: bool

    @property
    def fault(self) -> str | None:
        """Why the run failed, if another run may end better: not after a gate's no, a refusal or a divergence."""
        broken = [step for step in self.result.steps if step.error]
        is_final = any(line.is_rejection(step.name) or FINAL.match(step.error) for step in broken)
        if self.result.stopped_by or self.was_canceled or is_final:
            return None
        return wording.line(self.result.errors[0]) if self.result.errors else None


def follow_to_end(cluster: Cluster, run_id: str) -> Ended:
    """Follows the run and returns its end. Its result is written too if the run could not do that itself."""
    try:
        state, was_canceled = cluster.follow(run_id)
    except (KeyboardInterrupt, OSError) as cause:
        print("\nNo longer following the run; it goes on.")
        print_pairs(cluster.places(run_id))
        if isinstance(cause, KeyboardInterrupt):
            raise streams.Told(*cause.args) from cause
        raise
    print_pairs({"Kubeflow says": f"{state} (canceled)" if was_canceled else state})
    request = cluster.request
    collected = result = report.collect(request.storage_root, run_id, request.report_settings)
    if not (result.success or result.stopped_by or (request.sweep and finds_winner_alone(result, request.sweep))):
        how = "was canceled" if was_canceled else f"ended {state}" if state in kubeflow.ENDED else f"is still {state}"
        error = f"the run {how}: {cluster.client.page(run_id)}"
        result = result.model_copy(update={"errors": [error, *result.errors]})
    result = with_failed_winner(result, request.sweep)
    if not is_reported(request.storage_root, collected):
        write_report(request.storage_root, result)
    return Ended(result, was_canceled)


def is_reported(storage_root: str, result: report.PipelineResult) -> bool:
    """Tells whether the run has written this result itself: where it was ended, its exit task is left out."""
    uri = layout.runs(storage_root, result.run_id, report.RESULT)
    stored = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    return all(stored.get(key) == value for key, value in json.loads(report.to_json(result)).items() if key in REPORTED)


def write_report(storage_root: str, result: report.PipelineResult) -> None:
    """Writes result and report as the exit task does, if this machine may write there."""
    try:
        report.publish_report(storage_root, result)
    except OSError as error:
        logger.warning("the run left no report, and none can be written: %s", wording.line(str(error)))
