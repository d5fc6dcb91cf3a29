"""publish_model: publishes the judged model under its name; publish_exported_model: the same with exported files."""

from kfp.dsl import Artifact, Input, Model, Output, container_component

from components.container import container


@container_component
def publish_model(
    step: str,
    storage_root: str,
    config: dict,
    model: Input[Model],
    model_name: str,
    receipt: Output[Artifact],
):
    """Publishes the model if every required gate of this run passed on exactly these weights."""
    return container("posttrain.publish", "cpu", **locals())


@container_component
def publish_exported_model(
    step: str,
    storage_root: str,
    config: dict,
    model: Input[Model],
    export: Input[Model],
    model_name: str,
    receipt: Output[Artifact],
):
    """Publishes the model and its exported files if every required gate of this run passed on exactly these."""
    return container("posttrain.publish", "cpu", **locals())
