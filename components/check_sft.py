"""check_sft: the gate over the SFT adapter."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container


@container_component
def check_sft(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    adapter: Input[Model],
    training: Input[Metrics],
    eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    answers: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges the adapter's files, its held-out loss and its generated answers."""
    return container("validators.sft", "train", **locals())
