"""The section `registries` of the configuration: where published versions are registered.

The configuration names a Kubernetes secret and a key in it, whose value is the token. On this machine the token is in
`POSTTRAIN_MODEL_REGISTRY_TOKEN` or `POSTTRAIN_MLFLOW_TOKEN`. It is never text in the configuration, a record or a log.
"""

from pydantic import model_validator

from posttrain.config.placement import DataKey, ObjectName, OwnSecret
from posttrain.config.servers import (
    MLFLOW,
    MODEL_REGISTRY,
    TOKEN_ENVS,
    MlflowServer,
    ModelRegistryServer,
    Servers,
    is_private,
)


class ModelRegistry(OwnSecret, ModelRegistryServer):
    """Kubeflow Model Registry and its token."""

    env = TOKEN_ENVS[MODEL_REGISTRY]

    # name of the Kubernetes secret with the token; null: POSTTRAIN_MODEL_REGISTRY_TOKEN is set, or none is needed
    secret: ObjectName | None = None
    key: DataKey | None = None  # key in the secret

    @model_validator(mode="after")
    def _keeps_the_token_private(self):
        check_private(self.url, self)
        return self


class Mlflow(OwnSecret, MlflowServer):
    """MLflow and its token or password."""

    env = TOKEN_ENVS[MLFLOW]

    # name of the Kubernetes secret with the token; null: POSTTRAIN_MLFLOW_TOKEN is set, or none is needed
    secret: ObjectName | None = None
    key: DataKey | None = None  # key in the secret

    @model_validator(mode="after")
    def _keeps_the_token_private(self):
        check_private(self.tracking_uri, self)
        return self


class Registries(Servers):
    """The registries, each with its secret."""

    model_registry: ModelRegistry | None = None  # Kubeflow Model Registry; null: not registered there
    mlflow: Mlflow | None = None  # MLflow; null: not registered there

    @property
    def servers(self) -> Servers:
        """The section as the steps get it."""
        names = {"secret", "key"}
        return Servers.model_validate(self.model_dump(exclude={MODEL_REGISTRY: names, MLFLOW: names}))

    def unplaced(self) -> "Registries":
        """Returns the section for a machine without a cluster's secrets."""
        return Registries.model_validate(self.servers.model_dump())


def check_private(url: str, registry: OwnSecret) -> None:
    """Refuses to send a secret in plain text; ValueError with the remedy."""
    if registry.secret and not is_private(url):
        raise ValueError(f"{url}: the token would cross a network in plain text: give an https:// address")
