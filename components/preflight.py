"""preflight: finds in seconds what would otherwise end the run later."""

from kfp.dsl import Markdown, Output, container_component

from components.container import container


@container_component
def preflight(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base_model: str,
    sft_dataset: str,
    preference_dataset: str,
    model_name: str,
    notes: Output[Markdown],
):
    """Checks storage, base model, disk, tokens, names, data sets and prompts, and fails with all problems at once."""
    return container("posttrain.preflight", "cpu", **locals())
