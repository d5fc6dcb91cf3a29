"""Sends the compiled graph to a Kubeflow endpoint and follows the run there.

compiled YAML, run parameters -> run id; run id -> calls of a `TaskListener`, the final state of the run

This module adds three things to kfp's client 2.17:

- kfp's calls wait for a silent server forever, and fail where a busy one would answer a moment later. Ours time out and
  are retried for a while. Every problem is an `OSError` or a `ValueError` on one line that says what to do.
- Retrying to create a run whose answer got lost may start it twice. Ours looks for the run by its name first.
- `wait_for_run_completion` never returns on CANCELED (kubeflow/pipelines#14473). Ours polls the state itself. CANCELING
  is no end: the pods of a terminated run still end, and some seconds later the state is FAILED.
"""

import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import kfp
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, TokenCredentialsBase
from kfp_server_api import ApiException, V2beta1GetHealthzResponse, V2beta1Run
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from pipelines.package import Package

ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}  # final states of a run
REPORTED = {"RUNNING", "SUCCEEDED", "FAILED"}  # states of a task; a skipped one had no reason to run
BUSY = {429, 500, 502, 503, 504}  # HTTP statuses worth a retry; Kubeflow answers 500 while its database is away
TIME_LIMITS = (10, 60)  # seconds: to connect, to answer
POLL_SECONDS = 10.0
SUBMIT_PATIENCE_SECONDS = 60.0  # for a server that is away or busy, while the user waits for the run to start
FOLLOW_PATIENCE_SECONDS = 900.0  # while a run is followed: an upgrade of the cluster takes minutes
MAX_WAIT_SECONDS = 30.0  # between two attempts

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TaskListener(Protocol):
    """Hears what Kubeflow says of the run and its steps. A step that is tried again stays started."""

    def started(self, step: str) -> None: ...

    def ended(self, step: str, succeeded: bool, seconds: float) -> None:
        """Hears that a step ended. `seconds` include the wait for a node and the pull of the image."""

    def looked(self, state: str) -> bool:
        """Hears the state of the run at each look, before anything else; returns whether the run is over anyway."""


class TokenFile(TokenCredentialsBase):
    """Reads a bearer token from a file at every call: it may be replaced while a run is followed."""

    def __init__(self, path: str):
        self.path = path
        self.read()

    def read(self) -> str:
        """Returns the token. It is checked here because the HTTP library prints the whole header if it refuses one."""
        token = Path(self.path).read_text(encoding="ascii", errors="replace").strip()
        if not re.fullmatch(r"[!-~]+", token):
            raise ValueError(f"the token file {self.path} has no token in it: write the token into it and nothing else")
        return token

    def refresh_api_key_hook(self, config) -> None:
        config.api_key["authorization"] = self.read()


