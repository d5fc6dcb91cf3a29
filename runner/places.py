"""Finds what a step reads and writes besides its artifacts, and must therefore be mounted into its container.

arguments of a step -> local paths that it reads, local folders that it writes, whether it needs a network
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import storage
from posttrain.config.mixture import uris_of

READ = (
    "base_model",
    "dataset",
    "sft_dataset",
    "preference_dataset",
    "judge_model",
    "reward_model",
    "red_team_prompts",
    "off_topic_prompts",
    "benign_prompts",
    "lm_eval_data",
    "prompts",
    "trust_config",
)
WRITTEN = ("storage_root", "publish_root")


@dataclass(frozen=True)
class Places:
    """Local paths of one step."""

    read: tuple[Path, ...]
    written: tuple[Path, ...]
    need_network: bool


def of_step(arguments: dict[str, Any]) -> Places:
    """Returns the places that the arguments of a step name, its configuration included."""
    read = [uri for value in _values(arguments, READ) for uri in uris_of(value)]
    written = list(_values(arguments, WRITTEN))
    local_read = [uri for uri in read if storage.kind(uri) == "local"]
    local_written = [uri for uri in written if not storage.is_remote(uri)]
    uploads = any(_values(arguments, ("upload_to_hub", "notify", "registries", "keyless")))
    return Places(
        read=tuple(map(storage.local_path, local_read)),
        written=tuple(map(storage.local_path, local_written)),
        need_network=uploads or (local_read, local_written) != (read, written),
    )


def _values(value: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """Yields the values under these keys, at any depth; empty ones are left out."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in names and inner:
            yield inner
        else:
            yield from _values(inner, names)
