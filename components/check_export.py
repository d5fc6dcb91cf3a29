"""check_export: the gate over the files in which the model is served; check_sft_export and check_preference_export: the
same in a graph with one kind of rows.
"""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container, without


@container_component
def check_export(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    model: Input[Model],
    export: Input[Model],
    sft_eval: Input[Dataset],
    preference_eval: Input[Dataset],
    verdict: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    answers: Output[Artifact],
    metrics: Output[Metrics],
    passed: OutputPath(bool),
):
    """Judges each exported file in its own engine against the merged model, on the same held-out rows."""
    return container("validators.export", "train", **locals())


@without(check_export, "preference_eval")
def check_sft_export():
    """Judges the same on held-out SFT rows, in a graph without DPO."""


@without(check_export, "sft_eval")
def check_preference_export():
    """Judges the same on held-out preference rows, in a graph without SFT."""
