"""publish_model: publishes the judged model under its name; publish_exported_model: the same with exported files."""

from kfp.dsl import Artifact, Input, Model, Output, container_component

from components.container import container, without


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


@without(publish_exported_model, "export")
def publish_model():
    """Publishes the model if every required gate of this run passed on exactly these weights."""