class Client(kfp.Client):
    """Adds time limits, retries while the server is away or busy, and clear errors to `kfp.Client`."""

    def __init__(self, url: str, *, namespace: str | None = None, token_file: str | None = None):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--endpoint {url!r} is not a URL; give one like https://kubeflow.example.org/pipeline")
        self.url = url.rstrip("/")
        self.token_file = token_file or os.environ.get(KF_PIPELINES_SA_TOKEN_ENV)
        if self.token_file and url.startswith("http://") and urlsplit(url).hostname not in ("localhost", "127.0.0.1"):
            logger.warning("--endpoint %s: the token is sent unencrypted, readable on the way: use https://", url)
        self.namespace = namespace
        self.patience_seconds = SUBMIT_PATIENCE_SECONDS
        logging.getLogger("urllib3.connectionpool").setLevel(
            logging.ERROR
        )  # we report a lost connection ourselves, once
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This client only works with", category=FutureWarning)
            super().__init__(
                host=url,
                credentials=TokenFile(self.token_file) if self.token_file else None,
                **({"namespace": namespace} if namespace else {}),
            )
        rest = self._run_api.api_client.rest_client  # shared by all services
        rest.request = _with_time_limits(rest.request)

    def get_kfp_healthz(self, sleep_duration: int = 5) -> V2beta1GetHealthzResponse:
        """Replaces kfp's call on its way to a namespace, whose five attempts print a traceback each."""
        return self.ask(self.healthzs.healthz_service_get_healthz, _request_timeout=TIME_LIMITS)

    def ask(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Makes a call, and again while the server is away or busy; returns the answer.

        Raises:
            PermissionError: the server refuses the caller, or the caller may not do this.
            ConnectionError: the server stayed away or busy for `patience_seconds`.
            ValueError: the server refused the request.
        """
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_exponential(max=MAX_WAIT_SECONDS),
            stop=stop_after_delay(self.patience_seconds),
            before_sleep=self._warn,
            reraise=True,
        )
        try:
            return retrying(call, *args, **kwargs)
        except (ApiException, HTTPError) as error:  # not chained: the headers of an answer may be secret
            raise self._problem(error) from None

    def page(self, run_id: str) -> str:
        """Returns the address of the run's page."""
        return f"{self.url}/#/runs/details/{run_id}"

    def _warn(self, state: RetryCallState) -> None:
        if state.attempt_number == 1:
            cause = _cause(state.outcome.exception())
            logger.warning("%s: %s; retrying for up to %.0f s", self.url, cause, self.patience_seconds)

    def _problem(self, error: ApiException | HTTPError) -> Exception:
        text, status = f"{self.url}: {_cause(error)}", getattr(error, "status", None)
        if status == 401:
            remedy = f"write a fresh token into {self.token_file}" if self.token_file else "give --token-file FILE"
            return PermissionError(f"{text}; it needs a valid token: {remedy}")
        if status == 403:
            where = (
                f"namespace {self.namespace}" if self.namespace else "the namespace, or name one with --namespace NAME"
            )
            return PermissionError(f"{text}; the caller lacks permission: bind the role kubeflow-edit to it in {where}")
        return ConnectionError(text) if _may_pass(error) or isinstance(error, HTTPError) else ValueError(text)


def submit(
    client: Client,
    package: Path,
    *,
    experiment: str,
    name: str,
    parameters: dict[str, Any],
    pipeline_root: str | None = None,
) -> str:
    """Creates a run of the package in an experiment, which is created if necessary; returns the run's id.

    The name must be new: a run whose creation got no answer is found by it.
    """
    with redirect_stdout(None):  # kfp prints links
        group = client.ask(client.create_experiment, experiment)
        check_is_kubeflow(client, group.experiment_id)

        def create() -> V2beta1Run:
            predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
            created = client.list_runs(
                experiment_id=group.experiment_id, filter=json.dumps({"predicates": [predicate]})
            ).runs
            if created:
                return created[0]
            return client.run_pipeline(group.experiment_id, name, str(package), parameters, pipeline_root=pipeline_root)

        run_id = client.ask(create).run_id
    check_is_kubeflow(client, run_id)
    return run_id


def follow(
    client: Client, run_id: str, steps: dict[str, str], listener: TaskListener, *, poll_seconds: float | None = None
) -> str:
    """Reports what happens to the run until it has ended; returns its final state, or the last one that was seen.

    Args:
        client: the cluster of the run.
        run_id: its id.
        steps: name of a task -> name of its step, from `steps_of_tasks`.
        listener: is called.
        poll_seconds: between two looks; None: `POLL_SECONDS`.
    """
    client.patience_seconds = FOLLOW_PATIENCE_SECONDS
    reported: dict[str, str] = {}
    while True:
        run = client.ask(client.get_run, run_id)
        check_is_kubeflow(client, run.run_id)
        is_over = listener.looked(run.state)
        for step, state, seconds in _states(run, steps):
            if step not in reported:
                listener.started(step)
            if state != "RUNNING" and reported.get(step) != state:
                listener.ended(step, state == "SUCCEEDED", seconds)
            reported[step] = state
        if is_over or run.state in ENDED:
            return run.state
        time.sleep(POLL_SECONDS if poll_seconds is None else poll_seconds)


def terminate(client: Client, run_id: str) -> None:
    """Ends a run: its running steps get SIGTERM, and whether they have time to save depends on the installation."""
    client.ask(client.terminate_run, run_id)


def steps_of_tasks(package: Package) -> dict[str, str]:
    """Maps names of tasks in Kubeflow (`merge-dpo`) to names of steps (`merge_dpo`).

    Tasks in a loop are left out: they have the same name in each iteration.
    """
    return {step.key: step.name for step in package.steps if not any(group.is_loop for group in step.groups)}


def check_is_kubeflow(client: Client, object_id: str | None) -> None:
    """Refuses an answer that is not Kubeflow's: its objects have an id; from any other page kfp makes an empty one."""
    if not object_id:
        raise ValueError(
            f"{client.url}: the answer is not from a Kubeflow Pipelines API, and may be a sign-in page: "
            "give the address below which /apis/v2beta1 is served, and --token-file FILE"
        )


def _states(run: V2beta1Run, steps: dict[str, str]) -> Iterator[tuple[str, str, float]]:
    """Yields step, state and seconds of each task to report, in the order in which they started.

    Each task has a driver, which prepares the pod: if that fails, the task itself counts as skipped.
    """
    details = (run.run_details and run.run_details.task_details) or []
    tasks = [task for task in details if task.state in REPORTED and task.start_time]
    for task in sorted(tasks, key=lambda task: task.start_time):
        name = task.display_name.removesuffix("-driver") if task.state == "FAILED" else task.display_name
        if name in steps:
            ended = task.end_time or task.start_time  # for a running task, the year 1 or None
            yield steps[name], task.state, (ended - task.start_time).total_seconds()


def _with_time_limits(request: Callable[..., T]) -> Callable[..., T]:
    def limited(*args, _request_timeout=None, **kwargs) -> T:
        return request(*args, _request_timeout=_request_timeout or TIME_LIMITS, **kwargs)

    return limited


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ApiException):
        return error.status in BUSY
    for_good = isinstance(error, LocationValueError) or isinstance(getattr(error, "reason", None), SSLError)
    return isinstance(error, HTTPError) and not for_good


def _cause(error: ApiException | HTTPError) -> str:
    """Returns `503 Service Unavailable` with Kubeflow's own message, or why there was no answer."""
    if isinstance(error, HTTPError):
        reason = getattr(error, "reason", None) or error
        return str(reason.args[0] if reason.args else reason)
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):  # no body, or the page of a proxy
        body = {}
    message = body.get("message") or body.get("error") if isinstance(body, dict) else None
    return f"{error.status} {error.reason}" + (f": {message}" if message else "")
