"""compare_trials: the table of a sweep, and its winner."""

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
    """Puts the trials in order and gives the settings of the best; fails only if none qualifies."""
    return container(
        "posttrain.sweep.compare",
        "train",
        step=step,
        storage_root=storage_root,
        config=config,
        overrides=overrides,
        rows=rows,
        base_model=base_model,
        sft_dataset=sft_dataset,
        preference_dataset=preference_dataset,
        model_name=model_name,
        table=table.path,
        summary=summary.path,
        csv=csv.path,
        winner=winner.path,
        best=best,
    )
