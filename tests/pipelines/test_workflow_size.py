"""The estimate of a Workflow beside what was measured on Kubeflow Pipelines 2.17.0, and what it refuses."""

from pathlib import Path

import pytest

from pipelines.compiler import compile_graph, compile_sweep
from pipelines.package import Package
from pipelines.workflow_size import MAX_WORKFLOW_BYTES, iteration_bytes, workflow_bytes
from posttrain.config import PipelineConfig, load_config
from posttrain.config.sweep import SweepConfig
from tests.tiny_line import write_line

ROOT = Path(__file__).parents[2]
RATES = [number * 1e-5 for number in range(1, 101)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> PipelineConfig:
    """The line that was measured, which promoted nothing."""
    folder = tmp_path_factory.mktemp("line")
    return load_config(str(write_line(folder, Path("model"), promote=False)))


def sweep_of(tiny, path: Path, num_trials: int, *, by_trial: bool = False, **settings) -> Package:
    settings = SweepConfig(space={"sft.learning_rate": RATES[:num_trials]}, **settings)
    compile_sweep(tiny, settings, path, by_trial=by_trial)
    return Package.read(path)


def as_measured(path: Path) -> Package:
    """A package as it was when it was measured: each step got all of its settings."""
    package = Package.read(path)
    for step in package.steps:
        if "config" in step.constants:
            value = step.given("parameters")["config"]["runtimeValue"]
            value["constant"] = package.settings_of(step)
    return package


def test_the_estimate_is_near_what_was_measured(tiny, tmp_path):
    compile_graph(tiny, tmp_path / "line.yaml")
    assert workflow_bytes(as_measured(tmp_path / "line.yaml")) == pytest.approx(1_400_000, rel=0.2)
    sweep_of(tiny, tmp_path / "sweep.yaml", 32, by_trial=True)
    package = as_measured(tmp_path / "sweep.yaml")
    (loop,) = (task for task in package.tasks if task.is_loop)
    assert iteration_bytes(package, loop) == pytest.approx(190_000, rel=0.2)


def test_the_committed_graphs_have_room(tmp_path):
    """A line of 18 steps is a quarter of what is safe, most of it Kubeflow's own, and a hundred trials fit."""
    line = Package.read(ROOT / "post_training.yaml")
    assert workflow_bytes(line) < 0.25 * MAX_WORKFLOW_BYTES
    assert workflow_bytes(as_measured(ROOT / "post_training.yaml")) > 1.2 * workflow_bytes(line)
    trials = SweepConfig(space={"sft.learning_rate": RATES}, parallelism=4)
    compile_sweep(load_config(str(ROOT / "configs" / "pipeline_config.yaml")), trials, tmp_path / "sweep.yaml")
    assert workflow_bytes(Package.read(tmp_path / "sweep.yaml")) < 0.6 * MAX_WORKFLOW_BYTES


@pytest.mark.long
def test_a_hundred_trials_are_hardly_larger_than_eight(tiny, tmp_path):
    few, many = (sweep_of(tiny, tmp_path / f"{number}.yaml", number, parallelism=4) for number in (8, 100))
    assert workflow_bytes(many) == pytest.approx(workflow_bytes(few), rel=0.05)  # a hundred values are listed
    assert workflow_bytes(many) < MAX_WORKFLOW_BYTES


@pytest.mark.long
def test_more_workers_than_fit_are_refused_with_the_number_that_does(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"workflow_size: Workflow: .* lower the sweep's parallelism to (\d+)"
    ) as refused:
        sweep_of(tiny, tmp_path / "sweep.yaml", 100, parallelism=60)
    fitting = int(str(refused.value).rpartition(" ")[2])
    assert 10 < fitting < 60
    assert workflow_bytes(sweep_of(tiny, tmp_path / "sweep.yaml", 100, parallelism=fitting)) < MAX_WORKFLOW_BYTES
    with pytest.raises(ValueError, match="workflow_size"):
        sweep_of(tiny, tmp_path / "sweep.yaml", 100, parallelism=fitting + 2)
    sweep_of(tiny, tmp_path / "sweep.yaml", 100, parallelism=60, by_trial=True)  # no Workflow on this machine
