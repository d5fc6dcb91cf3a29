"""Runs the compiled graph on this machine. `runner.walk` decides which step is next, and a `Runner` how its command is
run: as a process (`ProcessRunner`, here) or in its image (`runner.docker.Docker`).

compiled YAML, run parameters -> `<artifacts>/<run id>/<step>/<output>`, `<logs>/<step>.log`, calls of a `StepListener`

kfp.local 2.17.0 refuses container components. `Launcher` takes the place of its launcher during a run and does what the
backend's does: it creates the folders of the outputs, fails a step that did not write an output parameter, and hands
every output artifact to its consumers.
"""

import inspect
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from google.protobuf import json_format
from kfp import components
from kfp.local import executor_input_utils, executor_output_utils, placeholder_utils, task_dispatcher
from kfp.local.status import Status

from components.container import ATTEMPTS_MODULE
from pipelines.package import Package
from posttrain import storage
from posttrain.config import ATTEMPTS_ENV, FRESH_ENV, RUN_ID_ENV, Attempts, table
from posttrain.step.parent import tie_to_parent
from posttrain.step.progress import Pace, progress_of
from runner.walk import GraphError, Outputs, Walk, existing

ROOT = Path(__file__).parents[1]
AGAIN = re.compile(rf"{re.escape(ATTEMPTS_MODULE)}: (?P<text>attempt \d+ of \d+.*)")
HINT = re.compile(r"(See|Run) 'docker run --help'")  # the last line of an error of Docker's client
GRACE_SECONDS = 20.0  # from SIGTERM to SIGKILL: a training stage saves a checkpoint

# Makes glibc keep freed memory instead of returning it: decoding on a CPU then has a tenth of the page faults.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}

logger = logging.getLogger(__name__)


class StepListener(Protocol):
    """Hears what happens to the steps. A step whose whole process ended, and that is tried again, starts again."""

    def started(self, step: str) -> None: ...

    def tried_again(self, step: str, text: str) -> None:
        """Hears that a step starts its next attempt: `attempt 2 of 3, from step 40: <how the one before ended>`."""

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        """Hears how far a training or a gate has come, as its newest line on stderr says.

        Args:
            text: `loss 0.5234` or nothing, for `step 12/40 loss 0.5234`; `prompts answered by base, about 20 s left`,
                for `base: answered 16 of 48 prompts, about 20 s left`.
        """

    def finished(self, step: str, exit_code: int, seconds: float, cause: str | None) -> None:
        """Hears how a step ended. `cause` is None if it succeeded; a negative exit code is the signal that ended it."""


@dataclass(frozen=True)
class Step:
    """One attempt of a step: its container in the graph with every placeholder resolved."""

    name: str
    image: str
    command: list[str]
    environment: dict[str, str]  # set by the container and by the run
    arguments: dict[str, Any]  # input name -> value or artifact; its settings as `config`
    folder: Path  # for its outputs; beside it are the folders of the run's other steps
    num_gpus: int
    settings: dict[str, Any]  # its part of the Kubernetes settings in the graph

    @property
    def module(self) -> str:
        """The module of `python -m posttrain.step.attempts <module> <flags>`."""
        return self.command[self._start]

    @property
    def flags(self) -> list[str]:
        return self.command[self._start + 1 :]

    @property
    def _start(self) -> int:
        return 3 if ATTEMPTS_MODULE in self.command[:3] else 2


class Runner(Protocol):
    """Runs the command of a step."""

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> "Process":
        """Starts the command in a session of its own, with a pipe for its stderr."""

    def exit_code(self, code: int) -> int:
        """Returns the exit code of the step for that of its command; a negative one is the signal that ended it."""

    def remove(self, step: Step) -> None:
        """Removes what is left of a step when its command has ended, however it ended."""

    def forget(self, artifacts: Path) -> None:
        """Removes what is left of a run whose runner was killed; `artifacts` is the folder of that run."""


class Process(Protocol):
    """The part of `subprocess.Popen` that is used here."""

    pid: int
    stderr: Any

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def popen(command: list[str], directory: Path, environment: dict[str, str], stdout: int) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


