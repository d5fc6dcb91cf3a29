"""check_data: the gate on the prepared rows; one component for each shape of the graph."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Output, OutputPath, container_component

from components.container import container, without


@container_component
def check_data(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    tokenizer: Input[Artifact],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    manifest: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges SFT and preference rows, and that no prompt is both trained on and evaluated."""
    return container("validators.data", "cpu", **locals())


@without(check_data, "preference_train", "preference_eval")
def check_sft_data():
    """Judges SFT rows."""


@without(check_data, "sft_train", "sft_eval")
def check_preference_data():
    """Judges preference rows."""
