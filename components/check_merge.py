"""check_merge: the gate over a merged model."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container


@container_component
def check_merge(
    step: str,
    storage_root: str,
    config: dict,
    base: Input[Model],
    adapter: Input[Model],
    model: Input[Model],
    eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Checks that the merged model is the base plus the adapter and nothing else."""
    return container("validators.merge", "train", **locals())
