"""register_model: registers the published version in Kubeflow Model Registry and MLflow."""

from kfp.dsl import Artifact, Input, Output, container_component

from components.container import container


@container_component
def register_model(
    step: str,
    storage_root: str,
    config: dict,
    receipt: Input[Artifact],
    registration: Output[Artifact],
):
    """Registers the published version, with its address and what its gates measured; a registry may be away."""
    return container("posttrain.registries.register_model", "cpu", **locals())
