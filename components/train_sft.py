"""train_sft: supervised fine-tuning with LoRA."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, container_component

from components.container import container


@container_component
def train_sft(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    train: Input[Dataset],
    eval: Input[Dataset],
    adapter: Output[Model],
    metrics: Output[Metrics],
    curve: Output[HTML],
    logs: Output[Artifact],
):
    """Trains an adapter on the base model; resumes from the newest whole checkpoint."""
    return container("posttrain.sft", "train", **locals())
