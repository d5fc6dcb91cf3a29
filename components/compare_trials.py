"""compare_trials: the table of a sweep and its winner."""

from kfp.dsl import HTML, Artifact, Markdown, Output, OutputPath, container_component

from components.container import container


@container_component
def compare_trials(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    rows: list,
    base_model: str,
    sft_dataset: str,
    preference_dataset: str,
    model_name: str,
    table: Output[HTML],
    summary: Output[Markdown],
    csv: Output[Artifact],
    winner: Output[Artifact],
    best: OutputPath(dict),
):
    """Ranks the trials and returns the settings of the best; fails only if none qualifies."""
    return container("posttrain.sweep.compare", "train", **locals())
