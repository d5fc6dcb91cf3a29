"""Registers a version in MLflow, by its REST API 2.0, https://mlflow.org/docs/latest/api_reference/rest-api.html

MLflow numbers its versions by itself, so the published version and its digest are tags, by which a version is found
again. With an experiment, a run of it holds the gates' numbers as metrics and what was trained as parameters. It is
found again by a tag too, and written before the version that refers to it.
"""

import json
from urllib.parse import quote

from posttrain.config.servers import MLFLOW, TOKEN_ENVS, MlflowServer
from posttrain.registries.api import Api, Json, authorization
from posttrain.registries.entry import DIGEST, VERSION, Entry, Value

TITLE = "MLflow"
ROOT = "/api/2.0/mlflow"
NOT_FOUND, REFUSED = 404, 400
MAX_METRICS, MAX_PARAMS = 1000, 100  # in one request
MAX_PARAM_CHARS, MAX_TAG_CHARS = 6000, 5000
LOCAL = "file:"


def api_of(registry: MlflowServer) -> Api:
    """Returns the API of a server."""
    return Api(registry.tracking_uri, ROOT, authorization(TOKEN_ENVS[MLFLOW], registry.username))


def check(registry: MlflowServer) -> None:
    """Asks the server for a model.

    Raises:
        ValueError: it refuses.
        OSError: it is away.
    """
    with api_of(registry) as api:
        api.get("/registered-models/search", max_results="1")


def check_address(uri: str) -> None:
    """Refuses an address on one machine: MLflow takes none, because its server would read files of its own."""
    if uri.startswith(LOCAL):
        raise ValueError(f"{uri}: MLflow registers no version on the disk of one machine; publish to gs:// or s3://")


def register(entry: Entry, registry: MlflowServer) -> str:
    """Makes the server have the version, and returns the page of the version there.

    Raises:
        ValueError: it refuses, or has another version of this name.
        OSError: it is away.
    """
    check_address(entry.uri)
    with api_of(registry) as api:
        number = _number(api, entry) or _create(api, entry, registry.experiment)
        return f"{registry.tracking_uri}/#/models/{quote(entry.name)}/versions/{number}"


def _number(api: Api, entry: Entry) -> str | None:
    """Returns the number that MLflow gave the version; None if it has none.

    Raises:
        ValueError: it has another version of this name.
    """
    wanted = f"name = {_quoted(entry.name)} AND tags.{VERSION} = {_quoted(entry.version)}"
    versions = api.get("/model-versions/search", filter=wanted, max_results="100").get("model_versions", [])
    digests = {_tags(version).get(DIGEST): version["version"] for version in versions}
    if versions and entry.digest not in digests:
        digest, number = next(iter(digests.items()))
        raise ValueError(
            f"{entry.name} {entry.version}: is another version there, number {number} with {DIGEST} {digest}, not "
            f"{entry.digest}; publish under another version, or remove that one from MLflow"
        )
    return digests.get(entry.digest)


def _create(api: Api, entry: Entry, experiment: str | None) -> str:
    body = {"name": entry.name, "description": "Models that passed every required gate of a run"}
    if api.get("/registered-models/get", absent=NOT_FOUND, name=entry.name) is None:
        api.post("/registered-models/create", body, there=REFUSED)
    run = {"run_id": _run(api, entry, experiment)} if experiment else {}
    body = {"name": entry.name, "source": entry.uri, "description": entry.description, "tags": _tag_list(entry)} | run
    return api.post("/model-versions/create", body)["model_version"]["version"]


def _run(api: Api, entry: Entry, experiment: str) -> str:
    """Returns the ID of the finished run with the numbers of a version, which is made unless it is there."""
    experiment_id = _experiment_id(api, experiment)
    wanted = f"tags.{DIGEST} = {_quoted(entry.digest)}"
    query = {"experiment_ids": [experiment_id], "filter": wanted, "max_results": 1}
    runs = api.post("/runs/search", query).get("runs", [])
    started = _milliseconds(entry)
    if not runs:
        name = f"{entry.name} {entry.version}"
        tags = [*_tag_list(entry), {"key": "mlflow.runName", "value": name}]
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": started, "tags": tags}
        runs = [api.post("/runs/create", body)["run"]]
    info = runs[0]["info"]
    if info["status"] != "FINISHED":  # an earlier attempt may have been killed here: the same again changes nothing
        _log(api, entry, info["run_id"])
        api.post("/runs/update", {"run_id": info["run_id"], "status": "FINISHED", "end_time": started})
    return info["run_id"]


def _experiment_id(api: Api, name: str) -> str:
    if found := api.get("/experiments/get-by-name", absent=NOT_FOUND, experiment_name=name):
        return found["experiment"]["experiment_id"]
    if made := api.post("/experiments/create", {"name": name}, there=REFUSED):
        return made["experiment_id"]
    return api.get("/experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"]


def _log(api: Api, entry: Entry, run_id: str) -> None:
    """Writes metrics and parameters of a run, in requests that are small enough."""
    at = _milliseconds(entry)
    metrics = [{"key": name, "value": value, "timestamp": at, "step": 0} for name, value in entry.numbers.items()]
    texts = {name: value for name, value in entry.properties.items() if isinstance(value, str)}
    params = [{"key": name, "value": value[:MAX_PARAM_CHARS]} for name, value in texts.items()]
    for key, rows, size in (("metrics", metrics, MAX_METRICS), ("params", params, MAX_PARAMS)):
        for begin in range(0, len(rows), size):
            api.post("/runs/log-batch", {"run_id": run_id, key: rows[begin : begin + size]})


def _milliseconds(entry: Entry) -> int:
    return int(entry.published_at.timestamp() * 1000)


def _tag_list(entry: Entry) -> list[Json]:
    return [{"key": name, "value": text(value)[:MAX_TAG_CHARS]} for name, value in entry.properties.items()]


def _tags(version: Json) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in version.get("tags", [])}


def text(value: Value) -> str:
    """Returns a property as text, from which JSON gives back the number or boolean."""
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(value: str) -> str:
    return f"'{value}'"
