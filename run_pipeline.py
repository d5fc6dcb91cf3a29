"""Runs the compiled graph here or on a cluster: configuration and data -> a published model, or why there is none.

python run_pipeline.py --config FILE --sft-dataset sft.jsonl --preference-dataset preferences.jsonl
python run_pipeline.py --config FILE --endpoint URL --token-file FILE     on a cluster, and follow the run there
python run_pipeline.py --config FILE --sweep configs/sweep_config.yaml    many trials, and go on with the best

Exit code: 0 the model was promoted (of a sweep that ends there: a winner was found), 2 a gate stopped it, 1 anything
else, 130 interrupted. It comes from what the run left in its storage (the publish receipt, the verdicts), never from
the word of the runner.
"""

import argparse
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from components.container import image_reference
from pipelines import cluster, running
from pipelines.compiler import check_images_are_pushed, compile_graph, compile_sweep
from pipelines.docker import Docker
from pipelines.forking import forked
from pipelines.local import LocalRun, Processes, Runner, run_graph
from pipelines.steps import step_names
from pipelines.sweep import COMPARE_TRIALS, JUDGE_WINNER, sweep_steps
from pipelines.view import CheckRow, LiveView, PlainView, print_checks, print_pairs, view_of
from posttrain import junit, masking, places, plan, preflight, prompts, record, report, sources, storage, wording
from posttrain.comparison import print_terminal
from posttrain.config import PipelineConfig, ReportStep, check_overrides, check_run_parameters, load_config
from posttrain.placement import Placements
from posttrain.sweep import compare
from posttrain.sweep.settings import SweepConfig
from posttrain.sweep.study import Study
from posttrain.verdict import Check, Verdict
from validators import custom

PROMOTED, ERROR, STOPPED, INTERRUPTED = 0, 1, 2, 130
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RUN_PARAMETERS = ("base_model", "sft_dataset", "preference_dataset", "storage_root", "model_name")

logger = logging.getLogger(__name__)


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
    run_folder, artifacts = folder / "runs" / run_id, folder / "artifacts"
    run_folder.mkdir(parents=True, exist_ok=True)
    for killed, settings in running.killed_runs(folder / "runs"):
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
    with running.under_way(graph.parent, settings), view_of(settings.steps) as view:
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


def tell_result(result: report.PipelineResult, storage_root: str, sweep: SweepConfig | None) -> int:
    """Says what a run came to, and gives its exit code."""
    if sweep:
        print_sweep(result, storage_root, sweep)
    if sweep and finds_winner_alone(result, sweep):
        return PROMOTED
    print_result(result, storage_root)
    return exit_code(result)


def finds_winner_alone(result: report.PipelineResult, sweep: SweepConfig) -> bool:
    """Whether this sweep was to end with a winner, and has done so."""
    ended = {step.name for step in result.steps if step.is_done}
    return not sweep.continue_with_best and {COMPARE_TRIALS, JUDGE_WINNER} <= ended


