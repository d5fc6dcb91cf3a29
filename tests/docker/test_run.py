"""The graph in Docker: a release from the push to a run by digest, and the ways in which a run ends early."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl

from runner import local, places
from runner.docker import LABEL, Docker
from tests.docker.conftest import copy_checkout
from tests.tiny_line import write_line

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

STEPS = 16  # of a promoted run, without report_run


@pytest.fixture(scope="module")
def release(docker, images, make, registry, tmp_path_factory) -> Path:
    """A copy of this checkout from which `make push` has released: digests written, graph compiled."""
    copy = copy_checkout(tmp_path_factory.mktemp("release"))
    make("push", f"REGISTRY={registry}/team", cwd=copy)
    return copy


@pytest.fixture(scope="module")
def line(release, model, tmp_path_factory) -> Path:
    """A folder with data, a configuration and a storage root that all runs share."""
    folder = tmp_path_factory.mktemp("line")
    write_line(folder, model)
    return folder


def digests(release: Path) -> dict:
    return yaml.safe_load((release / "images" / "digests.yaml").read_text())


def command(release: Path, line: Path, *arguments: str) -> list[str]:
    settings = ["--config", str(line / "pipeline.yaml"), "--runner", "docker", "--env", "OMP_NUM_THREADS"]
    return [sys.executable, str(release / "run_pipeline.py"), *settings, *arguments]


def run(release: Path, line: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        command(release, line, *arguments), capture_output=True, text=True, cwd=release, env=environment
    )


def containers_of(docker, line: Path, run_id: str) -> list[str]:
    label = f"{LABEL}={line / 'root' / 'artifacts' / run_id}"
    return docker.ok("ps", "--all", "--quiet", "--filter", f"label={label}").split()


def status_of(registry: str, path: str) -> int:
    manifest = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
    with closing(http.client.HTTPConnection(registry, timeout=10)) as connection:
        connection.request("HEAD", path, headers={"Accept": manifest})
        return connection.getresponse().status


def test_a_release_writes_the_digests_of_the_registry(release, registry):
    graph = (release / "post_training.yaml").read_text()
    for name, entry in digests(release).items():
        assert entry["repository"] == f"{registry}/team/posttrain-{name}"
        assert status_of(registry, f"/v2/team/posttrain-{name}/manifests/{entry['digest']}") == 200
        assert f"image: {entry['repository']}@{entry['digest']}" in graph
    assert ":local" not in graph


@pytest.fixture(scope="module")
def promoted(docker, release, line) -> subprocess.CompletedProcess:
    """The whole line, from a machine that has neither image under its released name."""
    for entry in digests(release).values():
        name = f"{entry['repository']}@{entry['digest']}"
        docker("image", "rm", f"{entry['repository']}:0.1.0", name)  # where the tag was the last, the digest goes too
        assert not docker.has(name)
    result = run(release, line, "--run-id", "promoted")
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_whole_graph_runs_by_digest(docker, release, line, promoted):
    result = json.loads((line / "root" / "runs" / "promoted" / "pipeline_result.json").read_text())
    assert result["success"] is True
    assert [step["status"] for step in result["steps"]] == ["succeeded"] * STEPS
    assert (Path(result["final_model_path"]) / "manifest.json").exists()
    assert containers_of(docker, line, "promoted") == []
    for entry in digests(release).values():
        assert docker.has(f"{entry['repository']}@{entry['digest']}")


def test_a_second_run_reuses_what_containers_finished(release, line, promoted):
    result = run(release, line, "--run-id", "again")
    assert result.returncode == 0, result.stdout + result.stderr
    reused = result.stdout.partition("Reused:")[2].partition("\n")[0]
    assert "train_sft" in reused and "check_alignment" in reused


def test_a_gate_stops_the_line_in_docker_too(release, line, promoted):
    result = run(release, line, "--run-id", "stopped", "--set", "validation.min_train_rows=100000")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "STOPPED BY check_data" in result.stdout


def test_a_container_is_confined(docker, release, line, promoted):
    """Asked of the engine while a step runs, which is then interrupted."""
    with under_way(docker, release, line, "confined") as (process, container):
        (content,) = json.loads(docker.ok("inspect", container))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    host, config = content["HostConfig"], content["Config"]
    assert host["CapDrop"] == ["ALL"] and host["CapAdd"] is None and not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] and host["NetworkMode"] == "none"
    assert config["User"].split(":")[0] not in ("", "0", "root")
    assert config["Entrypoint"] in (None, [])
    mounts = {mount["Destination"]: mount["RW"] for mount in content["Mounts"]}
    artifacts = line / "root" / "artifacts" / "confined"
    assert mounts == {
        "/cache": True, str(line / "root"): True, str(artifacts): False, str(artifacts / "train_sft"): True,
    }  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_container_outlives_its_run(docker, release, line, promoted, number):
    run_id = f"ended-{number}"
    with under_way(docker, release, line, run_id) as (process, _):
        process.send_signal(number)
        process.wait(60)
        deadline = time.monotonic() + 60
        while containers_of(docker, line, run_id):
            assert time.monotonic() < deadline, "the container goes on without its runner"
            time.sleep(0.5)


@contextmanager
def under_way(docker, release: Path, line: Path, run_id: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A run that has come to training something new: its process, and the id of the container."""
    overrides = json.dumps({"sft": {"epochs": 40, "seed": 100 + len(run_id)}})
    arguments = command(release, line, "--run-id", run_id, "--overrides", overrides, "--fresh")
    arguments = ["env", "--default-signal=INT", *arguments]  # a shell's background jobs ignore it
    log = line / "root" / "runs" / run_id / "logs" / "train_sft.log"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, cwd=release, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            while not (log.exists() and "step " in log.read_text()):
                assert process.poll() is None, f"the run ended with exit code {process.returncode}"
                time.sleep(0.2)
            (container,) = containers_of(docker, line, run_id)
            yield process, container
        finally:
            process.kill()


