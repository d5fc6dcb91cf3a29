"""fetch_model: the 16-bit base model and its tokenizer, commit pinned, safetensors only."""

from kfp.dsl import Artifact, Model, Output, container_component

from components.container import container


@container_component
def fetch_model(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base_model: str,
    model: Output[Model],
    tokenizer: Output[Artifact],
):
    """Copies the base model in: a Hub id with revision, gs://, s3:// or a folder."""
    return container(
        "posttrain.model",
        "cpu",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        base_model=base_model,
        model=model.path,
        tokenizer=tokenizer.path,
    )
