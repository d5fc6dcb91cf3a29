"""train_dpo: direct preference optimization with LoRA."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, container_component

from components.container import container


@container_component
def train_dpo(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    model: Input[Model],
    train: Input[Dataset],
    eval: Input[Dataset],
    adapter: Output[Model],
    metrics: Output[Metrics],
    curve: Output[HTML],
    logs: Output[Artifact],
):
    """Trains an adapter on a full model, its own reference; resumes from the newest whole checkpoint."""
    return container("posttrain.dpo", "train", **locals())
