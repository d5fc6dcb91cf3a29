"""A stand-in for Kubeflow Model Registry, whose server is a program in Go that no package brings.

Each body that it takes or gives is validated by the models that the registry's project generates from its OpenAPI file
(`mr_openapi`), so an unknown key, a wrong type or a missing value is an error here as well. That it behaves as a
registry, its official client says in tests/posttrain/registries/test_kubeflow.py.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from mr_openapi import models

ROOTS = ("/api/model_registry/v1", "/api/model_registry/v1alpha3")
# Read only, so the generated models leave them out of what they write.
TIMES = {"createTimeSinceEpoch": "1795855964626", "lastUpdateTimeSinceEpoch": "1795855964626"}
PAGE = ("pageSize", "orderBy", "sortOrder", "nextPageToken")
QUERIES = {  # as in the OpenAPI file
    "registered_model": {"name", "externalId"},
    "registered_models": {"filterQuery", *PAGE},
    "model_version": {"name", "externalId", "parentResourceId"},
    "model_artifact": {"name", "externalId", "parentResourceId"},
    "artifacts": {"filterQuery", "name", "externalId", "artifactType", *PAGE},
}

Json = dict[str, Any]


@dataclass
class ModelRegistry:
    """A registry: what it holds, what it was asked, and how it misbehaves."""

    url: str = ""
    root: str = ROOTS[0]  # of the API that it has
    token: str | None = None  # that it asks for
    models: list[Json] = field(default_factory=list)
    versions: list[Json] = field(default_factory=list)
    artifacts: list[tuple[str, Json]] = field(default_factory=list)  # ID of the version, artifact
    requests: list[tuple[str, str]] = field(default_factory=list)  # method, path with its query
    statuses: list[int] = field(default_factory=list)  # to answer with instead, request by request; 0: as it should
    lost: list[str] = field(default_factory=list)  # paths whose next POST is done, and not answered

    @property
    def written(self) -> list[str]:
        """The paths of what was posted."""
        return [path for method, path in self.requests if method == "POST"]


class Refused(Exception):
    """An answer with another status."""

    def __init__(self, status: int, message: str):
        self.status = status
        super().__init__(message)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet: the client would wait for the second
    registry: ModelRegistry

    def do_GET(self):
        self.answer(self.read)

    def do_POST(self):
        self.answer(self.write)

    def answer(self, work) -> None:
        registry, parts = self.registry, urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        registry.requests.append((self.command, self.path))
        status = registry.statuses.pop(0) if registry.statuses else 0
        try:
            if status:
                raise Refused(status, "as the test wants it")
            if registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
                raise Refused(401, "unauthorized")
            if not parts.path.startswith(f"{registry.root}/"):
                raise Refused(404, "no such path")
            query = dict(parse_qsl(parts.query))
            body = work(parts.path.removeprefix(registry.root), query, json.loads(content) if content else {})
            self.reply(200 if self.command == "GET" else 201, body)
        except Refused as error:
            self.reply(error.status, models.Error(code=str(error.status), message=str(error)).to_dict())

    def read(self, path: str, query: dict[str, str], _: Json) -> Json:
        registry, kind = self.registry, path.rpartition("/")[2]
        if kind in QUERIES and not query.keys() <= QUERIES[kind]:
            raise Refused(400, f"{query.keys() - QUERIES[kind]}: no such parameter")
        if path == "/registered_models":
            return listed(models.RegisteredModelList, registry.models)
        if path == "/registered_model":
            return first(registry.models, name=query["name"])
        if path == "/model_version":
            return first(registry.versions, name=query["name"], registeredModelId=query["parentResourceId"])
        if match := re.fullmatch(r"/model_versions/(\d+)", path):
            return first(registry.versions, id=match[1])
        if path == "/model_artifact":
            return first(self.artifacts_of(query["parentResourceId"]), name=query["name"])
        if match := re.fullmatch(r"/model_versions/(\d+)/artifacts", path):
            named = [one for one in self.artifacts_of(match[1]) if one["name"] == query.get("name", one["name"])]
            return listed(models.ArtifactList, named)
        raise Refused(404, "no such path")

    def artifacts_of(self, version: str) -> list[Json]:
        return [artifact for parent, artifact in self.registry.artifacts if parent == version]

    def write(self, path: str, _: dict[str, str], body: Json) -> Json:
        registry = self.registry
        if path == "/registered_models":
            return self.create(path, registry.models, models.RegisteredModelCreate, models.RegisteredModel, body)
        if path == "/model_versions":
            first(registry.models, id=body["registeredModelId"])
            same = [one for one in registry.versions if one["registeredModelId"] == body["registeredModelId"]]
            return self.create(
                path, registry.versions, models.ModelVersionCreate, models.ModelVersion, body, among=same
            )
        if match := re.fullmatch(r"/model_versions/(\d+)/artifacts", path):
            first(registry.versions, id=match[1])
            made: list[Json] = []
            kinds = (models.ModelArtifact, models.ModelArtifact)
            self.create(path, made, *kinds, body, among=self.artifacts_of(match[1]), prefix=len(registry.artifacts))
            registry.artifacts.append((match[1], made[0]))
            return self.unless_lost(path, made[0])
        raise Refused(404, "no such path")

    def create(
        self, path: str, kept: list[Json], taken: type, given: type, body: Json, *,
        among: list[Json] | None = None, prefix: int = 0,
    ) -> Json:  # fmt: skip
        """Keeps a new object, unless its name is taken `among` those."""
        strict(taken, body)
        if any(one["name"] == body["name"] for one in (kept if among is None else among)):
            raise Refused(409, f"{body['name']} already exists")
        kept.append(strict(given, body | {"id": str(len(kept) + prefix + 1)}) | TIMES)
        return kept[-1] if "artifacts" in path else self.unless_lost(path, kept[-1])

    def unless_lost(self, path: str, made: Json) -> Json:
        if path in self.registry.lost:
            self.registry.lost.remove(path)
            raise Refused(503, "done, but the answer was lost")
        return made

    def reply(self, status: int, body: Json) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def strict(kind: type, body: Json) -> Json:
    """Returns the body with its defaults; one that the project's own models would change is refused."""
    try:
        read = json.loads(kind.from_dict(body).to_json())
    except ValueError as error:
        raise Refused(400, str(error)) from None
    if {name: read.get(name) for name in body} != body:
        raise Refused(400, f"{body} is not {kind.__name__}: {read}")
    return read


def first(objects: list[Json], **values: str) -> Json:
    for one in objects:
        if values.items() <= {name: one.get(name) for name in values}.items():
            return one
    raise Refused(404, f"none with {values}")


def listed(kind: type, items: list[Json]) -> Json:
    page = {"items": items, "nextPageToken": "", "pageSize": len(items), "size": len(items)}
    assert kind.from_dict(page)
    return page


@contextmanager
def serve(**values: Any) -> Iterator[ModelRegistry]:
    """Runs a registry of its own until the end of the block."""
    registry = ModelRegistry(**values)
    handler = type("Handler", (Handler,), {"registry": registry})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        registry.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield registry
        server.shutdown()
        thread.join()
