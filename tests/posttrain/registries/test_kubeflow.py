"""A published version is registered in Kubeflow Model Registry once and whole, and nothing is overwritten."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
from model_registry import core
from model_registry.types import ModelArtifact, ModelVersion, RegisteredModel

from posttrain.config.servers import ModelRegistryServer
from posttrain.registries import api, kubeflow
from posttrain.registries.entry import DIGEST, Entry, read_entry
from tests import model_registry
from tests.posttrain.line import Line


@pytest.fixture(scope="module")
def entry(tmp_path_factory) -> Entry:
    line = Line(tmp_path_factory.mktemp("line")).run()
    return read_entry(line.publish(str(line.folder / "published"))["uri"])


@pytest.fixture
def registry() -> Iterator[model_registry.ModelRegistry]:
    with model_registry.serve() as registry:
        yield registry


def register(entry: Entry, registry: model_registry.ModelRegistry) -> str:
    return kubeflow.register(entry, ModelRegistryServer(url=registry.url))


@pytest.mark.parametrize("root", model_registry.ROOTS)
def test_the_version_has_its_address_and_typed_properties(entry, registry, root):
    registry.root = root
    address = register(entry, registry)
    (model,), (version,), ((parent, artifact),) = registry.models, registry.versions, registry.artifacts
    assert (model["name"], version["name"], version["registeredModelId"]) == ("m", entry.version, model["id"])
    assert address == f"{registry.url}{root}/model_versions/{version['id']}"
    assert (parent, artifact["uri"], artifact["modelSourceId"]) == (version["id"], entry.uri, "run-1")
    properties = version["customProperties"]
    assert properties["check_safety.loss"] == {"metadataType": "MetadataDoubleValue", "double_value": 1.0}
    assert properties["check_safety.loss.limit"]["double_value"] == 2.0
    assert properties["check_safety.passed"] == {"metadataType": "MetadataBoolValue", "bool_value": True}
    assert properties[DIGEST]["string_value"] == entry.digest
    assert properties["base_model"]["string_value"] == "hf://acme/base@c0ffee"
    assert properties["license"]["string_value"] == "unknown"
    assert properties["dataset.prepare_sft_data"]["string_value"].endswith("sft.jsonl")
    assert len(properties["dataset.prepare_sft_data.sha256"]["string_value"]) == 64


def test_a_second_time_nothing_is_written(entry, registry):
    first = register(entry, registry)
    registry.requests.clear()
    assert register(entry, registry) == first
    assert registry.written == []


def test_another_version_of_this_name_is_refused(entry, registry):
    register(entry, registry)
    registry.requests.clear()
    other = replace(entry, properties=entry.properties | {DIGEST: "f" * 64})
    with pytest.raises(ValueError, match=f"is another version there, with {DIGEST} {entry.digest}, not ffff"):
        register(other, registry)
    assert registry.written == []
    assert len(registry.versions) == 1


def test_a_version_that_somebody_else_registered_is_not_taken_for_this_one(entry, registry):
    client = core.ModelRegistryAPIClient.insecure_connection("http://127.0.0.1", port_of(registry))
    model = asyncio.run(client.upsert_registered_model(RegisteredModel(name="m")))
    asyncio.run(client.upsert_model_version(ModelVersion(name=entry.version, author="ann"), model.id))
    with pytest.raises(ValueError, match="is another version there, with manifest_sha256 None"):
        register(entry, registry)
    assert registry.artifacts == []


@pytest.mark.parametrize("lost", ["/registered_models", "/model_versions", "/model_versions/1/artifacts"])
def test_an_answer_that_is_lost_makes_nothing_twice(entry, registry, lost, monkeypatch):
    monkeypatch.setattr(api, "FIRST_WAIT_SECONDS", 0)
    registry.lost.append(lost)
    api.persistently(lambda: register(entry, registry))
    assert registry.lost == []
    assert [len(registry.models), len(registry.versions), len(registry.artifacts)] == [1, 1, 1]


def test_a_registration_that_was_cut_off_is_completed(entry, registry):
    registry.statuses += [0] * 6 + [503]  # the artifact's
    with pytest.raises(OSError, match="POST /api/model_registry/v1/model_versions/1/artifacts answers 503"):
        register(entry, registry)
    register(entry, registry)
    assert [len(registry.versions), len(registry.artifacts)] == [1, 1]


def test_of_two_writers_at_once_one_reads_what_the_other_wrote(entry, registry):
    """The other is faster after this one has looked: 404, then 409."""
    register(entry, registry)
    registry.statuses += [0, 404, 0, 0, 404, 0, 0]
    register(entry, registry)
    assert [len(registry.models), len(registry.versions), len(registry.artifacts)] == [1, 1, 1]


def port_of(registry: model_registry.ModelRegistry) -> int:
    return int(registry.url.rpartition(":")[2])


def test_the_official_client_reads_what_was_registered(entry, registry):
    """It also registers by itself, which is what makes the stand-in a registry."""
    register(entry, registry)
    client = core.ModelRegistryAPIClient.insecure_connection("http://127.0.0.1", port_of(registry))

    async def read_and_write() -> tuple:
        model = await client.get_registered_model_by_params("m")
        version = await client.get_model_version_by_params(model.id, entry.version)
        artifact = await client.get_model_artifact_by_params("m", version.id)
        other = await client.upsert_model_version(ModelVersion(name="by-hand", author="ann"), model.id)
        made = await client.upsert_model_version_artifact(ModelArtifact(name="m", uri="s3://b/m"), other.id)
        return version, artifact, made

    version, artifact, made = asyncio.run(read_and_write())
    assert version.custom_properties == entry.properties
    assert (artifact.uri, artifact.model_source_id) == (entry.uri, entry.run_id)
    assert made.uri == "s3://b/m"
    assert len(registry.versions) == 2