def test_gpus_without_a_driver_are_one_error_before_anything_starts(docker, release, line):
    before = sorted((line / "root").rglob("*"))
    result = run(release, line, "--gpus", "all")
    assert result.returncode == 1
    (error,) = result.stderr.splitlines()
    assert error.startswith("error: docker run: ") and "capabilities: [[gpu]]" in error
    assert error.endswith("install NVIDIA's driver and container toolkit, or leave out --gpus")
    assert sorted((line / "root").rglob("*")) == before


@pytest.mark.parametrize("python", ["true", "false"])
def test_a_container_that_dies_at_once_is_a_failure(docker, base_image, tmp_path, python):
    """Whatever its exit code says: what was not written was not done."""
    tag = f"posttrain-dies-{python}:local"
    dockerfile = f"FROM {base_image}\nRUN ln -s /bin/{python} /usr/local/bin/python\n"
    docker.ok("build", "-t", tag, "-", input=dockerfile)

    @dsl.container_component
    def lazy(step: str, storage_root: str, made: dsl.Output[dsl.Artifact]):
        return dsl.ContainerSpec(image=tag, command=["python", "-m", "lazy"], args=["--made", made.path])

    @dsl.pipeline
    def graph():
        lazy(step="lazy", storage_root=str(tmp_path / "root"))

    compiler.Compiler().compile(graph, str(tmp_path / "graph.yaml"))
    listener = Heard()
    runner = Docker(places.of_step, lambda step: [], tmp_path / "cache")
    run = local.GraphRun("r1", tmp_path / "artifacts", tmp_path / "logs", listener, runner=runner)
    assert local.run_graph(tmp_path / "graph.yaml", {}, run) is False
    expected = "exited 0, but nothing was written to" if python == "true" else "exit code 1"
    assert listener.causes["lazy"].startswith(expected)
    docker.ok("image", "rm", tag)


class Heard:
    """A listener that keeps why steps failed."""

    def __init__(self):
        self.causes = {}

    def started(self, step):
        pass

    def tried_again(self, step, text):
        pass

    def progress(self, step, done, total, text):
        pass

    def finished(self, step, exit_code, seconds, cause):
        self.causes[step] = cause
