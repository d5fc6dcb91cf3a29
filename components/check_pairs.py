"""check_pairs: the gate over sampled preference pairs."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output, OutputPath, container_component

from components.container import container


@container_component
def check_pairs(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    tokenizer: Input[Artifact],
    sft_eval: Input[Dataset],
    train: Input[Dataset],
    eval: Input[Dataset],
    sampling: Input[Metrics],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges sampled pairs: their yield, margin, lengths and form, and that no held-out prompt is among them."""
    return container("validators.pairs", "cpu", **locals())
