"""Local steps are forked where a fork is what they would be, and started as they are elsewhere."""

import os
import signal

import pytest

from pipelines.compiler import compile_graph
from posttrain.config import PipelineConfig, Validation
from runner import forks
from runner.docker import Docker
from runner.forking import ForkedProcesses, forked
from runner.local import Processes, Step

pytestmark = pytest.mark.skipif(not forks.IS_POSSIBLE, reason="forks are for Linux")
MODEL_STEPS = {"train_sft", "check_sft", "check_sft_merge", "train_dpo", "check_dpo_merge", "check_alignment"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    compile_graph(PipelineConfig(validation=Validation(custom_checks=["output_format_valid"])), path)
    return path


@pytest.fixture
def processes():
    found = ForkedProcesses(needs_models=False, reused=())
    yield found
    found.close()


def start(processes: Processes, tmp_path, name: str = "fetch_model", **variables):
    step = Step(name, "image", ["python", "-m", "tests.pipelines.forked"], {}, {}, tmp_path, 0, {})
    with open(tmp_path / "out", "wb") as out:
        process = processes.start(step, tmp_path.cwd(), os.environ | variables, out.fileno())
    assert process.wait(60) == 0
    process.stderr.close()
    return (tmp_path / "out").read_text().strip()


def test_steps_are_forked_from_one_process(processes, tmp_path):
    (tmp_path / "a").mkdir()
    parent = start(processes, tmp_path)
    assert parent == start(processes, tmp_path) == str(processes.servers["plain"]._process.pid)


def test_a_step_with_an_environment_of_its_own_is_started_as_it_is(processes, tmp_path):
    start(processes, tmp_path)
    assert start(processes, tmp_path, OMP_NUM_THREADS="7") == str(os.getpid())


def test_where_the_process_is_gone_steps_are_started_as_they_are(processes, tmp_path):
    start(processes, tmp_path)
    os.kill(processes.servers["plain"]._process.pid, signal.SIGKILL)
    assert start(processes, tmp_path) == str(os.getpid())


@pytest.mark.parametrize(
    ("reused", "needs_models"), [((), True), (MODEL_STEPS - {"train_dpo"}, True), (MODEL_STEPS, False)]
)
def test_models_are_prepared_for_if_a_step_will_load_one(graph, reused, needs_models):
    with forked(Processes(), graph, reused) as runner:
        assert runner.needs_models is needs_models
        assert not runner.servers  # until the first step


def test_containers_are_started_as_they_are(graph, tmp_path):
    docker = Docker(lambda arguments: None, lambda step: (), tmp_path)
    with forked(docker, graph, ()) as runner:
        assert runner is docker
