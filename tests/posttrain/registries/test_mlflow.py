"""A published version is registered in MLflow once, with tags and the gates' numbers. The server is MLflow's own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import requests

from posttrain.config.servers import MlflowServer
from posttrain.registries import api, mlflow
from posttrain.registries.entry import DIGEST, VERSION, Entry, read_entry
from tests.posttrain.line import Line

ADDRESS = "gs://acme/published/m/1"  # MLflow takes none on this machine


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Entry:
    line = Line(tmp_path_factory.mktemp("line")).run()
    return read_entry(line.publish(str(line.folder / "published"))["uri"])


@pytest.fixture
def entry(published, request) -> Entry:
    """A version under a name of the test's own."""
    return replace(published, uri=ADDRESS, name=request.node.name.partition("[")[0])


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.mlflow_server", str(tmp_path_factory.mktemp("mlflow"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


def test_a_version_on_the_disk_of_one_machine_is_refused(published):
    with pytest.raises(ValueError, match="^file:///.*: MLflow registers no version on the disk of one machine"):
        mlflow.register(published, MlflowServer(tracking_uri="http://127.0.0.1:1"))


def ask(url: str, path: str, body: dict | None = None, **query: str) -> dict:
    method = "GET" if body is None else "POST"
    with requests.request(method, f"{url}/api/2.0/mlflow{path}", params=query, json=body, timeout=10) as answered:
        assert answered.status_code == 200, answered.text
        return answered.json()


def versions_of(url: str, name: str) -> list[dict]:
    return ask(url, "/model-versions/search", filter=f"name = '{name}'").get("model_versions", [])


def runs_of(url: str, experiment: str) -> list[dict]:
    found = ask(url, "/experiments/get-by-name", experiment_name=experiment)["experiment"]["experiment_id"]
    return ask(url, "/runs/search", {"experiment_ids": [found]}).get("runs", [])


def rows(values: list[dict]) -> dict:
    return {row["key"]: row["value"] for row in values}


@pytest.mark.long
def test_the_version_has_its_address_and_tags(url, entry):
    page = mlflow.register(entry, MlflowServer(tracking_uri=url))
    (version,) = versions_of(url, entry.name)
    assert page == f"{url}/#/models/{entry.name}/versions/{version['version']}"
    assert (version["source"], version["run_id"]) == (ADDRESS, "")
    tags = rows(version["tags"])
    assert tags.keys() == entry.properties.keys()
    assert (tags[VERSION], tags[DIGEST]) == (entry.version, entry.digest)
    assert {name: json.loads(tags[name]) for name in entry.numbers} == entry.numbers
    assert (tags["check_safety.passed"], tags["license"]) == ("true", "unknown")


@pytest.mark.long
def test_with_an_experiment_a_run_has_the_numbers_as_metrics(url, entry):
    mlflow.register(entry, MlflowServer(tracking_uri=url, experiment="numbers"))
    (version,), (run,) = versions_of(url, entry.name), runs_of(url, "numbers")
    assert version["run_id"] == run["info"]["run_id"]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", f"{entry.name} {entry.version}")
    assert rows(run["data"]["metrics"]) == entry.numbers
    assert rows(run["data"]["params"])["base_model"] == "hf://acme/base@c0ffee"


@pytest.mark.long
def test_a_second_time_nothing_is_written(url, entry):
    server = MlflowServer(tracking_uri=url, experiment="twice")
    first = mlflow.register(entry, server)
    before = versions_of(url, entry.name)
    assert mlflow.register(entry, server) == first
    assert versions_of(url, entry.name) == before
    assert len(runs_of(url, "twice")) == 1


@pytest.mark.long
def test_another_version_of_this_name_is_refused(url, entry):
    mlflow.register(entry, MlflowServer(tracking_uri=url))
    other = replace(entry, properties=entry.properties | {DIGEST: "f" * 64})
    with pytest.raises(ValueError, match=f"is another version there, number 1 with {DIGEST} {entry.digest}, not ffff"):
        mlflow.register(other, MlflowServer(tracking_uri=url, experiment="never"))
    assert len(versions_of(url, entry.name)) == 1
    later = replace(entry, version="2", properties=other.properties | {VERSION: "2"})
    assert mlflow.register(later, MlflowServer(tracking_uri=url)).endswith("/versions/2")


@pytest.mark.long
@pytest.mark.parametrize("num_requests", range(1, 10))
def test_a_registration_that_is_cut_off_anywhere_is_completed_and_nothing_is_there_twice(
    url, entry, num_requests, monkeypatch
):
    """The answer to one request is lost: the server has done what it was asked."""
    entry = replace(entry, name=f"cut-{num_requests}", properties=entry.properties | {DIGEST: f"{num_requests:064}"})
    server, asked = MlflowServer(tracking_uri=url, experiment=f"cut-{num_requests}"), []
    parsed = api._parsed

    def lost(answered, what):
        asked.append(what)
        if len(asked) == num_requests:
            raise ConnectionError("lost")
        return parsed(answered, what)

    monkeypatch.setattr(api, "_parsed", lost)
    monkeypatch.setattr(api, "FIRST_WAIT_SECONDS", 0)
    api.persistently(lambda: mlflow.register(entry, server))
    assert len(asked) >= num_requests
    (version,), (run,) = versions_of(url, entry.name), runs_of(url, f"cut-{num_requests}")
    assert (version["run_id"], run["info"]["status"]) == (run["info"]["run_id"], "FINISHED")
    assert rows(run["data"]["metrics"]) == entry.numbers


@pytest.mark.long
def test_preflight_asks_and_writes_nothing(url):
    mlflow.check(MlflowServer(tracking_uri=url))
    with pytest.raises(ValueError, match="answers 404"):
        mlflow.check(MlflowServer(tracking_uri=f"{url}/elsewhere"))
