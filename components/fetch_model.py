"""fetch_model: the 16-bit base model and its tokenizer, pinned to a commit, safetensors only."""

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
    """Copies the base model from the Hub (id and revision), gs://, s3:// or a folder."""
    return container("posttrain.model", "cpu", **locals())
