"""Where a step reads and writes beside its artifacts: what a container of it must be given.

the arguments of a step -> local paths that it reads, local folders that it writes, whether it needs a network
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import storage

READ = (
    "base_model", "dataset", "sft_dataset", "preference_dataset", "judge_model", "red_team_prompts",
    "off_topic_prompts", "benign_prompts",
)  # fmt: skip
WRITTEN = ("storage_root", "publish_root")


@dataclass(frozen=True)
class Places:
    """Of one step."""

    read: tuple[Path, ...]
    written: tuple[Path, ...]
    need_network: bool


def of_step(arguments: dict[str, Any]) -> Places:
    """The places that the parameters of a step name, its configuration included."""
    read, written = _named(arguments, READ), _named(arguments, WRITTEN)
    local_read = [uri for uri in read if storage.kind(uri) == "local"]
    local_written = [uri for uri in written if not storage.is_remote(uri)]
    return Places(
        read=tuple(map(storage.local_path, local_read)),
        written=tuple(map(storage.local_path, local_written)),
        need_network=bool(_named(arguments, ("upload_to_hub",))) or (local_read, local_written) != (read, written),
    )


def _named(value: Any, names: tuple[str, ...]) -> list[Any]:
    """Values under these keys, wherever they stand; empty ones are left out."""
    return list(_walk(value, names))


def _walk(value: Any, names: tuple[str, ...]) -> Iterator[Any]:
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in names and inner:
            yield inner
        else:
            yield from _walk(inner, names)
