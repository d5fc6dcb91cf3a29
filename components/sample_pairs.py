"""sample_pairs: preference pairs from the merged SFT model's own answers; one component for each shape of the graph."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, container_component

from components.container import container


@container_component
def sample_pairs(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    model: Input[Model],
    rows: Input[Dataset],
    references: Input[Dataset],
    brought: Input[Dataset],
    train: Output[Dataset],
    answers: Output[Dataset],
    metrics: Output[Metrics],
):
    """Samples several answers to each training prompt; the best against the worst joins the pairs that are brought."""
    return container("validators.sampling", "train", **locals())


@container_component
def sample_pairs_alone(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    model: Input[Model],
    rows: Input[Dataset],
    references: Input[Dataset],
    held_out: Input[Dataset],
    train: Output[Dataset],
    eval: Output[Dataset],
    answers: Output[Dataset],
    metrics: Output[Metrics],
):
    """Samples several answers to each prompt, held-out ones too; all pairs are the best against the worst."""
    return container("validators.sampling", "train", **locals())
