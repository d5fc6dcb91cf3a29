"""Executes the runs of the server that stands in for Kubeflow (`tests.kubeflow_server`): each pod is a process here.

a submitted run -> its steps run, and end and are tried again as Argo's pods do; `Execution` says how far they are

Artifacts go to a folder of this machine, whatever the run's pipeline root is. Runs are executed one after another.
"""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kfp_server_api as api
import yaml

from pipelines.package import Package, Task
from posttrain.config.line import find_step
from runner.fork_server import WITH_MODEL, ForkServer
from runner.forking import ForkingRunner
from runner.local import GraphRun, Process, Step, run_graph
from runner.walk import GraphError
from tests.kubeflow_server import EXIT_TASK, Behaviour, Kubeflow, Scene, serve

EXIT_STEP = "report_run"
AGAIN, FAILED = -signal.SIGKILL, 1  # exit codes: kfp tries the first again, as often as compiled
MAX_DEFAULT_RETRIES = 2  # of 2.17's workflowDefaults
# What the driver of a task says for which MLMD has refused an event.
NO_EXECUTION = 'failed to lookup existing execution: no execution found for name=""'
TOO_LATE = "Step exceeded its deadline"


@dataclass
class Pod:
    """A process, whose exit code is what Argo's retry policy makes of it."""

    process: Process
    behaviour: Behaviour
    is_deleted: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> Any:
        return self.process.stderr

    def poll(self) -> int | None:
        code = self.process.poll()
        return None if code is None else self._seen(code)

    def wait(self, timeout: float | None = None) -> int:
        return self._seen(self.process.wait(timeout))

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def delete(self) -> None:
        """Ends the pod as `kubectl delete` does: its launcher dies at once, so its step has about a second."""
        self.is_deleted = True
        self.signal(signal.SIGTERM)
        threading.Timer(1.0, self.signal, [signal.SIGKILL]).start()

    def _seen(self, code: int) -> int:
        """A deleted pod is in phase Error, any other that fails in phase Failed; a policy retries one of the two."""
        if code == 0 and not self.is_deleted:
            return 0
        return AGAIN if self.is_deleted == self.behaviour.retries_errors else FAILED


@dataclass
class Pods(ForkingRunner):
    """Starts the pods of a run, until it is terminated."""

    behaviour: Behaviour = Behaviour()
    conflicts: frozenset[str] = frozenset()  # names of rows of `line` whose steps get one artifact twice
    running: list[Pod] = field(default_factory=list)
    is_terminated: bool = False

    def start(self, step: Step, directory: Path, environment: dict[str, str], stdout: int) -> Process:
        if cause := self.refusal(step.name):
            raise GraphError(f"{step.name}: driver: {cause}")
        for server in self.servers.values():  # whatever run it was started for: what it has imported is the same
            server.environment = environment
        pod = Pod(super().start(step, directory, environment, stdout), self.behaviour)
        self.running.append(pod)
        return pod

    def refusal(self, step: str) -> str | None:
        """Says why the step's driver fails, if it does."""
        row = find_step(step)
        if self.behaviour.has_unique_events and (row.name if row else step) in self.conflicts:
            return NO_EXECUTION
        is_late = self.is_terminated and (step != EXIT_STEP or self.behaviour.retries_errors)
        return TOO_LATE if is_late else None

    def delete(self) -> None:
        for pod in self.running:
            pod.delete()

    def terminate(self) -> None:
        """Ends all pods: with 2.17's defaults they are dead 0.2 s after SIGTERM, else they have time to save."""
        self.is_terminated = True
        for pod in self.running:
            pod.signal(signal.SIGTERM)
            if self.behaviour.retries_errors:
                threading.Timer(0.2, pod.signal, [signal.SIGKILL]).start()


