"""Registers a version in Kubeflow Model Registry, by its REST API: v1, or v1alpha3 of older ones, which is alike here.

https://github.com/kubeflow/model-registry/blob/main/api/openapi/model-registry.yaml

A model of the published name has a version of the published version's name, with the properties, which has one
artifact with the address. The registry lets none of these names be taken twice, so of two writers one reads what the
other wrote.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.config.servers import MODEL_REGISTRY, TOKEN_ENVS, ModelRegistryServer
from posttrain.registries.api import Api, Json, authorization
from posttrain.registries.entry import DIGEST, Entry, Value

TITLE = "Kubeflow Model Registry"
ROOTS = ("/api/model_registry/v1", "/api/model_registry/v1alpha3")  # the newest first
NOT_FOUND, CONFLICT = 404, 409
ARTIFACT = "model-artifact"
OWNER = "posttrain"


@contextmanager
def api_of(registry: ModelRegistryServer) -> Iterator[Api]:
    """Opens the newest API that a registry has; raises ValueError if it has none."""
    for root in ROOTS:
        with Api(registry.url, root, authorization(TOKEN_ENVS[MODEL_REGISTRY])) as api:
            if api.get("/registered_models", absent=NOT_FOUND, pageSize="1") is not None:
                yield api
                return
    raise ValueError(
        f"{registry.url}: has none of {', '.join(ROOTS)}: is it the address of the registry's REST server?"
    )


def check(registry: ModelRegistryServer) -> None:
    """Asks the registry for a model.

    Raises:
        ValueError: it refuses.
        OSError: it is away.
    """
    with api_of(registry):
        pass


def check_address(_: str) -> None:
    """Takes every address; it only keeps them."""


def register(entry: Entry, registry: ModelRegistryServer) -> str:
    """Makes the registry have the version, and returns the version's address in it.

    Raises:
        ValueError: it refuses, or has another version of this name.
        OSError: it is away.
    """
    with api_of(registry) as api:
        model = _model(api, entry)
        version = _version(api, entry, model["id"])
        _artifact(api, entry, version["id"])
        return f"{registry.url}{api.root}/model_versions/{version['id']}"


def _model(api: Api, entry: Entry) -> Json:
    body = {"name": entry.name, "owner": OWNER, "description": "Models that passed every required gate of a run"}
    return _find_or_create(api, "/registered_model", body, name=entry.name)


def _version(api: Api, entry: Entry, model_id: str) -> Json:
    body = {
        "name": entry.version,
        "registeredModelId": model_id,
        "author": OWNER,
        "description": entry.description,
        "customProperties": {name: typed(value) for name, value in entry.properties.items()},
    }
    version = _find_or_create(api, "/model_version", body, name=entry.version, parentResourceId=model_id)
    digest = version.get("customProperties", {}).get(DIGEST, {}).get("string_value")
    if digest != entry.digest:
        raise ValueError(
            f"{entry.name} {entry.version}: is another version there, with {DIGEST} {digest}, not {entry.digest}; "
            "publish under another version, or remove that one from the registry"
        )
    return version


def _artifact(api: Api, entry: Entry, version_id: str) -> None:
    """Makes the version have its artifact; one that was registered from another address keeps it."""
    path = f"/model_versions/{version_id}/artifacts"
    if api.get(path, artifactType=ARTIFACT, name=entry.name)["items"]:
        return
    body = {
        "artifactType": ARTIFACT,
        "name": entry.name,  # as the registry's own client names it, which looks for this name
        "uri": entry.uri,
        "state": "LIVE",
        "modelFormatName": "safetensors",
        "modelSourceKind": "kfp",
        "modelSourceClass": "pipelinerun",
        "modelSourceId": entry.run_id,
        "modelSourceName": entry.name,
    }
    api.post(path, body, there=CONFLICT)


def _find_or_create(api: Api, path: str, body: Json, **query: str) -> Json:
    """Returns the object of this name, which is made unless it is there."""
    found = api.get(path, absent=NOT_FOUND, **query)
    found = found or api.post(f"{path}s", body, there=CONFLICT)
    return found or api.get(path, **query)


def typed(value: Value) -> dict[str, Any]:
    """Returns a property as the registry has it, with its type."""
    if isinstance(value, bool):
        return {"metadataType": "MetadataBoolValue", "bool_value": value}
    if isinstance(value, float):
        return {"metadataType": "MetadataDoubleValue", "double_value": value}
    return {"metadataType": "MetadataStringValue", "string_value": value}
