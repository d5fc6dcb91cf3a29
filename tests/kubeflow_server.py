"""A Kubeflow Pipelines API for tests: as much of v2beta1 as submitting, following and ending a run needs, over HTTP.

Its answers are the models of the generated client, serialised by it. The tasks of a run are named as the backend 2.17
names them: the pipeline itself, and beside each task its driver and its executor. A run plays the scenes that a test
gives, or is executed on this machine (`tests.kubeflow_pods`).

What a real backend was seen to do is a switch of `Behaviour`; its defaults are those of Kubeflow Pipelines 2.17.0:

- Argo tries a step again only after phase Error (the pod was deleted, the node was lost), twice at most, and not after
  an exit code. Installations without 2.17's `workflowDefaults` do the reverse.
- `task_details` come from the nodes of the Workflow. Beyond 1 MiB no more of them are read, so the last steps of the
  line never appear.
- A run that is terminated is CANCELING for a while, and then FAILED.
- A terminated run's exit task is omitted, because its driver has no time left; without the defaults it runs.
- While the persistence agent is away a run stays PENDING, without tasks, to its end.
"""

import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Literal, Protocol
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

STARTED = datetime(2026, 1, 1, tzinfo=UTC)
NOT_ENDED = datetime(1, 1, 1, tzinfo=UTC)  # what the backend says of a task that is running
TASK_SECONDS = 7
NUM_NODES_READ = 99  # of a Workflow whose status is over 1 MiB
NODES_OF_STEP = {True: 137 / 15, False: 86 / 15}  # of a line of 15 steps, with and without 2.17's defaults
EXIT_TASK = "report-run"
CLIENT = api.ApiClient()  # serialises

# A status to answer instead; "drop": the call does not arrive; "lose": it does, but its answer gets lost; "cut": half
# of the answer arrives; "page": what a proxy answers who is not signed in.
Fault = int | Literal["drop", "lose", "cut", "page"]


@dataclass(frozen=True)
class Behaviour:
    """Differences between installations of Kubeflow Pipelines, and while a part of one is away."""

    retries_errors: bool = True  # 2.17's defaults: retryPolicy OnError, limit 2; else OnFailure, as compiled
    has_unique_events: bool = True  # MLMD refuses one artifact under two names of a task: UNIQUE(artifact, execution)
    num_nodes_read: int | None = None  # None: all, as below 1 MiB
    has_persistence_agent: bool = True
    num_looks_canceling: int = 1  # before a terminated run is FAILED

    def read(self, tasks: dict[str, str]) -> dict[str, str]:
        """Returns the tasks whose nodes are read."""
        if not self.has_persistence_agent:
            return {}
        if self.num_nodes_read is None:
            return tasks
        num_tasks = round(self.num_nodes_read / NODES_OF_STEP[self.retries_errors])
        return dict(list(tasks.items())[:num_tasks])


@dataclass(frozen=True)
class Scene:
    """State of a run at one look."""

    state: str
    tasks: dict[str, str] = field(default_factory=dict)  # name -> state, in the order in which they started
    happens: Callable[[str], None] = lambda run_id: None  # since the look before: what the pods write

    def details(self, run_id: str, behaviour: Behaviour = Behaviour()) -> api.V2beta1RunDetails:  # noqa: B008
        if not behaviour.has_persistence_agent:
            return api.V2beta1RunDetails()
        nodes = {"post-training-x7k2p": self.state, "root-driver": "SUCCEEDED", "root": self.state}
        for name, state in behaviour.read(self.tasks).items():
            nodes |= {f"{name}-driver": "SUCCEEDED"} if f"{name}-driver" not in self.tasks else {}
            nodes |= {name: state, f"{name}.executor": state}
        tasks = [_task(run_id, name, state, second) for second, (name, state) in enumerate(nodes.items())]
        return api.V2beta1RunDetails(task_details=tasks[::-1])  # the backend promises no order

    def terminated(self, behaviour: Behaviour) -> "Scene":
        """Returns the end of a run that was terminated at this scene."""
        tasks = {name: "FAILED" if state == "RUNNING" else state for name, state in self.tasks.items()}
        if behaviour.retries_errors:  # "Step exceeded its deadline"
            return Scene("FAILED", tasks | {f"{EXIT_TASK}-driver": "FAILED", EXIT_TASK: "SKIPPED"})
        return Scene("FAILED", tasks | {EXIT_TASK: "SUCCEEDED"})