@dataclass
class Execution:
    """One run: its graph on disk, and the states of its tasks so far."""

    graph: Path
    parameters: dict[str, Any]
    run_id: str
    behaviour: Behaviour
    pool: ThreadPoolExecutor
    servers: dict[bool, dict[str, ForkServer]]  # whether the graph loads a model -> those that fork its steps
    tasks: dict[str, str] = field(default_factory=dict)  # name -> state, in the order in which they started
    num_attempts: dict[str, int] = field(default_factory=dict)  # by task

    def __post_init__(self) -> None:
        self.package = Package.read(self.graph)
        self.steps = {step.constants.get("step"): step for step in self.package.steps}
        self.pods = self._pods()
        self.ending: Future = self.pool.submit(self._run)

    def scene(self) -> Scene:
        state = "RUNNING" if self.ending.running() else "PENDING"
        if self.ending.done():
            state = "SUCCEEDED" if self.ending.result() else "FAILED"
        return Scene(state, dict(self.tasks))

    def terminate(self) -> None:
        self.pods.terminate()

    def delete_pods(self) -> None:
        self.pods.delete()

    def retry(self) -> None:
        """Runs the graph again: finished steps are found by their results, as in any later run."""
        self.pods = self._pods()
        self.tasks = {name: state for name, state in self.tasks.items() if state == "SUCCEEDED" and name != EXIT_TASK}
        self.ending = self.pool.submit(self._run)

    def started(self, step: str) -> None:
        task = self._task(step)
        if self.pods.refusal(step):
            self.tasks |= {f"{task}-driver": "FAILED", task: "SKIPPED"}
            return
        self.tasks[task] = "RUNNING"
        self.num_attempts[task] = self.num_attempts.get(task, 0) + 1

    def tried_again(self, step: str, text: str) -> None:
        pass

    def progress(self, step: str, done: int, total: int, text: str) -> None:
        pass

    def finished(self, step: str, exit_code: int, seconds: float, cause: str | None) -> None:
        task = self._task(step)
        retries = self.steps[step].spec.get("retryPolicy", {}).get("maxRetryCount", 0) if step in self.steps else 0
        if exit_code != AGAIN or self.num_attempts[task] > retries:
            self.tasks[task] = "FAILED" if cause else "SUCCEEDED"

    def _pods(self) -> Pods:
        loads_model = any(step.runs(module) for step in self.package.steps for module in WITH_MODEL)
        servers = self.servers.setdefault(loads_model, {})
        return Pods(loads_model, (), servers, self.behaviour, conflicts(self.package))

    def _run(self) -> bool:
        folder = self.graph.parent
        run = GraphRun(self.run_id, folder / "artifacts", folder / "logs", self, self.pods)
        succeeded = run_graph(self.graph, self.parameters, run)
        for error in run.errors:
            print(f"{self.run_id}: {error}", file=sys.stderr)
        self.tasks |= {name: "FAILED" for name, state in self.tasks.items() if state == "RUNNING"}
        return succeeded

    def _task(self, step: str) -> str:
        """Returns the name of the step's task; those of a loop share it."""
        if step in self.steps:
            return self.steps[step].key
        loops = [task.key for task in self.package.steps if any(group.is_loop for group in task.groups)]
        return loops[0] if loops else step


def conflicts(package: Package) -> frozenset[str]:
    """Names the steps that get one artifact under two names, wherever on its way to them the names part."""
    names = set()
    for step in package.steps:
        sources = [_source(package, step, given) for given in step.given("artifacts").values()]
        if len(sources) > len(set(sources)):
            row = find_step(step.name)
            names.add(row.name if row else step.name)
    return frozenset(names)


def _source(package: Package, task: Task, given: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the group, the task and the output that an input artifact comes from."""
    if "componentInputArtifact" in given and task.group:
        return _source(package, task.group, task.group.given("artifacts")[given["componentInputArtifact"]])
    if "taskOutputArtifact" not in given:
        return tuple(sorted(given.items()))
    origin = given["taskOutputArtifact"]
    producer = next(one for one in package.inside(task.group) if one.key == origin["producerTask"])
    return _made(package, producer, origin["outputArtifactKey"])


def _made(package: Package, task: Task, output: str) -> tuple[Any, ...]:
    """Returns the step that makes an output, which a group of tasks hands on."""
    if "dag" not in task.component:
        return (id(task), output)
    (selector,) = task.component["dag"]["outputs"]["artifacts"][output]["artifactSelectors"]
    inner = next(one for one in package.inside(task) if one.key == selector["producerSubtask"])
    return _made(package, inner, selector["outputArtifactKey"])


def executor(
    folder: Path, behaviour: Behaviour, servers: dict[bool, dict[str, ForkServer]]
) -> Callable[[api.V2beta1Run], Execution]:
    """Returns what executes a submitted run, below a folder of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="run")  # `run_graph` changes kfp while it runs

    def execute(run: api.V2beta1Run) -> Execution:
        graph = folder / run.run_id / "graph.yaml"
        graph.parent.mkdir(parents=True)
        spec = run.pipeline_spec
        documents = [spec["pipeline_spec"], spec["platform_spec"]] if "pipeline_spec" in spec else [spec]
        _retry_errors(documents[0]) if behaviour.retries_errors else None
        graph.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        return Execution(graph, run.runtime_config.parameters or {}, run.run_id, behaviour, pool, servers)

    return execute


def _retry_errors(spec: dict[str, Any]) -> None:
    """Gives the tasks that are compiled without retries those of 2.17's defaults."""
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.setdefault("retryPolicy", {}).setdefault("maxRetryCount", MAX_DEFAULT_RETRIES)


@contextmanager
def serve_cluster(folder: Path, behaviour: Behaviour) -> Iterator[Kubeflow]:
    """Serves a Kubeflow that executes its runs."""
    with serve() as kubeflow:
        kubeflow.behaviour = behaviour
        servers: dict[bool, dict[str, ForkServer]] = {}
        kubeflow.execute = executor(folder, behaviour, servers)
        try:
            yield kubeflow
        finally:
            for server in [server for own in servers.values() for server in own.values()]:
                server.close()


def main() -> None:
    """Serves until stdin is closed; the first line on stdout is the address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for graphs, artifacts and logs of the runs")
    parser.add_argument("--without-defaults", action="store_true", help="an Argo without 2.17's workflowDefaults")
    parser.add_argument("--num-nodes-read", type=int, help="of a Workflow that is too large, such as 99")
    args = parser.parse_args()
    behaviour = Behaviour(retries_errors=not args.without_defaults, num_nodes_read=args.num_nodes_read)
    with serve_cluster(args.folder, behaviour) as kubeflow:
        print(kubeflow.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
