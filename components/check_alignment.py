"""check_alignment: the gate before publishing; check_preference_alignment: the same gate in a graph without SFT;
check_safety: the part of it that needs no preferences.
"""

from kfp.dsl import (
    HTML,
    Artifact,
    ClassificationMetrics,
    Dataset,
    Input,
    Markdown,
    Metrics,
    Model,
    Output,
    OutputPath,
    container_component,
)

from components.container import container, without


@container_component
def check_alignment(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    before: Input[Model],
    model: Input[Model],
    training: Input[Metrics],
    preference_eval: Input[Dataset],
    sft_eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    answers: Output[Artifact],
    confusion: Output[ClassificationMetrics],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges the aligned model against the SFT model and the base: preferences, answers, red-team prompts."""
    return container("validators.alignment", "train", **locals())


@without(check_alignment, "base", "sft_eval")
def check_preference_alignment():
    """Judges the aligned model against its base, in a graph without SFT."""


@without(check_alignment, "base", "training", "preference_eval")
def check_safety():
    """Judges an SFT model against its base on generated answers and red-team prompts."""