class ProcessRunner:
    """Runs each step as a process in the environment of this one."""

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> Process:
        is_python = step.command[0] in ("python", "python3")
        command = [sys.executable if is_python else step.command[0], *step.command[1:]]
        return popen(tie_to_parent(command), directory, environment, stdout)

    def exit_code(self, code: int) -> int:
        return code

    def remove(self, step: Step) -> None:
        """Does nothing: the process group has been ended."""

    def forget(self, artifacts: Path) -> None:
        """Does nothing: no process outlives its runner."""


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph on this machine."""

    run_id: str
    artifacts: Path
    logs: Path
    listener: StepListener
    runner: Runner = ProcessRunner()
    working_directory: Path = ROOT  # for every process; `python -m` looks for modules here first
    environment: dict[str, str] = field(default_factory=dict)  # added to ours
    is_fresh: bool = False  # steps reuse nothing from earlier runs
    peak_memory: Callable[[], int] = lambda: 0  # bytes that an iteration of a loop needs; 0: unknown
    errors: list[str] = field(default_factory=list)  # why the graph did not go on


def run_graph(path: str | Path, parameters: dict[str, Any], run: GraphRun) -> bool:
    """Runs a compiled graph; returns whether every task that ran succeeded, which does not mean a published model.

    Raises:
        ValueError: the parameters do not fit the graph.
        KeyboardInterrupt: the running step and all its processes have been ended.
    """
    graph = components.load_component_from_file(str(path))
    spec, settings = graph.pipeline_spec, _settings(graph.platform_spec)
    _check_parameters(spec.root.input_definitions.parameters, parameters)
    for dag in [spec.root.dag, *(component.dag for component in spec.components.values())]:
        for task in dag.tasks.values():
            task.retry_policy.ClearField("backoff_duration")  # waiting helps a busy cluster, not a single machine
    run.logs.mkdir(parents=True, exist_ok=True)
    launcher = Launcher(run, settings, Package.read(path).settings)
    walk = Walk(
        spec=spec,
        run_id=run.run_id,
        artifacts=str(run.artifacts),
        end_running=launcher.end_running,
        peak_memory=run.peak_memory,
        errors=run.errors,
    )
    with _replaced(task_dispatcher, "run_single_task_implementation", launcher), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Task .* no effect in the current local runner")
        try:
            return walk.run(parameters)
        except GraphError as error:
            run.errors.append(str(error))
            return False


class Launcher:
    """Does on this machine what the backend's launcher does in the pod."""

    def __init__(self, run: GraphRun, settings: dict[str, dict[str, Any]], configs: dict[str, dict[str, Any]]):
        self.run, self.settings, self.configs = run, settings, configs
        self.running: list[Process] = []  # several if steps or iterations of a loop run side by side
        self.is_interrupted = False

    def end_running(self) -> None:
        """Ends the steps that other threads run, and lets them start no more."""
        self.is_interrupted = True
        for process in list(self.running):
            _end(process)

    def __call__(
        self,
        pipeline_resource_name,
        component_name,
        component_spec,
        executor_spec,
        arguments,
        pipeline_root,
        runner,
        raise_on_error,
        block_input_artifact,
        unique_pipeline_id,
    ) -> Outputs:
        """Runs one attempt of one step. kfp calls it, with these arguments, once per attempt.

        Raises:
            GraphError: the step failed, and another attempt would end the same way.
        """
        name = arguments.get("step") or component_name.removeprefix("comp-")
        _check_inputs(name, component_spec, arguments)
        folder = Path(pipeline_root, unique_pipeline_id, name)  # iterations of a loop have names of their own
        shutil.rmtree(folder, ignore_errors=True)  # each attempt starts with an empty folder, like a new pod
        folder.mkdir(parents=True)
        executor_input = executor_input_utils.construct_executor_input(
            component_spec=component_spec, arguments=arguments, task_root=str(folder), block_input_artifact=False
        )
        container = executor_spec.container
        command = placeholder_utils.replace_placeholders(
            full_command=[*container.command, *container.args],
            executor_input_dict=executor_input_utils.executor_input_to_dict(executor_input, component_spec),
            pipeline_resource_name=pipeline_resource_name,
            task_resource_name=name,
            pipeline_root=pipeline_root,
            unique_pipeline_id=unique_pipeline_id,
        )
        step = Step(
            name=name,
            image=container.image,
            command=command,
            environment=self._environment(container),
            arguments=arguments | {"config": self._config_of(arguments)},
            folder=folder,
            num_gpus=int(container.resources.accelerator.resource_count or 0),
            settings=self.settings.get(component_spec.executor_label, {}),
        )
        return self._attempt(step, lambda: _outputs_of(executor_input, component_spec))

    def _config_of(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings of a step, also if it gets only the digest of them."""
        config = arguments.get("config", {})
        return self.configs.get(table.referred(config), config)

    def _environment(self, container) -> dict[str, str]:
        own = {RUN_ID_ENV: self.run.run_id, "PYTHONUNBUFFERED": "1"} | self.run.environment
        if self.run.is_fresh:
            own[FRESH_ENV] = "1"
        variables = {variable.name: variable.value for variable in container.env}
        if (
            ATTEMPTS_ENV in variables
        ):  # time limits and waits are for a cluster, whose pods cost and whose parts recover
            own[ATTEMPTS_ENV] = str(Attempts(Attempts.parse(variables[ATTEMPTS_ENV]).number))
        return variables | own

    def _attempt(self, step: Step, outputs_of: Callable[[], dict[str, Any]]) -> Outputs:
        if self.is_interrupted:
            raise GraphError(f"{step.name}: interrupted")
        self.run.listener.started(step.name)
        clock, outputs, cause = time.monotonic(), {}, None
        exit_code, last_line = self._execute(step)
        if exit_code:
            cause = _cause(exit_code, last_line)
        else:
            try:
                outputs = outputs_of()
            except (OSError, ValueError, KeyError, json_format.ParseError) as error:
                cause = f"exited 0, but {error}"
        self.run.listener.finished(step.name, exit_code, time.monotonic() - clock, cause)
        if cause is None:
            return outputs, Status.SUCCESS
        if exit_code < 0:  # the process that makes the attempts is itself gone
            return {}, Status.FAILURE  # kfp retries, as often as the step's retry policy allows
        raise GraphError(f"{step.name}: {cause}")

    def _execute(self, step: Step) -> tuple[int, str]:
        """Runs a step and writes its output to its log; returns the exit code and the last line of stderr."""
        environment = ALLOCATOR | os.environ | step.environment
        with open(self.run.logs / f"{step.name}.log", "ab", buffering=0) as log:
            process = self.run.runner.start(step, self.run.working_directory, environment, log.fileno())
            self.running.append(process)
            if self.is_interrupted:  # while the process was being started
                _signal(process, signal.SIGKILL)
            last_line = [""]
            reader = threading.Thread(target=self._read, args=(step.name, process.stderr, log, last_line))
            reader.start()
            try:
                exit_code = self.run.runner.exit_code(process.wait())
            finally:
                try:
                    _end(process)
                finally:
                    self.running.remove(process)
                    self.run.runner.remove(step)
                    reader.join()
                    process.stderr.close()
        return exit_code, last_line[0]

    def _read(self, step: str, stderr, log, last_line: list[str]) -> None:
        try:
            self._follow(step, stderr, _SafeLog(log), last_line)
        finally:
            for _ in stderr:  # whatever went wrong here: a step whose pipe nobody empties would wait for ever
                pass

    def _follow(self, step: str, stderr, log: "_SafeLog", last_line: list[str]) -> None:
        pace = Pace()
        for raw in stderr:
            log.write(raw)
            line = raw.decode(errors="replace").strip().rpartition("\r")[2]  # the newest state of a progress bar
            if not line or HINT.match(line):
                continue
            last_line[0] = line
            if again := AGAIN.search(line):
                self.run.listener.tried_again(step, again["text"])
            if progress := progress_of(line):
                progress = pace.extended(progress)
                self.run.listener.progress(step, progress.done, progress.total, progress.text)


class _SafeLog:
    """A log that may fail to be written, as on a full disk: the step goes on, and one line says what is missing."""

    def __init__(self, file: Any):
        self.file, self.has_failed = file, False

    def write(self, raw: bytes) -> None:
        try:
            self.file.write(raw)
        except OSError as error:
            if not self.has_failed:
                logger.warning("%s: lines are missing: %s; make room on its disk", self.file.name, error.strerror)
            self.has_failed = True


def _check_parameters(declared, parameters: dict[str, Any]) -> None:
    for name in parameters:
        if name not in declared:
            raise ValueError(f"{name}: the graph has no such parameter; it has {', '.join(sorted(declared))}")
    for name, parameter in declared.items():
        if name not in parameters and not parameter.HasField("default_value") and not parameter.is_optional:
            raise ValueError(f"{name}: the graph needs a value for this parameter")


def _settings(platform_spec) -> dict[str, dict[str, Any]]:
    """Returns the Kubernetes settings in the graph, by the label of the executor that they are for."""
    kubernetes = json_format.MessageToDict(platform_spec).get("platforms", {}).get("kubernetes", {})
    return kubernetes.get("deploymentSpec", {}).get("executors", {})


def _check_inputs(step: str, component_spec, arguments: dict[str, Any]) -> None:
    """Refuses an input that has no value: kfp.local would put `null` on the command line."""
    declared = component_spec.input_definitions
    for name, definition in [*declared.parameters.items(), *declared.artifacts.items()]:
        if arguments.get(name) is None and not definition.is_optional:
            raise GraphError(f"{step}: input {name!r} has no value")


def _outputs_of(executor_input, component_spec) -> dict[str, Any]:
    """Returns the outputs of a step that exited 0, by name.

    Raises:
        ValueError: an output parameter was not written, or nothing at all, or the file cannot be read.
    """
    file = Path(executor_input.outputs.output_file)
    if not any(file.parent.iterdir()):  # Docker may report 0 for a container that died at once
        raise ValueError(f"nothing was written to {file.parent}")
    written = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name, parameter in executor_input.outputs.parameters.items():
        if name in written.get("parameterValues", {}):
            # Takes precedence over the parameter's own file, as in the backend; in kfp.local it is the reverse.
            Path(parameter.output_file).unlink(missing_ok=True)
        elif not Path(parameter.output_file).exists():
            raise ValueError(f"output parameter {name!r} was not written to {parameter.output_file}")
    artifacts = written.setdefault("artifacts", {})
    for name, declared in executor_input.outputs.artifacts.items():
        artifacts.setdefault(name, {"artifacts": [{"name": name, "uri": declared.artifacts[0].uri}]})
    storage.write_text(file, json.dumps(written))
    return executor_output_utils.get_outputs_for_task(executor_input, component_spec)


def _cause(exit_code: int, last_line: str) -> str:
    """Returns why a step failed: the last line of its stderr, which after a signal tells only how far it had come."""
    if exit_code > 0:
        return last_line or f"exit code {exit_code}"
    memory = " (out of memory?)" if exit_code == -signal.SIGKILL else ""
    return f"ended by {signal.Signals(-exit_code).name}{memory}" + (f"; last line: {last_line}" if last_line else "")


def _end(process: Process) -> None:
    """Ends a step and all the processes that it started; a running step gets time to save its state."""
    try:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # the process group is empty
        os.killpg(process.pid, number)


@contextmanager
def _replaced(owner: Any, name: str, ours: Callable) -> Iterator[None]:
    theirs = existing(owner, name)
    if list(inspect.signature(theirs).parameters) != list(inspect.signature(ours).parameters):
        raise RuntimeError(f"{owner.__name__}.{name} takes other arguments than in kfp 2.17.0: install kfp==2.17.0")
    setattr(owner, name, ours)
    try:
        yield
    finally:
        setattr(owner, name, theirs)
