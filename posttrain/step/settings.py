"""Settings of steps in the storage of a run: `<storage root>/runs/<run id>/settings/<SHA-256>.json`.

preflight writes those of all steps; each other step knows the digest of its own by its `--config`, and refuses a file
that is not the one of which the graph was compiled.
"""

import json
from typing import Any

from posttrain import storage
from posttrain.config import table
from posttrain.step.run import run_id
from posttrain.storage import layout


def write(storage_root: str, settings: dict[str, dict[str, Any]]) -> None:
    """Writes the settings of all steps, by step, so that they are there before any of them starts."""
    for text in map(table.text_of, settings.values()):
        storage.write_bytes(_uri(storage_root, table.sha256(text)), text.encode())


def resolved(config: str, storage_root: str) -> str:
    """Returns the settings of a step as JSON: its `--config` itself, or the file to which that refers.

    Raises:
        ValueError: the file is not there, or is another than the graph was compiled with.
    """
    try:
        sha256 = table.referred(json.loads(config))
    except (ValueError, AttributeError):
        return config  # who parses it says what is wrong
    if sha256 is None:
        return config
    uri = _uri(storage_root, sha256)
    try:
        text = storage.read_bytes(uri).decode(errors="replace")
    except FileNotFoundError:
        raise ValueError(f"{uri}: is not there; preflight writes it: start the run from its beginning") from None
    if table.sha256(text) != sha256:
        raise ValueError(f"{uri}: is not what the graph was compiled with; find out why, and start a new run")
    return text


def _uri(storage_root: str, sha256: str) -> str:
    return layout.runs(storage_root, run_id(), "settings", f"{sha256}.json")
