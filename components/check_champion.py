"""check_champion: the gate before a published model is made current; check_sft_champion and check_preference_champion:
the same in a graph with one kind of rows; check_adapter_champion: the same where an adapter is published.
"""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container, without


@container_component
def check_champion(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    receipt: Input[Artifact],
    model: Input[Model],
    sft_eval: Input[Dataset],
    preference_eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    answers: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges the published model against the version that is current, on the same held-out rows."""
    return container("validators.champion", "train", **locals())


@without(check_champion, "preference_eval")
def check_sft_champion():
    """Judges the same on held-out SFT rows, in a graph without DPO."""


@without(check_champion, "sft_eval")
def check_preference_champion():
    """Judges the same on held-out preference rows, in a graph without SFT."""


@container_component
def check_adapter_champion(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    receipt: Input[Artifact],
    base: Input[Model],
    model: Input[Model],
    sft_eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    answers: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges a published adapter on its base, in a graph without merges."""
    return container("validators.champion", "train", **locals())