def print_sweep(result: report.PipelineResult, storage_root: str, sweep: SweepConfig) -> None:
    """The table of the trials, and where it lies; of a sweep without a winner too."""
    found = [step for step in result.steps if step.name.startswith("compare_") and step.num_attempts]
    if not found:
        return
    folder = storage.join(storage_root, "runs", result.run_id, found[-1].name)
    rung = len(found) - 1
    places = [step.measured["row"] for step in result.steps if step.measured.get("row")]
    if places:
        study = Study.of_place(storage_root, places[0], sweep)
        print()
        print_terminal(compare.compare(study, rung, "Sweep"))
    judged = next((step for step in result.steps if step.name == JUDGE_WINNER and step.measured), None)
    told = judged and f"{judged.measured['status']}, {sweep.objective.name} {judged.measured.get(sweep.objective.name)}"
    print_pairs({
        "On unseen rows": told,
        "Table": storage.join(folder, compare.NAMES["table"]),
        "As CSV": storage.join(folder, compare.NAMES["csv"]),
        "Winner's settings": storage.join(folder, compare.NAMES["winner"]),
    })  # fmt: skip


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
            state = cluster.follow(client, run_id, tasks, watch)
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
) -> tuple[cluster.Client, str, dict[str, str]]:
    """The cluster, the id of the run there, and the steps by the names of their tasks."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "graph.yaml")
        if not args.run_id:
            check_images_are_pushed()
            preflight.check_for_cluster(config, parameters)
        compile_sweep(config, sweep, package) if sweep else compile_graph(config, package)
        client = cluster.Client(args.endpoint, namespace=args.namespace, token_file=args.token_file)
        run_id = args.run_id or cluster.submit(
            client, package, experiment=args.experiment or config.pipeline_id, parameters=parameters,
            name=f"{config.pipeline_id} {new_run_id(parameters['storage_root'], None)}",
        )  # fmt: skip
        return client, run_id, cluster.steps_of_tasks(package)


@dataclass
class ClusterWatch:
    """Shows what happens on a cluster: that a step ended says Kubeflow, what came of it the run record.

    Of the trials of a sweep both say the record: Kubeflow gives all iterations of a loop the same name.
    """

    storage_root: str
    run_id: str
    view: PlainView | LiveView
    can_read: bool = True
    waiting: set[str] = field(default_factory=set)  # trials that have not succeeded
    shown: dict[str, record.StepRecord] = field(default_factory=dict)  # of trials, as they stood

    def started(self, step: str) -> None:
        self.view.started(step)

    def ended(self, step: str, succeeded: bool, seconds: float) -> None:
        entry = next(reversed(self.records({step})), None)
        unknown = report.KILLED if self.can_read else "see its log"
        cause = None if succeeded else (entry and entry.error) or unknown
        self._show_end(step, entry, cause, seconds)

    def looked(self) -> None:
        for entry in self.records(self.waiting) if self.waiting else []:
            before = self.shown.get(entry.step)
            if before is None or before.attempt < entry.attempt:
                self.view.started(entry.step)
            elif before.attempt > entry.attempt or before.status == entry.status:
                continue
            self.shown[entry.step] = entry
            if entry.status != "running":
                self._show_end(entry.step, entry, entry.error, entry.seconds)
            if entry.status in ("succeeded", "reused"):
                self.waiting.remove(entry.step)

    def records(self, steps: set[str] | None = None) -> list[record.StepRecord]:
        """Those of the run so far, or of these steps; none where the storage cannot be read from here, which is told
        once.
        """
        try:
            return record.read_records(self.storage_root, self.run_id, of=steps) if self.can_read else []
        except (OSError, ImportError) as error:
            self.can_read = False
            logger.warning("no verdict is shown, and the exit code will be 1: %s", wording.line(str(error)))
            return []

    def _show_end(self, step: str, entry: record.StepRecord | None, cause: str | None, seconds: float) -> None:
        state, text = outcome(entry, cause)
        self.view.ended(step, state, seconds, wording.line(text))


def local_folder(storage_root: str) -> Path:
    """Where a run on this machine keeps its artifacts and logs."""
    return Path("runs") if storage.is_remote(storage_root) else storage.local_path(storage_root)


def write_junit(file: str | None, text: str) -> None:
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")


def exit_code(result: report.PipelineResult) -> int:
    if result.success:
        return PROMOTED
    return STOPPED if result.stopped_by else ERROR


@dataclass
class Watch:
    """Listens to the runner, completes the run record where a step could not, and shows what happened."""

    storage_root: str
    run_id: str
    view: PlainView | LiveView
    running: dict[str, datetime] = field(default_factory=dict)  # step -> when it started
    num_attempts: dict[str, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # of steps that are no part of the result

    def started(self, step: str) -> None:
        self.running[step] = datetime.now(UTC)
        self.num_attempts[step] = self.num_attempts.get(step, 0) + 1
        self.view.started(step)

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        self.view.progress(step, done, total, wording.line(text))

    def finished(self, step: str, exit_code: int, seconds: float, cause: str | None) -> None:
        found = [entry for entry in record.read_records(self.storage_root, self.run_id) if entry.step == step]
        if cause and (len(found) < self.num_attempts[step] or found[-1].status not in ("failed", "unfinished")):
            found.append(self._record_for(step, found, seconds, cause))
        if cause and step == "report_run":
            self.errors.append(f"{step}: {cause}")
        self.running.pop(step, None)
        state, text = outcome(found[-1] if found else None, cause)
        self.view.ended(step, state, seconds, wording.line(text))

    def interrupt(self) -> None:
        """The run was interrupted: the steps that were running end here."""
        for step, started in list(self.running.items()):
            self.finished(step, -signal.SIGINT, (datetime.now(UTC) - started).total_seconds(), "interrupted")

    def peak_memory(self) -> int:
        """Bytes that the largest trial so far has held; 0 before there was one."""
        entries = record.read_records(self.storage_root, self.run_id)
        return max([int(entry.measured.get("peak_memory", 0)) for entry in entries], default=0)

    def _record_for(self, step: str, found: list[record.StepRecord], seconds: float, cause: str) -> record.StepRecord:
        """The record of a step that was ended, or that failed before or after it kept one itself."""
        failed = {"status": "failed", "seconds": round(seconds, 3), "error": cause}
        if found and found[-1].status == "running":
            entry = found[-1].model_copy(update=failed)
            record.replace_record(self.storage_root, entry)
            return entry
        entry = record.StepRecord(
            step=step, attempt=1, run_id=self.run_id, fingerprint="", config={}, inputs={}, outputs={}, measured={},
            started_at=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds"), **failed,
        )  # fmt: skip
        return record.write_record(self.storage_root, entry)


def outcome(entry: record.StepRecord | None, cause: str | None) -> tuple[str, str]:
    """State and note of a step for the view."""
    if cause:
        return ("unfinished", entry.error) if entry and entry.status == "unfinished" else ("failed", cause)
    if entry is None:
        return "done", ""
    state = "reused" if entry.status == "reused" else "done"
    if entry.verdict:
        verdict = Verdict.read(json.dumps(entry.verdict))
        if not verdict.passed:
            return "undecided" if verdict.outcome == "undecided" else "stopped", wording.reason(verdict)
        return state, f"{len(verdict.checks)} of {len(verdict.checks)} checks passed"
    if "row" in entry.measured:
        return state, str(entry.measured["status"])  # of a trial
    if "final_loss" in entry.measured:
        return state, f"loss {entry.measured['final_loss']:.4g}"
    if "size_gb" in entry.measured:
        return state, report.size(entry.measured["size_gb"])
    return state, ""


def settle(settings: ReportStep, storage_root: str, run_id: str, errors: list[str]) -> report.PipelineResult:
    """The result from the run record. The exit task has written it too, unless it could not or did not know all."""
    result = report.collect(storage_root, run_id, settings)
    told = {step.name for step in result.steps if step.error}
    more = [error for error in dict.fromkeys(errors) if error.partition(":")[0] not in told]
    result = result.model_copy(update={"errors": [*result.errors, *more]})
    written = storage.join(storage_root, "runs", run_id, report.RESULT)
    if more or not storage.exists(written):
        report.publish_report(storage_root, result)
    return result


def run_parameters(config: PipelineConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The run-time parameters of the graph: the configuration's, and on top those of the command line."""
    parameters = {name: getattr(args, name) or getattr(config, name) for name in RUN_PARAMETERS}
    parameters["model_name"] = parameters["model_name"] or config.pipeline_id
    parameters["storage_root"] = absolute_path(parameters["storage_root"])
    for name in ("base_model", "sft_dataset", "preference_dataset"):
        parameters[name] = absolute(parameters[name])
    try:
        overrides = json.loads(args.overrides)
    except ValueError as error:
        raise ValueError(f"--overrides: {args.overrides[:80]!r} is not JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f'--overrides: {args.overrides[:80]!r} is not a JSON object; give {{"sft": {{"epochs": 1}}}}')
    parameters["overrides"] = check_overrides(overrides)
    check_run_parameters(parameters)
    return parameters


def absolute_paths(config: PipelineConfig) -> PipelineConfig:
    """The configuration with local paths made absolute: the steps run in another working directory."""
    asked = {key: absolute_path(uri) for key, uri in prompts.given(config.validation).items()}
    judge_model = config.validation.judge_model and absolute(config.validation.judge_model)
    validation = config.validation.model_copy(update=asked | {"judge_model": judge_model})
    changes = {
        "validation": validation,
        "storage_root": absolute_path(config.storage_root),
        "publish_root": config.publish_root and absolute_path(config.publish_root),
        "allowed_prefixes": [absolute(prefix) for prefix in config.allowed_prefixes],
    }
    return config.model_copy(update=changes)


def absolute(uri: str) -> str:
    """A local path made absolute; Hub ids and remote URIs as they are. `data/rows.jsonl` is a path, there or not."""
    if not uri or storage.is_remote(uri):
        return uri
    is_path = Path(uri).suffix in sources.SUFFIXES or storage.kind(uri) == "local"
    return absolute_path(uri) if is_path else uri


def absolute_path(uri: str) -> str:
    """The same of what is never a Hub id."""
    return uri if storage.is_remote(uri) else str(storage.local_path(uri).absolute())


def new_run_id(storage_root: str, wanted: str | None) -> str:
    """A run id without a record: verdicts and receipts of another run must not speak for this one."""
    if wanted is None:
        return f"{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    if not RUN_ID.fullmatch(wanted):
        raise ValueError(f"--run-id {wanted!r} is not a name; use up to 63 letters, digits, '.', '_' and '-'")
    if storage.list_files(storage.join(storage_root, "runs", wanted)):
        raise ValueError(f"--run-id {wanted!r} has a record in {storage_root} already; give another id")
    return wanted


def print_start(
    config: PipelineConfig, parameters: dict[str, Any], run_id: str, *, logs: Path | str, steps: list[str]
) -> None:
    stages = config.stages
    publish_root = config.publish_root or storage.join(parameters["storage_root"], "published")
    print_pairs({
        "Run": run_id,
        "Pipeline": config.pipeline_id,
        "Base model": parameters["base_model"],
        "SFT data": parameters["sft_dataset"] if stages.sft.enabled else None,
        "Preferences": parameters["preference_dataset"] if stages.dpo.enabled else None,
        "Overrides": json.dumps(parameters["overrides"]) if parameters["overrides"] else None,
        "Publishes to": f"{publish_root}/{parameters['model_name']}",
        "Storage": parameters["storage_root"],
        "Logs": logs,
        "Steps": f"{len(steps)}, {sum(name.startswith('check_') for name in steps)} of them gates",
    })  # fmt: skip
    print(flush=True)


def print_plan(graph: Path, parameters: dict[str, Any]) -> set[str]:
    """What each step will do, where an earlier run has left something to go on with. Gives those that it has done."""
    records = plan.recent_records(parameters["storage_root"])
    states = plan.plan(graph, parameters, records)
    if set(states.values()) == {plan.TO_DO}:
        return set()
    if last := plan.broken_off(records):
        print_pairs({"Earlier run": f"{last.run_id} did not end with a published model; it came to {last.step}"})
    print_pairs({"Plan": "\n".join(f"{step:<20} {state}" for step, state in states.items())})
    print(flush=True)
    return {step for step, state in states.items() if state == plan.REUSED}


def print_result(result: report.PipelineResult, storage_root: str) -> None:
    """What the run came to; if a gate stopped it, each check that did not pass and where the evidence is."""
    stop = result.gates.get(result.stopped_by)
    told = (
        {f"{result.stopped_by}: {check.sentence}" for check in stop.failed_checks} if stop else set()
    )  # below, in full
    errors = [wording.line(error) for error in result.errors if error not in told]
    print("\nPIPELINE RESULT")
    print_pairs({
        "Success": "yes" if result.success else "no",
        "Stages completed": ", ".join(result.stages_completed) or "none",
        "Total time": wording.duration(result.total_time_seconds),
        "Final model": result.final_model_path or "none",
        "Errors": "\n".join(errors) or (None if stop else "none"),
        "Reused": ", ".join(result.reused) or None,
    })  # fmt: skip
    folder = storage.join(storage_root, "runs", result.run_id)
    if stop:
        print_stop(stop, storage.join(folder, result.stopped_by))
    places = {"Report": storage.join(folder, report.REPORT), "Result": storage.join(folder, report.RESULT)}
    print_pairs({title: place for title, place in places.items() if storage.exists(place)})


def print_stop(verdict: Verdict, folder: str) -> None:
    """The gate that stopped the run: its outcome, its checks, its evidence."""
    print(f"\nSTOPPED BY {verdict.gate}")
    print_pairs({"Outcome": f"{wording.headline(verdict)}. {wording.conclusion(verdict)}"})
    print_checks([check_row(check) for check in verdict.failed_checks])
    places = {"Verdict": "verdict.json", "Its page": "verdict.html", "As Markdown": "summary.md"}
    places = {title: storage.join(folder, name) for title, name in places.items()}
    num_passed = len(verdict.checks) - len(verdict.failed_checks)
    print_pairs({"Checks passed": f"{num_passed} of {len(verdict.checks)}"})
    print_pairs({title: place for title, place in places.items() if storage.exists(place)})


def check_row(check: Check) -> CheckRow:
    return CheckRow(
        name=wording.line(check.name), status=check.status, value=wording.measured(check), limit=wording.limit(check),
        interval=wording.interval(check), seen=wording.line(check.detail), remedy=wording.line(check.remedy),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
