"""promote_model: makes the published model the current version of its name."""

from kfp.dsl import Artifact, Input, Output, container_component

from components.container import container


@container_component
def promote_model(
    step: str,
    storage_root: str,
    config: dict,
    receipt: Input[Artifact],
    promotion: Output[Artifact],
):
    """Makes the published version current if check_champion of this run passed on exactly this model."""
    return container("posttrain.make_current", "cpu", **locals())
