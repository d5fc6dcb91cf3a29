"""One run of the compiled graph on this machine, from its start to its exit code."""

import argparse
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.container import image_reference
from pipelines.compiler import compile_graph, compile_sweep
from pipelines.steps import step_names
from pipelines.sweep import sweep_steps
from posttrain import report, storage
from posttrain.config import PipelineConfig, ReportStep
from posttrain.config.placement import Placements
from posttrain.config.sweep import SweepConfig
from posttrain.storage import layout
from runner import junit, lock, places
from runner.docker import Docker
from runner.forking import forked
from runner.local import LocalRun, Processes, Runner, run_graph
from runner.parameters import local_folder
from runner.summary import INTERRUPTED, print_plan, print_start, tell_result, write_junit
from runner.view import view_of
from runner.watch import Watch


def runner_of(args: argparse.Namespace, config: PipelineConfig, folder: Path) -> Runner:
    """What runs the steps. `folder` keeps what containers download."""
    if args.runner == "process":
        return Processes()

    def variables_of(step: str) -> list[str]:
        """Those asked for, and those that the step has from secrets on a cluster."""
        return [*args.env, *(secret.env for secret in config.placement.of(step).secrets)]

    runner = Docker(places.of_step, variables_of, (folder / "cache").absolute(), gpus=args.gpus)
    runner.check(map(image_reference, ("cpu", "train")))
    return runner


@dataclass(frozen=True)
class Here:
    """How a run is run on this machine."""

    run_id: str
    runner: Runner
    is_fresh: bool = False
    sweep: SweepConfig | None = None


def run_here(config: PipelineConfig, parameters: dict[str, Any], here: Here, *, junit_file: str | None = None) -> int:
    """Runs the graph, says what it came to, and gives the exit code."""
    root, run_id, sweep = parameters["storage_root"], here.run_id, here.sweep
    steps = sweep_steps(config, sweep) if sweep else step_names(config)
    folder = local_folder(root)
    run_folder, artifacts = Path(layout.runs(folder, run_id)), folder / "artifacts"
    run_folder.mkdir(parents=True, exist_ok=True)
    for killed, settings in lock.killed_runs(run_folder.parent):
        here.runner.forget(artifacts.absolute() / killed)
        report.publish_report(root, report.collect(root, killed, settings))
    unplaced = config.model_copy(update={"placement": Placements()})  # nodes, secrets, paths of a cluster mean nothing
    graph = run_folder / "graph.yaml"
    compile_sweep(unplaced, sweep, graph) if sweep else compile_graph(unplaced, graph)
    print_start(config, parameters, run_id, logs=run_folder / "logs", steps=steps)
    reused = set() if here.is_fresh or sweep else print_plan(graph, parameters)
    settings = ReportStep(pipeline_id=config.pipeline_id, steps=steps)
    with forked(here.runner, graph, reused) as runner:
        errors, interrupted = walk(graph, parameters, replace(here, runner=runner), settings)
    result = settle(settings, root, run_id, errors)
    write_junit(junit_file, junit.of_run(result))
    code = tell_result(result, root, sweep)
    if result.success and not config.save_intermediate:
        shutil.rmtree(artifacts / run_id, ignore_errors=True)
    return INTERRUPTED if interrupted else code


def walk(graph: Path, parameters: dict[str, Any], here: Here, settings: ReportStep) -> tuple[list[str], bool]:
    """Runs the steps of a compiled graph; gives what went wrong beside them, and whether it was interrupted."""
    root = parameters["storage_root"]
    with lock.under_way(graph.parent, settings), view_of(settings.steps) as view:
        watch = Watch(root, here.run_id, view)
        run = LocalRun(
            here.run_id, artifacts=(local_folder(root) / "artifacts").absolute(),
            logs=(graph.parent / "logs").absolute(), listener=watch, runner=here.runner, is_fresh=here.is_fresh,
            environment=threads_of(here.sweep), peak_memory=watch.peak_memory,
        )  # fmt: skip
        try:
            run_graph(graph, parameters, run)
        except KeyboardInterrupt:
            watch.interrupt()
            return [*run.errors, *watch.errors], True
    return [*run.errors, *watch.errors], False


def threads_of(sweep: SweepConfig | None) -> dict[str, str]:
    """Trials side by side share the cores: OpenMP's threads of two processes on one core are far slower than one's."""
    if sweep is None or sweep.parallelism == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sweep.parallelism))}


def settle(settings: ReportStep, storage_root: str, run_id: str, errors: list[str]) -> report.PipelineResult:
    """The result from the run record. The exit task has written it too, unless it could not or did not know all."""
    result = report.collect(storage_root, run_id, settings)
    told = {step.name for step in result.steps if step.error}
    more = [error for error in dict.fromkeys(errors) if error.partition(":")[0] not in told]
    result = result.model_copy(update={"errors": [*result.errors, *more]})
    written = layout.runs(storage_root, run_id, report.RESULT)
    if more or not storage.exists(written):
        report.publish_report(storage_root, result)
    return result
