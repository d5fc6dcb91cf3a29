"""run_trial: one trial of a sweep; run_sft_trial and run_preference_trial for pipelines that train one stage."""

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output, OutputPath, container_component

from components.container import container


@container_component
def run_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    sft_judged: Input[Dataset],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    preference_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs the steps up to the objective's gate with the trial's settings; a failing step is a result, not an error."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def run_sft_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    sft_train: Input[Dataset],
    sft_eval: Input[Dataset],
    sft_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs one trial of a pipeline without DPO."""
    return container("posttrain.sweep.trial", "train", **locals())


@container_component
def run_preference_trial(
    step: str,
    storage_root: str,
    config: dict,
    overrides: dict,
    base: Input[Model],
    preference_train: Input[Dataset],
    preference_eval: Input[Dataset],
    preference_judged: Input[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    row: OutputPath(str),
):
    """Runs one trial of a pipeline without SFT."""
    return container("posttrain.sweep.trial", "train", **locals())
