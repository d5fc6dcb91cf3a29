"""merge_adapter: folds a LoRA adapter into the 16-bit weights it was trained on."""

from kfp.dsl import Artifact, Input, Metrics, Model, Output, container_component

from components.container import container


@container_component
def merge_adapter(
    step: str,
    storage_root: str,
    config: dict,
    base: Input[Model],
    adapter: Input[Model],
    model: Output[Model],
    info: Output[Artifact],
    metrics: Output[Metrics],
):
    """Streams the base through `W + scale * B @ A` into a full model that plain transformers loads."""
    return container("posttrain.merge", "cpu", **locals())
