"""Runs the compiled graph on a cluster: submits it, follows the run and reports how it ended."""

import argparse
import logging
import tempfile
from pathlib import Path

from pipelines.compiler import check_images_are_pushed
from pipelines.package import Package
from posttrain import preflight, report
from runner import junit, kubeflow
from runner.parameters import new_run_id
from runner.request import RunRequest
from runner.summary import finds_winner_alone, print_start, report_result
from runner.view import print_pairs, view_of
from runner.watch import ClusterWatch


def run(args: argparse.Namespace, command: str) -> int:
    """Runs what the command line asks for, or follows the run that it names, and returns the exit code.

    `command` is printed, with the run's id, where somebody stops following the run: it follows it again.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s")
    request = RunRequest.read(args)
    client, run_id, tasks = submit(request, args)
    page = client.page(run_id)
    print_start(request, run_id, logs=page)
    try:
        state = follow(request, client, run_id, tasks)
    except (KeyboardInterrupt, OSError):
        print("\nNo longer following the run; it goes on.")
        print_pairs({"Run page": page, "To follow it": command if args.run_id else f"{command} --run-id {run_id}"})
        raise
    print_pairs({"Kubeflow says": state})
    result = report.collect(request.storage_root, run_id, request.report_settings)
    if not (result.success or result.stopped_by or (request.sweep and finds_winner_alone(result, request.sweep))):
        result = result.model_copy(update={"errors": [f"the run ended {state}: {page}", *result.errors]})
    junit.write(args.junit, junit.of_run(result))
    return report_result(result, request)


def submit(request: RunRequest, args: argparse.Namespace) -> tuple[kubeflow.Client, str, dict[str, str]]:
    """Starts the run, unless the command line names one; returns client, run id, and task name -> step name."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "graph.yaml")
        if not args.run_id:
            check_images_are_pushed()
            preflight.check_for_cluster(request.config, request.parameters)
        request.compile(graph)
        client = kubeflow.Client(args.endpoint, namespace=args.namespace, token_file=args.token_file)
        run_id = args.run_id or kubeflow.submit(
            client,
            graph,
            experiment=args.experiment or request.config.pipeline_id,
            name=f"{request.config.pipeline_id} {new_run_id(request.storage_root, None)}",
            parameters=request.parameters,
        )
        return client, run_id, kubeflow.steps_of_tasks(Package.read(graph))


def follow(request: RunRequest, client: kubeflow.Client, run_id: str, tasks: dict[str, str]) -> str:
    """Shows the run until it has ended, and returns the state in which it did."""
    trials = set(request.sweep.all_slots) if request.sweep else set()
    with view_of(request.steps) as view:
        watch = ClusterWatch(request.storage_root, run_id, view, waiting=trials)
        watch.records()  # warns now, not when the run has ended, that the records cannot be read from here
        return kubeflow.follow(client, run_id, tasks, watch)
