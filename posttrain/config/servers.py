"""The servers of the section `registries`, as the steps that ask them know them: without the names of secrets."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from posttrain.config.section import Section

MODEL_REGISTRY, MLFLOW = "model_registry", "mlflow"
# Variables with the token. A registry without a token is asked without one.
TOKEN_ENVS = {MODEL_REGISTRY: "POSTTRAIN_MODEL_REGISTRY_TOKEN", MLFLOW: "POSTTRAIN_MLFLOW_TOKEN"}
# Hosts to which a token may go without TLS: this machine, and services of the cluster, where a mesh encrypts.
NEAR = re.compile(r"127(\.\d+){3}|::1|[a-z0-9-]+|([a-z0-9-]+\.){2}svc(\.cluster\.local)?")


def check_url(url: str) -> str:
    """Returns the address of a server without a last slash; raises ValueError if it is none, or has a password."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or parts.query or parts.fragment:
        raise ValueError(f"{url[:80]!r} is not the address of a server: give https://host[:port][/path]")
    if parts.username or parts.password:
        raise ValueError("has a user or a password: put the password into a Kubernetes secret, and name that")
    return url.rstrip("/")


def is_private(url: str) -> bool:
    """Tells whether a token may be sent to this address: it has TLS, or is in the cluster or on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or NEAR.fullmatch(parts.hostname or "") is not None


Url = Annotated[str, AfterValidator(check_url)]


class ModelRegistryServer(Section):
    """The REST server of Kubeflow Model Registry."""

    url: Url  # address of its REST server, https://host[:port]


class MlflowServer(Section):
    """The tracking server of MLflow."""

    tracking_uri: Url  # address of its server, https://host[:port]
    # experiment with a run for each version, whose metrics are the gates' numbers; made if missing; null: no run
    experiment: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    # user, where the server asks for a password, which the secret then is; null: the secret is a bearer token
    username: Annotated[str, Field(pattern=r"^[^:\s]+$")] | None = None


class Servers(Section):
    """The registries in which each published version is registered, with what its gates measured."""

    model_registry: ModelRegistryServer | None = None  # Kubeflow Model Registry; null: not registered there
    mlflow: MlflowServer | None = None  # MLflow; null: not registered there
    # fail the run, which resumes there, if a registry does not take the version; false: a warning, and it is published
    required: bool = False

    @model_validator(mode="after")
    def _names_one(self):
        if not self.all:
            raise ValueError("names no registry: give model_registry or mlflow, or remove the section")
        return self

    @property
    def all(self) -> dict[str, ModelRegistryServer | MlflowServer]:
        """The registries by the name of their section."""
        named = {MODEL_REGISTRY: self.model_registry, MLFLOW: self.mlflow}
        return {name: registry for name, registry in named.items() if registry}