class Execution(Protocol):
    """A run whose steps really run."""

    def scene(self) -> Scene: ...

    def terminate(self) -> None: ...

    def retry(self) -> None: ...

    def delete_pods(self) -> None: ...


@dataclass
class Kubeflow:
    """A Kubeflow server: the calls it has received, and the scenes and faults it will answer with."""

    url: str = ""
    token: str | None = None  # that a caller must bring
    behaviour: Behaviour = Behaviour()
    execute: Callable[[api.V2beta1Run], Execution] | None = None  # starts a run; None: a run plays the scenes
    scenes: list[Scene] = field(default_factory=list)  # of every run, look by look; the last one stays
    scenes_of_runs: list[list[Scene]] = field(default_factory=list)  # of the first run, the second, ...; else `scenes`
    faults: dict[str, list[Fault]] = field(default_factory=dict)  # of the next calls of a name
    calls: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    experiments: dict[str, api.V2beta1Experiment] = field(default_factory=dict)
    runs: dict[str, api.V2beta1Run] = field(default_factory=dict)
    num_looks: dict[str, int] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)
    canceled_at: dict[str, int] = field(default_factory=dict)  # run -> number of looks before it was terminated
    retried: list[str] = field(default_factory=list)  # runs

    def get_healthz(self, query: dict[str, str], body: bytes) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=False)

    def list_experiments(self, query: dict[str, str], body: bytes) -> Any:
        name = _name_in(query)
        found = [experiment for experiment in self.experiments.values() if experiment.display_name == name]
        return api.V2beta1ListExperimentsResponse(experiments=found or None)

    def create_experiment(self, query: dict[str, str], body: bytes) -> Any:
        experiment = _read(body, "V2beta1Experiment")
        experiment.experiment_id = str(uuid.uuid4())
        self.experiments[experiment.experiment_id] = experiment
        return experiment

    def list_runs(self, query: dict[str, str], body: bytes) -> Any:
        assert query["experiment_id"] in self.experiments
        found = [run for run in self.runs.values() if run.display_name == _name_in(query)]
        return api.V2beta1ListRunsResponse(runs=found or None)

    def create_run(self, query: dict[str, str], body: bytes) -> Any:
        run = _read(body, "V2beta1Run")
        run.run_id, run.created_at, run.state = str(uuid.uuid4()), STARTED, "PENDING"
        self.runs[run.run_id] = run
        if self.execute:
            self.executions[run.run_id] = self.execute(run)
        return run

    def get_run(self, query: dict[str, str], body: bytes) -> Any:
        run = self.runs.get(query["run_id"])
        if run is None:
            return 404, f"Failed to get a run: ResourceNotFoundError: Run {query['run_id']} not found."
        look = self.num_looks.get(run.run_id, 0)
        self.num_looks[run.run_id] = look + 1
        scene = self._scene(run.run_id, look)
        run.state = scene.state if self.behaviour.has_persistence_agent else "PENDING"
        run.run_details = scene.details(run.run_id, self.behaviour)
        return run

    def terminate_run(self, query: dict[str, str], body: bytes) -> Any:
        run = self.runs[query["run_id"]]
        if run.state not in ("PENDING", "RUNNING"):
            return 400, f"Failed to terminate a run: InvalidInputError: Failed to terminate a run {run.run_id}."
        self.canceled_at[run.run_id] = self.num_looks.get(run.run_id, 0)
        if run.run_id in self.executions:
            self.executions[run.run_id].terminate()
        return {}

    def retry_run(self, query: dict[str, str], body: bytes) -> Any:
        """Runs the failed steps of a run again, and what follows them; finished ones stay."""
        run = self.runs[query["run_id"]]
        if run.state != "FAILED":
            return 400, f"Failed to retry a run: Workflow must be Failed/Error to retry: {run.run_id}"
        self.retried.append(run.run_id)
        self.canceled_at.pop(run.run_id, None)
        if run.run_id in self.executions:
            self.executions[run.run_id].retry()
        return {}

    def delete_pod(self, query: dict[str, str], body: bytes) -> Any:
        """Deletes the running pods of a run. This is the word of kubectl, which a real server does not know."""
        self.executions[query["run_id"]].delete_pods()
        return {}

    def _scene(self, run_id: str, look: int) -> Scene:
        canceled_at = self.canceled_at.get(run_id)
        is_canceling = canceled_at is not None and look < canceled_at + self.behaviour.num_looks_canceling
        if run_id in self.executions:
            scene = self.executions[run_id].scene()
            return replace(scene, state="CANCELING") if is_canceling else scene
        number = list(self.runs).index(run_id)
        scenes = self.scenes_of_runs[number] if number < len(self.scenes_of_runs) else self.scenes
        scene = scenes[min(look if canceled_at is None else canceled_at - 1, len(scenes) - 1)]
        if is_canceling:
            return replace(scene, state="CANCELING")
        if canceled_at is not None:
            return scene.terminated(self.behaviour)
        if look < len(scenes):
            scene.happens(run_id)
        return scene


