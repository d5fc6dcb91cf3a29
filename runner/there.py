"""One run of the compiled graph on a cluster: submitted, followed, reported."""

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

from pipelines.compiler import check_images_are_pushed, compile_graph, compile_sweep
from pipelines.steps import step_names
from pipelines.sweep import sweep_steps
from posttrain import preflight, report
from posttrain.config import PipelineConfig, ReportStep
from posttrain.config.sweep import SweepConfig
from runner import junit, kubeflow
from runner.parameters import new_run_id
from runner.summary import finds_winner_alone, print_start, tell_result, write_junit
from runner.view import print_pairs, view_of
from runner.watch import ClusterWatch


def run_on_cluster(
    config: PipelineConfig, parameters: dict[str, Any], args: argparse.Namespace, again: str, *,
    sweep: SweepConfig | None = None,
) -> int:  # fmt: skip
    """Runs the graph on a cluster, or looks at a run that is there; says what it came to, and gives the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    client, run_id, tasks = submitted(config, parameters, args, sweep)
    root, page = parameters["storage_root"], client.page(run_id)
    steps = sweep_steps(config, sweep) if sweep else step_names(config)
    print_start(config, parameters, run_id, logs=page, steps=steps)
    try:
        with view_of(steps) as view:
            watch = ClusterWatch(root, run_id, view, waiting=set(sweep.all_slots) if sweep else set())
            watch.records()  # says now, not when the run has ended, that they cannot be read from here
            state = kubeflow.follow(client, run_id, tasks, watch)
    except (KeyboardInterrupt, OSError):
        print("\nNot followed any further; the run goes on.")
        print_pairs({"Its page": page, "To look again": again if args.run_id else f"{again} --run-id {run_id}"})
        raise
    print_pairs({"Kubeflow says": state})
    result = report.collect(root, run_id, ReportStep(pipeline_id=config.pipeline_id, steps=steps))
    if not (result.success or result.stopped_by or (sweep and finds_winner_alone(result, sweep))):
        result = result.model_copy(update={"errors": [f"the run ended {state}: {page}", *result.errors]})
    write_junit(args.junit, junit.of_run(result))
    return tell_result(result, root, sweep)


def submitted(
    config: PipelineConfig, parameters: dict[str, Any], args: argparse.Namespace, sweep: SweepConfig | None
) -> tuple[kubeflow.Client, str, dict[str, str]]:
    """The cluster, the id of the run there, and the steps by the names of their tasks."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "graph.yaml")
        if not args.run_id:
            check_images_are_pushed()
            preflight.check_for_cluster(config, parameters)
        compile_sweep(config, sweep, package) if sweep else compile_graph(config, package)
        client = kubeflow.Client(args.endpoint, namespace=args.namespace, token_file=args.token_file)
        run_id = args.run_id or kubeflow.submit(
            client, package, experiment=args.experiment or config.pipeline_id, parameters=parameters,
            name=f"{config.pipeline_id} {new_run_id(parameters['storage_root'], None)}",
        )  # fmt: skip
        return client, run_id, kubeflow.steps_of_tasks(package)
