"""Registers a version in every registry of a configuration, and returns the outcome of each.

entry, servers -> address of the version in each registry, or why it is not there
"""

import logging
from dataclasses import dataclass, field
from functools import partial

from posttrain.config.servers import MLFLOW, MODEL_REGISTRY, Servers
from posttrain.pages import wording
from posttrain.registries import kubeflow, mlflow
from posttrain.registries.api import persistently
from posttrain.registries.entry import Entry, address_of

KINDS = {MODEL_REGISTRY: kubeflow, MLFLOW: mlflow}

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """Outcome of registering one version."""

    registered: dict[str, str] = field(default_factory=dict)  # registry -> address of the version there
    errors: list[str] = field(default_factory=list)  # of the others, one line each


def register(entry: Entry, servers: Servers) -> Outcome:
    """Registers a version in each registry; one that is away or refuses keeps no other from having it."""
    outcome = Outcome()
    for name, server in servers.all.items():
        kind = KINDS[name]
        try:
            outcome.registered[name] = persistently(partial(kind.register, entry, server))
        except (OSError, ValueError) as error:
            outcome.errors.append(f"not registered in {kind.TITLE}: {wording.line(str(error))}")
        else:
            logger.info("%s %s: registered at %s", entry.name, entry.version, outcome.registered[name])
    return outcome


def faults(servers: Servers, publish_root: str) -> list[str]:
    """Asks each registry once, writes nothing, and lists what would keep a version from being registered.

    Args:
        publish_root: where the version will be published.
    """
    faults = []
    for name, server in servers.all.items():
        kind = KINDS[name]
        try:
            kind.check_address(address_of(publish_root))
            kind.check(server)
        except (OSError, ValueError) as error:
            faults.append(f"{name}: {wording.line(str(error))}")
    return faults
