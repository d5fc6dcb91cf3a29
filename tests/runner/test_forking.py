"""Local steps are forked where a fork is what they would be, and started as they are elsewhere."""

import os
import signal

import pytest

from pipelines.compiler import compile_graph
from pipelines.package import Package
from posttrain.config import PipelineConfig, Validation
from runner import fork_server
from runner.docker import Docker
from runner.forking import ForkingRunner, forked
from runner.local import ProcessRunner, Step

pytestmark = pytest.mark.skipif(not fork_server.IS_POSSIBLE, reason="forks are for Linux")
MODEL_STEPS = {"train_sft", "check_sft", "check_sft_merge", "train_dpo", "check_dpo_merge", "check_alignment"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph.yaml"
    compile_graph(
        PipelineConfig(validation=Validation(answer_match="none", custom_checks=["output_format_valid"])), path
    )
    return Package.read(path)


@pytest.fixture
def forking():
    runner = ForkingRunner(needs_models=False, reused=())
    yield runner
    runner.close()


def start(runner: ProcessRunner, tmp_path, name: str = "fetch_model", **variables):
    step = Step(name, "image", ["python", "-m", "tests.runner.forked"], {}, {}, tmp_path, 0, {})
    with open(tmp_path / "out", "wb") as out:
        process = runner.start(step, tmp_path.cwd(), os.environ | variables, out.fileno())
    assert process.wait(60) == 0
    process.stderr.close()
    return (tmp_path / "out").read_text().strip()


def test_steps_are_forked_from_one_process(forking, tmp_path):
    (tmp_path / "a").mkdir()
    parent = start(forking, tmp_path)
    assert parent == start(forking, tmp_path) == str(forking.servers["plain"]._process.pid)


def test_a_step_with_an_environment_of_its_own_is_started_as_it_is(forking, tmp_path):
    start(forking, tmp_path)
    assert start(forking, tmp_path, OMP_NUM_THREADS="7") == str(os.getpid())


def test_where_the_process_is_gone_steps_are_started_as_they_are(forking, tmp_path):
    start(forking, tmp_path)
    os.kill(forking.servers["plain"]._process.pid, signal.SIGKILL)
    assert start(forking, tmp_path) == str(os.getpid())


@pytest.mark.parametrize(
    ("reused", "needs_models"), [((), True), (MODEL_STEPS - {"train_dpo"}, True), (MODEL_STEPS, False)]
)
def test_models_are_prepared_for_if_a_step_will_load_one(graph, reused, needs_models):
    with forked(ProcessRunner(), graph, reused) as runner:
        assert runner.needs_models is needs_models
        assert not runner.servers  # until the first step


def test_containers_are_started_as_they_are(graph, tmp_path):
    docker = Docker(lambda arguments: None, lambda step: (), tmp_path)
    with forked(docker, graph, ()) as runner:
        assert runner is docker