def _task(run_id: str, name: str, state: str, second: int) -> api.V2beta1PipelineTaskDetail:
    started = STARTED + timedelta(seconds=second)
    ended = NOT_ENDED if state in ("PENDING", "RUNNING") else started + timedelta(seconds=TASK_SECONDS)
    return api.V2beta1PipelineTaskDetail(
        run_id=run_id, task_id=str(uuid.uuid4()), display_name=name, create_time=started, start_time=started,
        end_time=ended, state=state, child_tasks=[api.PipelineTaskDetailChildTask(pod_name=f"{name}-pod")],
    )  # fmt: skip


def _read(body: bytes, model: str) -> Any:
    return CLIENT.deserialize(SimpleNamespace(data=body), model)


def _name_in(query: dict[str, str]) -> str:
    (predicate,) = json.loads(query["filter"])["predicates"]
    assert predicate["key"] == "display_name" and predicate["operation"] in (1, "EQUALS")
    return predicate["stringValue"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: two would wait 40 ms for each other
    kubeflow: Kubeflow

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind, _, run_id = url.path.removeprefix("/pipeline/apis/v2beta1/").partition("/")
        run_id, _, action = run_id.partition(":")
        verb = "create" if self.command == "POST" else "get" if run_id or kind == "healthz" else "list"
        verb = action or verb
        call = f"{verb}_{kind.removesuffix('s') if verb != 'list' else kind}"
        self.kubeflow.calls.append(call)
        self.kubeflow.tokens.append(self.headers.get("Authorization"))
        waiting = self.kubeflow.faults.get(call)
        fault = waiting.pop(0) if waiting else None
        if fault not in (None, "lose", "cut"):
            self._spoil(fault)
        elif self.kubeflow.token and self.headers.get("Authorization") != f"Bearer {self.kubeflow.token}":
            self._spoil(401)
        else:
            answer = getattr(self.kubeflow, call)(query | {"run_id": run_id}, body)
            self._refuse(*answer) if isinstance(answer, tuple) else self._answer(answer, fault)

    def _answer(self, model: Any, fault: Fault | None) -> None:
        if fault == "lose":
            self.close_connection = True
            return
        self._send(200, "application/json", json.dumps(CLIENT.sanitize_for_serialization(model)), cut=fault == "cut")

    def _spoil(self, fault: Fault) -> None:
        if fault == "drop":
            self.close_connection = True
        elif fault == "page":
            self._send(200, "text/html", "<html><form>Sign in</form></html>")
        elif fault in (401, 403):
            self._refuse(fault, "there is no user identity header" if fault == 401 else "not authorized to create runs")
        else:
            self._send(fault, "text/plain", "upstream connect error")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(CLIENT.sanitize_for_serialization(api.GoogleRpcStatus(code=status, message=message)))
        self._send(status, "application/json", body)

    def _send(self, status: int, content_type: str, text: str, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode()[: len(text) // 2 if cut else None])
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *args: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client did not wait for the answer
            super().handle_error(*args)


@contextmanager
def serve() -> Iterator[Kubeflow]:
    """A server on a free port, below the path `/pipeline`."""
    kubeflow = Kubeflow()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"kubeflow": kubeflow}))
    kubeflow.url = f"http://127.0.0.1:{server.server_port}/pipeline"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield kubeflow
    server.shutdown()
    server.server_close()
