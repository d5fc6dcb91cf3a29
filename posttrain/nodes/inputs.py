"""Finds an address in the storage for everything that a training reads, so that other pods can fetch it.

local copies, the executor input -> address and SHA-256 of each

Kubeflow keeps artifacts in the bucket of the storage root, unless it was told otherwise. What is not there is uploaded,
once in a run.
"""

import json
from pathlib import Path

from posttrain import storage
from posttrain.step.running import Running
from posttrain.storage import layout
from posttrain.storage.address import place
from posttrain.train.order import Kept


def addresses(running: Running, paths: dict[str, str], *, run_id: str, executor_input: str) -> dict[str, Kept]:
    """Returns address and SHA-256 of each input, by its name."""
    artifacts = json.loads(executor_input).get("inputs", {}).get("artifacts", {})
    kept = {}
    for name, path in paths.items():
        uris = [artifact["uri"] for artifact in artifacts.get(name, {}).get("artifacts", [])]
        is_there = [uri for uri in uris if _is_beside(uri, running.storage_root) and _is_copy(uri, Path(path))]
        own = layout.runs(running.storage_root, run_id, "nodes", running.step, "inputs", name, running.inputs[name])
        uri = is_there[0] if is_there else _uploaded(Path(path), own)
        kept[name] = Kept(uri=uri, sha256=running.inputs[name])
    return kept


def _is_beside(uri: str, storage_root: str) -> bool:
    """Tells whether it is in the bucket of the storage root, which the workers can read."""
    if "://" not in uri or uri.partition("://")[0] not in ("gs", "s3"):
        return False
    return place(uri)[:2] == place(storage_root)[:2]


def _is_copy(uri: str, path: Path) -> bool:
    """Tells whether the same files are there, by their names and sizes; the workers compare their contents."""
    if not path.is_dir():
        return storage.exists(uri)
    sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}
    return storage.file_sizes(uri) == sizes


def _uploaded(path: Path, uri: str) -> str:
    """Uploads a file or folder, unless an earlier attempt has."""
    if not _is_copy(uri, path):
        (storage.upload_folder if path.is_dir() else storage.upload_file)(path, uri)
    return uri
