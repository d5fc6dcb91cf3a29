"""Runs the compiled graph on this machine, from the start of the run to its exit code."""

import argparse
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from components.container import image_reference
from pipelines.package import Package
from posttrain import preflight, report, storage
from posttrain.config.sweep import SweepConfig
from posttrain.storage import layout
from runner import junit, lock, places, signals
from runner.claim import Claim, claimed
from runner.docker import Docker
from runner.exit_codes import INTERRUPTED
from runner.forking import forked
from runner.local import GraphRun, ProcessRunner, Runner, run_graph
from runner.parameters import local_folder, new_run_id, without
from runner.request import RunRequest
from runner.summary import print_interrupt, print_plan, print_start, report_result, with_failed_winner
from runner.view import view_of
from runner.watch import Watch
from validators import custom


@dataclass(frozen=True)
class Run:
    """One run on this machine."""

    request: RunRequest
    run_id: str
    runner: Runner
    is_fresh: bool = False  # reuses nothing from earlier runs
    command: Sequence[str] = ()  # that started it
    junit_file: str | None = None
    claim: Claim | None = None  # on an id that somebody chose

    @property
    def folder(self) -> Path:
        """Keeps the graph and the logs, and the run record too if the storage is on this machine."""
        return Path(layout.runs(local_folder(self.request.storage_root), self.run_id))

    @property
    def artifacts(self) -> Path:
        """Keeps the outputs of the steps of all runs, each run in a folder of its own."""
        return (local_folder(self.request.storage_root) / "artifacts").absolute()


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs what the command line asks for and returns the exit code; `command` is the one to go on with."""
    request = RunRequest.read(args)
    # All other checks are made by the first step. This one cannot be: a step reports what it finds in that storage.
    preflight.check_storage_root(request.storage_root, request.config)
    run_id = new_run_id(request.storage_root, args.run_id)
    runner = docker_runner(args, request) if args.runner == "docker" else process_runner(request)
    planned = Run(request, run_id, runner, args.fresh, command=command, junit_file=args.junit)
    if not args.run_id:
        return run_here(planned)
    with claimed(request.storage_root, run_id) as claim:
        return run_here(replace(planned, claim=claim))


def process_runner(request: RunRequest) -> ProcessRunner:
    """Returns the runner that starts each step as a process.

    Raises:
        ValueError: one of the user's own checks cannot be imported here. (In Docker it is the image that has them.)
    """
    custom.check_importable(request.config.validation.custom_checks)
    return ProcessRunner()


def docker_runner(args: argparse.Namespace, request: RunRequest) -> Docker:
    """Returns the runner that starts each step in its image.

    Raises:
        ValueError: a container could not run here, or a path that would be mounted into it does not exist.
    """
    folder, config = local_folder(request.storage_root), request.config
    preflight.check(config, request.parameters, disk=folder)

    def variables_of(step: str) -> list[str]:
        """Returns the names given by --env, and those that the step gets from secrets on a cluster."""
        return [*args.env, *config.variables_of(step)]

    runner = Docker(places.of_step, variables_of, (folder / "cache").absolute(), gpus=args.gpus)
    runner.check(map(image_reference, ("cpu", "train")))
    return runner


def run_here(run: Run) -> int:
    """Runs the graph, prints what came of it and returns the exit code."""
    report_killed_runs(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    graph = run.folder / "graph.yaml"
    compile_unplaced(run.request, graph)
    package = Package.read(graph)
    print_start(run.request, run.run_id, logs=run.folder / "logs")
    reused = set() if run.is_fresh or run.request.sweep else print_plan(package, run.request.parameters)
    with forked(run.runner, package, reused) as runner:
        errors, interrupted_by = run_steps(graph, replace(run, runner=runner))
    result = with_failed_winner(finish(run, errors), run.request.sweep)
    junit.write(run.junit_file, junit.of_run(result))
    exit_code = report_result(result, run.request)
    if result.success and not run.request.config.save_intermediate:
        shutil.rmtree(run.artifacts / run.run_id, ignore_errors=True)
    if interrupted_by:
        print_interrupt(result, interrupted_by, to_go_on(run.command))
    return INTERRUPTED if interrupted_by else exit_code


def to_go_on(command: Sequence[str]) -> str:
    """Returns the command that goes on after an interrupt. Any later run has finished steps and checkpoints."""
    return shlex.join(without(command, flags=("--fresh",), with_value=("--run-id",)))


def report_killed_runs(run: Run) -> None:
    """Writes the reports of earlier runs that were killed before they could, and removes what still runs of them."""
    root = run.request.storage_root
    for run_id, settings in lock.killed_runs(run.folder.parent):
        run.runner.forget(run.artifacts / run_id)
        if run_id != run.run_id:  # this run took its id over
            report.publish_report(root, report.collect(root, run_id, settings))


def compile_unplaced(request: RunRequest, graph: Path) -> None:
    """Writes the graph without its placements: a cluster's nodes, secrets and paths mean nothing on this machine."""
    replace(request, config=request.config.unplaced()).compile(graph, by_trial=True)


def run_steps(graph: Path, run: Run) -> tuple[list[str], str | None]:
    """Runs the steps of a compiled graph; returns the errors that no record has, and what interrupted the run."""
    root, settings = run.request.storage_root, run.request.report_settings
    if run.claim:
        run.claim.renew()
    with lock.under_way(run.folder, settings), view_of(settings.steps) as view:
        watch = Watch(root, run.run_id, view)
        graph_run = GraphRun(
            run.run_id,
            artifacts=run.artifacts,
            logs=(run.folder / "logs").absolute(),
            listener=watch,
            runner=run.runner,
            is_fresh=run.is_fresh,
            environment=threads_of(run.request.sweep),
            peak_memory=watch.peak_memory,
        )
        interrupted_by = None
        try:
            run_graph(graph, run.request.parameters, graph_run)
        except KeyboardInterrupt as interrupt:
            interrupted_by = signals.cause_of(interrupt)
            watch.interrupt(settings.steps)
    return [*graph_run.errors, *watch.errors], interrupted_by


def threads_of(sweep: SweepConfig | None) -> dict[str, str]:
    """Divides the cores among parallel trials: OpenMP is far slower with the threads of two processes on one core."""
    if sweep is None or sweep.parallelism == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sweep.parallelism))}


def finish(run: Run, errors: list[str]) -> report.PipelineResult:
    """Returns the result from the run record, and writes it if the exit task could not, or did not know all of it."""
    root = run.request.storage_root
    result = report.collect(root, run.run_id, run.request.report_settings)
    failed = {step.name for step in result.steps if step.error}
    unrecorded = [error for error in dict.fromkeys(errors) if error.partition(":")[0] not in failed]
    result = result.model_copy(update={"errors": [*result.errors, *unrecorded]})
    if unrecorded or not storage.exists(layout.runs(root, run.run_id, report.RESULT)):
        report.publish_report(root, result)
    return result
