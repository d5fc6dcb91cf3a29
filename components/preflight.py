"""preflight: what would end the run later, found in seconds."""

from kfp.dsl import container_component

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
):
    """Looks at storage, base model, disk, tokens, data sets and prompts, and fails with all findings at once."""
    return container(
        "posttrain.preflight",
        "cpu",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        base_model=base_model,
        sft_dataset=sft_dataset,
        preference_dataset=preference_dataset,
    )
