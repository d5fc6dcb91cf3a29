"""Tests that the server that stands in for Kubeflow does with the pods of a run what a real one was seen to do."""

import time
from pathlib import Path

import pytest
from kfp import compiler, dsl

from pipelines.package import Package
from runner.kubeflow import Client, submit
from tests.kubeflow_pods import conflicts, serve_cluster
from tests.kubeflow_server import Behaviour, Scene

DEFAULTS = Behaviour()
WITHOUT = Behaviour(retries_errors=False)


@dsl.container_component
def work(step: str, folder: str, plan: str, out: dsl.OutputPath(str)):
    args = ["--step", step, "--folder", folder, "--plan", plan, "--out", out]
    return dsl.ContainerSpec(image="example.org/cpu", command=["python", "-m", "tests.kubeflow_step"], args=args)


@dsl.container_component
def report_run(step: str, folder: str, plan: str, status: dsl.PipelineTaskFinalStatus, out: dsl.OutputPath(str)):
    args = ["--step", step, "--folder", folder, "--plan", plan, "--out", out]
    return dsl.ContainerSpec(image="example.org/cpu", command=["python", "-m", "tests.kubeflow_step"], args=args)


@dsl.container_component
def join(one: dsl.Input[dsl.Artifact], other: dsl.Input[dsl.Artifact], made: dsl.Output[dsl.Artifact]):
    return dsl.ContainerSpec(image="example.org/cpu", command=["true"], args=[one.path, other.path, made.path])


@dsl.container_component
def make(made: dsl.Output[dsl.Artifact]):
    return dsl.ContainerSpec(image="example.org/cpu", command=["true"], args=[made.path])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A step that is tried again once, and an exit task."""

    @dsl.pipeline(name="post-training")
    def graph(folder: str, plan: str):
        with dsl.ExitHandler(report_run(step="report_run", folder=folder, plan="works"), name="line"):
            work(step="train_sft", folder=folder, plan=plan).set_retry(1)

    path = tmp_path_factory.mktemp("package") / "graph.yaml"
    compiler.Compiler().compile(graph, str(path))
    return path


class Run:
    """A run of the package in which something happens to its first pod."""

    def __init__(self, package: Path, folder: Path, behaviour: Behaviour, plan: str, happens: str | None = None):
        self.folder = folder
        with serve_cluster(folder, behaviour) as kubeflow:
            client = Client(kubeflow.url)
            parameters = {"folder": str(folder), "plan": plan}
            run_id = submit(client, package, experiment="e", name="r", parameters=parameters)
            execution = kubeflow.executions[run_id]
            if happens:
                self.wait(lambda: self.attempts("train_sft"))
                getattr(execution, happens)()
            execution.ending.result(timeout=60)
            self.states, self.run = [], client.get_run(run_id)
            while self.states[-1:] != [self.run.state]:
                self.states.append(self.run.state)
                self.run = client.get_run(run_id)
            self.tasks = {task.display_name: task.state for task in self.run.run_details.task_details or []}

    def attempts(self, step: str) -> list[str]:
        file = self.folder / step
        return file.read_text().split() if file.exists() else []

    def wait(self, condition) -> None:
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("behaviour", "plan", "happens", "attempts", "state"),
    [
        (DEFAULTS, "leaves once", None, ["attempt"], "FAILED"),
        (WITHOUT, "leaves once", None, ["attempt", "attempt"], "SUCCEEDED"),
        (DEFAULTS, "waits once", "delete_pods", ["attempt", "saved", "attempt"], "SUCCEEDED"),
        (WITHOUT, "waits once", "delete_pods", ["attempt", "saved"], "FAILED"),
    ],
    ids=["defaults-failed", "without-failed", "defaults-deleted", "without-deleted"],
)
def test_each_retry_policy_tries_again_what_the_other_does_not(
    package, tmp_path, behaviour, plan, happens, attempts, state
):
    run = Run(package, tmp_path, behaviour, plan, happens)
    assert run.attempts("train_sft") == attempts
    assert run.tasks["work"] == run.run.state == state
    assert run.attempts("report_run") == ["attempt"]


def test_a_run_that_is_terminated_is_canceling_and_then_failed(package, tmp_path):
    """The API is asked, as the first look must be before the end."""
    with serve_cluster(tmp_path, DEFAULTS) as kubeflow:
        client = Client(kubeflow.url)
        run_id = submit(
            client, package, experiment="e", name="r", parameters={"folder": str(tmp_path), "plan": "waits once"}
        )
        while not (tmp_path / "train_sft").exists():
            time.sleep(0.02)
        assert client.get_run(run_id).state == "RUNNING"
        client.terminate_run(run_id)
        kubeflow.executions[run_id].ending.result(timeout=60)
        assert [client.get_run(run_id).state for _ in range(3)] == ["CANCELING", "FAILED", "FAILED"]
        client._run_api.run_service_retry_run(run_id)
        kubeflow.executions[run_id].ending.result(timeout=60)
        assert client.get_run(run_id).state == "SUCCEEDED"


@pytest.mark.parametrize(
    ("behaviour", "ends"),
    [
        (DEFAULTS, (["attempt"], [], "SKIPPED")),
        (WITHOUT, (["attempt", "saved"], ["attempt"], "SUCCEEDED")),
    ],
    ids=["defaults", "without"],
)
def test_termination_leaves_time_and_an_exit_task_only_without_the_defaults(package, tmp_path, behaviour, ends):
    run = Run(package, tmp_path, behaviour, "waits once", "terminate")
    assert (run.attempts("train_sft"), run.attempts("report_run"), run.tasks.get("report-run")) == ends


def test_one_artifact_under_two_names_is_refused_wherever_the_names_part(tmp_path):
    @dsl.component(base_image="python:3.11")
    def passed() -> bool:
        return True

    @dsl.pipeline(name="twice")
    def graph():
        made, other = make(), make()
        with dsl.If(passed().output == True):  # noqa: E712
            join(one=made.outputs["made"], other=made.outputs["made"]).set_display_name("twice")
            join(one=made.outputs["made"], other=other.outputs["made"]).set_display_name("once")

    compiler.Compiler().compile(graph, str(tmp_path / "graph.yaml"))
    assert conflicts(Package.read(tmp_path / "graph.yaml")) == {"twice"}


def test_the_last_steps_of_a_large_workflow_are_not_read():
    tasks = dict.fromkeys([f"step-{number}" for number in range(15)], "SUCCEEDED")
    details = Scene("SUCCEEDED", tasks).details("r", Behaviour(num_nodes_read=99)).task_details
    names = {task.display_name for task in details}
    assert {"step-10", "root"} <= names
    assert "step-11" not in names


def test_without_its_persistence_agent_a_run_has_no_tasks():
    assert not Scene("SUCCEEDED", {"a": "SUCCEEDED"}).details("r", Behaviour(has_persistence_agent=False)).task_details
